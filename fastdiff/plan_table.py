"""A plan as a table a person can read."""

from __future__ import annotations

from collections.abc import Sequence

from .brownian import DRAWS, FIRST_DRAW
from .plan import Call, Launch, Plan
from .trace import Apply, Choose, Evaluate, Measure, Report


def describe(plan: Plan, state_bytes: int = 4) -> str:
    """The plan as a table: what every launch reads, draws and writes, and what is called after it."""
    head = f"{'launch':>6}  {'reads':<28} {'draws':<8} {'writes':<34} {'B/elem':>6}  then"
    lines = [head, "-" * len(head)]
    count = 0
    pending: tuple[str, ...] = ()

    def flush(then: str) -> None:
        nonlocal pending
        left = pending or ("", "", "", "", "")
        lines.append(f"{left[0]:>6}  {left[1]:<28} {left[2]:<8} {left[3]:<34} {left[4]:>6}  {then}".rstrip())
        pending = ()

    total = 0
    for item in plan.items:
        if isinstance(item, Launch):
            if pending:
                flush("")
            reads = [plan.names[s] for s in item.inputs]
            if item.variance is not None:
                reads.append(plan.names[item.variance])
            writes = [output.name for output in item.outputs]
            size = state_bytes * (len(reads) + (0 if item.squares else len(writes)))
            total += size
            drawn = _drawn(item.draws)
            clip = " (clip)" if item.clip else ""
            pending = (str(count), ", ".join(reads) or "-", drawn or "-", ", ".join(writes) + clip, str(size))
            count += 1
        else:
            flush(_describe_call(item, plan))
    if pending:
        flush("end")
    lines.append(
        f"{count} launches, {plan.evaluations} network evaluations, "
        f"{total} bytes per element with a {8 * state_bytes}-bit state"
    )
    return "\n".join(lines)


def _drawn(draws: Sequence[int]) -> str:
    """Draws by their numbers; those of a Brownian path by how many there are."""
    path = [k for k in draws if FIRST_DRAW <= k < FIRST_DRAW + DRAWS]
    named = [f"z{k}" for k in draws if k not in path]
    return ", ".join(named + [f"W ({len(path)})"] * bool(path))


def _describe_call(call: Call, plan: Plan) -> str:
    event = call.event
    if isinstance(event, Evaluate):
        names = [plan.names[slot] for slot in (call.output, call.second) if slot is not None]
        what = "network" if event.term is None or call.second is not None else "second opinion"
        return f"{', '.join(names)} = {what} at sigma {event.level.sigma_ve:.4g}"
    if isinstance(event, Report):
        return f"report step {event.step}"
    kinds = {Apply: "function", Choose: "row per sample", Measure: "measured"}
    return f"{plan.names[call.output]} = {kinds.get(type(event), 'guidance')}"  # type: ignore[index]
