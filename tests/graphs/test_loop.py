"""A captured run gives the bits of an eager one: every solver, every argument of a call, loop and step scope."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from fastdiff import LinearScale, ops
from fastdiff.guidance import AutoGuidance, Boosting, ClassifierFree, ClassifierGuidance, DiscriminatorGuidance

from .conftest import SHAPE, Net, critic, judge

pytestmark = pytest.mark.filterwarnings("error:.*:RuntimeWarning")  # no capture falls back


def two_step(denoise, x, levels, noise):
    """A user's multistep solver: it keeps the predicted x_0 of the step before."""
    before = None
    for level, following in pairwise(levels):
        x0 = denoise(x, level)
        ratio = following.sigma / level.sigma
        x = ratio * x + (1 - ratio) * (x0 if before is None else 1.5 * x0 - 0.5 * before)
        before = x0
        yield x


VP = {"process": "vp", "prediction": "eps", "steps": "ddim3"}
SOLVERS = {
    "heun": {},
    "heun churn": {"S_churn": 10.0},
    "euler": {"solver": "euler"},
    "ddim": {**VP, "solver": "ddim"},
    "ddim eta": {**VP, "solver": "ddim", "eta": 0.7},
    "ddpm": {**VP, "solver": "ddpm", "clip_denoised": True},
    "ddpm learned range": {**VP, "solver": "ddpm", "variance": "learned_range", "clip_denoised": True},
    "v": {**VP, "solver": "ddim", "prediction": "v", "eta": 1.0},
    "clip": {"clip_denoised": (-0.5, 0.5), "S_churn": 10.0},
    "epsilon scale": {"epsilon_scale": LinearScale(0.01, 1.02)},
    "denoised_fn": {"denoised_fn": lambda x0: x0.tanh(), "S_churn": 10.0},
    "multistep": {"solver": two_step},
    "guided": {"guidance": 1, "guidance_scale": 2.0, "S_churn": 10.0},
    "two terms": {"guidance": 2, "guidance_scale": [2.0, -0.5], "clip_denoised": True},
    "guided ddim": {**VP, "solver": "ddim", "eta": 0.5, "guidance": 1, "epsilon_scale": 1.02},
    "discriminator": {"terms": lambda g: DiscriminatorGuidance(judge(g), 2.0, 1.0), "epsilon_scale": 1.02},
    "boosting": {"terms": lambda g: DiscriminatorGuidance(judge(g), boosting=Boosting(period=1)), "S_churn": 1.0},
    "batch window": {
        "terms": lambda g: DiscriminatorGuidance(judge(g), time="cosine", batch_window=True, boosting=Boosting(2)),
    },
    "classifier": {"terms": lambda g: ClassifierGuidance(judge(g, 4), 0.5), "S_churn": 10.0},
    "classifier mean": {
        **VP, "solver": "ddpm", "variance": "learned_range",
        "terms": lambda g: ClassifierGuidance(judge(g, 4), rule="mean"),
    },
    "classifier eps": {**VP, "solver": "ddim", "terms": lambda g: ClassifierGuidance(judge(g, 4), rule="eps")},
    "classifier-free": {"terms": lambda g: ClassifierFree(2.0, interval=(0.1, 10.0))},
    "classifier-free, batched": {"terms": lambda g: ClassifierFree(2.0, null={"labels": 0}, batched=True)},
    "classifier-free, rescaled": {"terms": lambda g: ClassifierFree(2.0, rescale=0.7)},
    "autoguidance": {"terms": lambda g: AutoGuidance(g.net(), 1.5, prediction="eps")},
    "all terms": {
        "terms": lambda g: [
            DiscriminatorGuidance(judge(g)),
            ClassifierFree(1.5),
            lambda x, level, **cond: -x,
            AutoGuidance(g.net(), 1.2),
        ],
    },
    "time shift": {**VP, "solver": "time_shift", "steps": "ddim5", "window": 100, "cutoff": 100},
}  # fmt: skip


def build(graphs, name, dtype=torch.float32, **arguments):
    """(eager, captured) samplers of one kind, each with a network of its own."""
    options = {**SOLVERS[name], "dtype": dtype, **arguments}
    terms_of = options.pop("terms", None)
    samplers = []
    for graph in ("off", options.pop("graph", "loop")):
        terms = [critic(graphs), lambda x, level, **cond: -x / (1 + level.sigma**2)][: options.get("guidance", 0)]
        extra = {"guidance": terms} if terms else {}
        if terms_of is not None:
            extra = {"guidance": terms_of(graphs)}
        net = graphs.net(halves=2 if "variance" in options else 1)
        samplers.append(graphs.sampler(net, **{**options, **extra, "graph": graph}))
    return samplers


def one_signature(sampler):
    """The sampler captured once and never fell back."""
    stats = sampler.stats()
    return stats.graphs >= 1 and stats.captures == 1 and stats.fallbacks == 0


KINDS = [("loop", torch.float32), ("loop", torch.float64), ("step", torch.float32)]


@pytest.mark.parametrize(("scope", "dtype"), KINDS, ids=["loop-float32", "loop-float64", "step-float32"])
@pytest.mark.parametrize("name", SOLVERS)
def test_replays_are_bit_equal_to_eager_runs(name, scope, dtype, graphs):
    eager, captured = build(graphs, name, dtype, graph=scope)
    hits = []
    for seeds, labels in ((0, [1, 2]), (7, [0, 3]), ([2**63, 5], [3, 3])):
        want = eager(2, seeds=seeds, labels=labels)
        assert captured(2, seeds=seeds, labels=labels).equal(want), f"seeds {seeds}"
        assert want.isfinite().all()
        hits.append(captured.stats().hits)
    assert hits[0] < hits[1] < hits[2] and one_signature(captured)


@pytest.mark.parametrize("scope", ["loop", "step"])
@pytest.mark.parametrize("name", ["heun churn", "ddpm learned range", "clip"])
def test_the_reference_backend_is_captured_too(name, scope, graphs):
    eager, captured = build(graphs, name, graph=scope, backend="reference")
    for seeds in (0, 5):
        assert captured(2, seeds=seeds).equal(eager(2, seeds=seeds))
    assert one_signature(captured)


@pytest.mark.parametrize("scope", ["loop", "step"])
def test_the_inversion_and_given_starting_states(scope, graphs):
    sampler = {"process": "vp", "prediction": "eps", "solver": "ddim_inversion", "steps": "ddim3"}
    for arguments in (sampler, {}):
        eager, captured = graphs.sampler(graph="off", **arguments), graphs.sampler(graph=scope, **arguments)
        for seed in range(3):
            x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(seed)).to(graphs.device)
            before = x.clone()
            assert captured(2, x_init=x).equal(eager(2, x_init=x))
            assert x.equal(before)
        x = x.double().transpose(2, 3)
        assert captured(2, x_init=x).equal(eager(2, x_init=x)), "converted and made contiguous first"
        assert one_signature(captured)


@pytest.mark.parametrize("scope", ["loop", "step"])
def test_images_and_masks_are_read_anew(scope, graphs):
    eager, captured = (graphs.sampler(solver="euler_ancestral", graph=graph) for graph in ("off", scope))
    bucketed = graphs.sampler(solver="euler_ancestral", graph=scope, buckets=[4])
    for seed in range(3):
        image, mask = torch.randn(2, 2, *SHAPE, generator=torch.Generator().manual_seed(seed)).to(graphs.device)
        for call in ({"image": image, "mask": mask > 0}, {"image": image, "start": 1}):
            want = eager(2, seeds=seed, **call)
            assert captured(2, seeds=seed, **call).equal(want) and bucketed(2, seeds=seed, **call).equal(want)
    assert captured.stats().captures == 2 and captured.stats().fallbacks == 0


@pytest.mark.parametrize("scope", ["loop", "step"])
def test_conditioning_is_read_anew(scope, graphs):
    eager, captured = graphs.sampler(graph="off"), graphs.sampler(graph=scope)
    for seed in range(3):
        text = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(seed)).to(graphs.device)
        cond = {"context": {"text": text}, "strength": 0.5}
        assert captured(2, seeds=0, cond=cond).equal(eager(2, seeds=0, cond=cond))
    assert one_signature(captured)


@pytest.mark.parametrize("scope", ["loop", "step"])
def test_guidance_gets_the_conditioning_too(scope, graphs):
    def towards(x, level, labels, target):
        return (target - x) * (1 + labels.reshape(-1, 1, 1, 1)) / (1 + level.sigma**2)

    def model(x, t, labels, target):
        return 0.5 * x

    eager, captured = (
        graphs.sampler(model, guidance=towards, guidance_scale=0.1, graph=graph) for graph in ("off", scope)
    )
    for value in (1.0, -2.0):
        call = {"labels": [1, 3], "cond": {"target": torch.full((2, *SHAPE), value, device=graphs.device)}}
        assert captured(2, seeds=1, **call).equal(eager(2, seeds=1, **call))
    assert one_signature(captured)


@pytest.mark.parametrize("scope", ["loop", "step"])
def test_results_are_copies(scope, graphs):
    eager, captured = graphs.sampler(graph="off"), graphs.sampler(graph=scope)
    results = [captured(2, seeds=seed) for seed in range(3)]
    other = captured(3, seeds=9)
    for seed, x in enumerate(results):
        assert x.equal(eager(2, seeds=seed)), "a later call changed an earlier result"
    results[0].fill_(0.0)
    assert captured(2, seeds=1).equal(results[1]) and other.equal(eager(3, seeds=9))


@pytest.mark.parametrize("scope", ["loop", "step"])
def test_arguments_are_never_written_to(scope, graphs):
    captured, kept = graphs.sampler(graph=scope), []
    for seed in range(3):
        call = {
            "seeds": torch.tensor([seed, seed + 5], device=graphs.device),
            "labels": torch.tensor([seed, 3], device=graphs.device),
            "x_init": torch.full((2, *SHAPE), float(seed), device=graphs.device),
            "cond": {"context": {"text": torch.full((2, 5, 8), float(seed), device=graphs.device)}},
        }
        captured(2, **call)
        kept.append(call)
    for seed, call in enumerate(kept):
        assert call["seeds"].tolist() == [seed, seed + 5] and call["labels"].tolist() == [seed, 3]
        assert (call["x_init"] == seed).all() and (call["cond"]["context"]["text"] == seed).all()


@pytest.mark.parametrize("scope", ["loop", "step", "auto"])
def test_trajectories_and_callbacks_see_independent_tensors(scope, graphs):
    for arguments in ({"S_churn": 10.0}, {"clip_denoised": True}):
        eager, captured = graphs.sampler(graph="off", **arguments), graphs.sampler(graph=scope, **arguments)
        for seed in range(3):
            seen, wanted = [], []
            x, path = captured(2, seeds=seed, callback=seen.append, return_trajectory=True)
            want, wanted_path = eager(2, seeds=seed, callback=wanted.append, return_trajectory=True)
            assert x.equal(want) and path.equal(wanted_path)
            assert [(info.step, info.level) for info in seen] == [(info.step, info.level) for info in wanted]
            for a, b in zip(seen, wanted):
                assert a.x.equal(b.x) and a.denoised.equal(b.denoised)
            assert captured(2, seeds=seed).equal(want), "and without an observer"


@pytest.mark.parametrize("scope", ["loop", "step"])
def test_what_an_observer_does_to_its_tensors_changes_nothing(scope, graphs):
    captured, want = graphs.sampler(graph=scope), graphs.sampler(graph="off")(2, seeds=0)
    for _ in range(3):
        assert captured(2, seeds=0, callback=lambda info: (info.x.zero_(), info.denoised.zero_())).equal(want)


def test_a_callback_that_raises_leaves_the_graph_usable(graphs):
    def stop(info):
        if info.step == 1:
            raise KeyboardInterrupt

    captured, want = graphs.sampler(graph="step"), graphs.sampler(graph="off")(2, seeds=0)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            captured(2, seeds=1, callback=stop)
        assert captured(2, seeds=0, callback=lambda info: None).equal(want)


@pytest.mark.parametrize("scope", ["loop", "step", "auto"])
def test_noise_from_tensors(scope, graphs):
    eager, captured = (graphs.sampler(graph=graph, S_churn=10.0) for graph in ("off", scope))
    asked = []

    def noise(draw, step):
        asked.append((draw, step))
        return ops.normal(torch.tensor([3, 4], device=graphs.device), (2, *SHAPE), draw)

    want = eager(2, noise=noise)
    once = asked.copy()
    for _ in range(3):
        asked.clear()
        assert captured(2, noise=noise).equal(want) and asked == once
    for seed in (1, 2, 1):
        a = captured(2, generator=torch.Generator(graphs.device).manual_seed(seed))
        assert a.equal(eager(2, generator=torch.Generator(graphs.device).manual_seed(seed)))


@pytest.mark.parametrize("scope", ["loop", "step", "auto"])
def test_progress_counts_every_step(scope, graphs, capsys):
    captured, want = graphs.sampler(graph=scope), graphs.sampler(graph="off")(2, seeds=0)
    for _ in range(3):
        assert captured(2, seeds=0, progress=True).equal(want)
        assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize("scope", ["loop", "step"])
def test_ragged_and_empty_batches(scope, graphs):
    eager, captured = graphs.sampler(graph="off"), graphs.sampler(graph=scope)
    for batch in (5, 0, 3, 1, 5, 0):
        x = captured(batch, seeds=range(batch))
        assert x.shape == (batch, *SHAPE) and x.equal(eager(batch, seeds=range(batch)))
    flat = graphs.sampler(lambda x, t: 0.5 * x, shape=None, graph=scope)
    assert flat((4, 0), seeds=0).shape == (4, 0) and flat((4,), seeds=0).shape == (4,)


def test_the_readable_reference_is_never_captured(graphs):
    plain = graphs.sampler(compiled=False, graph="auto")
    for _ in range(3):
        plain(2, seeds=0)
    assert plain.stats().captures == 0 and graphs.captures() == 0


def test_nan_is_found_in_a_replay(graphs):
    def model(x, t, bad):
        return 0.5 * x / bad.reshape(-1, 1, 1, 1)

    captured = graphs.sampler(model)
    good, bad = (torch.tensor(v, device=graphs.device) for v in ([1.0, 1.0], [1.0, 0.0]))
    assert captured(2, seeds=5, cond={"bad": good}).isfinite().all()
    with pytest.raises(FloatingPointError, match=r"seeds \[6\]"):
        captured(2, seeds=5, cond={"bad": bad})
    assert captured(2, seeds=5, cond={"bad": good}).isfinite().all()


def test_dropout_draws_anew_in_every_replay(graphs):
    net = Net(dropout=0.5).to(graphs.device).train()
    captured = graphs.sampler(net)
    a, b, c = (captured(2, seeds=0) for _ in range(3))
    assert not b.equal(a) and not c.equal(b)


def test_a_small_unet(graphs):
    from fastdiff.models import UNet

    torch.manual_seed(0)
    net = UNet(image_size=8, channels=1, width=8, embedding=16, patch=1, label_dim=3).to(graphs.device).eval()
    for parameter in net.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    kwargs = {"prediction": "edm", "steps": 2, "shape": (1, 8, 8)}
    eager, captured = graphs.sampler(net, graph="off", **kwargs), graphs.sampler(net, **kwargs)
    for seed in (0, 1):
        call = {"seeds": seed, "labels": [0, 2]}
        assert captured(2, **call).equal(eager(2, **call))
    assert one_signature(captured)


def test_a_loop_reads_static_memory_and_weights_only(emulated):
    net, guide = emulated.net(), critic(emulated)
    captured = emulated.sampler(net, guidance=guide, S_churn=10.0)
    captured(2, seeds=0, labels=[0, 1])
    (graph,) = emulated.machine.graphs
    own = {p.data_ptr() for module in (net, guide) for p in module.parameters()}
    others = set(graph.external) - own
    assert own <= set(graph.external) and len(others) <= 5, "beside weights: seeds, two tables, times, labels"


def test_network_and_gradient_of_one_evaluation_are_captured_on_two_streams(emulated):
    sampler = emulated.sampler(guidance=critic(emulated))
    sampler(2, seeds=0)
    log = [kind for kind, _ in emulated.machine.log]
    after = log[log.index("capture") :]
    assert after.count("branch") == after.count("join") == sampler.plan().evaluations
    plain = emulated.sampler()
    emulated.machine.log.clear()
    plain(2, seeds=0)
    assert not emulated.machine.events("branch"), "one stream where there is no gradient"


def test_loop_scope_is_one_graph_and_step_scope_one_a_step(emulated):
    for scope, count in (("loop", 1), ("step", 3)):
        sampler = emulated.sampler(graph=scope)
        sampler(2, seeds=0)
        before = len(emulated.machine.events("replay"))
        sampler(2, seeds=1)
        replays = len(emulated.machine.events("replay")) - before
        assert count <= replays <= count + 1, f"{scope}: {replays} replays"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the emulator refuses what waits in every other test")
@pytest.mark.parametrize("name", SOLVERS)
def test_a_loop_never_waits_for_the_gpu(name, graphs):
    if graphs.emulated:
        return
    eager, captured = build(graphs, name, check=False)
    seeds = torch.arange(2, device=graphs.device)
    for sampler in (eager, captured):
        for _ in range(2):
            sampler(2, seeds=seeds)
        torch.cuda.set_sync_debug_mode("error")
        try:
            sampler(2, seeds=seeds)
        finally:
            torch.cuda.set_sync_debug_mode("default")
