"""What guidance costs: no launch more, one read of each gradient, and nothing is read back to the host."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastdiff import Sampler
from fastdiff.guidance import AutoGuidance, Boosting, ClassifierFree, ClassifierGuidance, DiscriminatorGuidance
from fastdiff.plan import Call
from fastdiff.trace import Evaluate, Guide


def disc(y, tau, labels):
    return y.flatten(1).sum(1)


def classifier(x, t):
    return x.flatten(1)[:, :3]


def model(x, t, labels=None):
    return 0.5 * x


def with_variance(x, t, labels=None):
    return torch.cat([0.5 * x, x.tanh()], 1)


VP = {"process": "vp", "prediction": "eps", "steps": "10"}
RUNS = {
    "heun": {"steps": 8},
    "heun, churn": {"steps": 8, "S_churn": 10.0},
    "heun, clipped": {"steps": 8, "clip_denoised": True},
    "heun, scaled": {"steps": 8, "epsilon_scale": 1.02},
    "euler": {"solver": "euler", "steps": 8},
    "euler, churn": {"solver": "euler", "steps": 8, "S_churn": 10.0},
    "ddim": {**VP, "solver": "ddim"},
    "ddim, eta": {**VP, "solver": "ddim", "eta": 1.0, "clip_denoised": True},
    "ddpm": {**VP, "solver": "ddpm"},
    "ddpm, learned": {**VP, "solver": "ddpm", "model": with_variance, "variance": "learned_range"},
    "half a network": {"steps": 8, "model_dtype": torch.float16},
    "float64": {"steps": 8, "dtype": torch.float64},
}
TERMS = {
    "discriminator": DiscriminatorGuidance(disc, 1.67),
    "discriminator, boosting": DiscriminatorGuidance(disc, 1.67, boosting=Boosting(period=3)),
    "discriminator, float32": DiscriminatorGuidance(disc, 1.67, dtype=torch.float32),
    "classifier": ClassifierGuidance(classifier),
    "classifier, eps": ClassifierGuidance(classifier, rule="eps"),
    "classifier, vp": ClassifierGuidance(classifier, space="vp"),
    "classifier-free": ClassifierFree(2.0),
    "autoguidance": AutoGuidance(model, 2.0),
    "function": lambda x, level: x,
}


def plan(run, term=None):
    arguments = {"model": model, **RUNS[run]}
    return Sampler(guidance=term, **arguments).plan()


def events(plan, kind):
    return [item for item in plan.items if isinstance(item, Call) and isinstance(item.event, kind)]


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("run", RUNS)
def test_no_launch_more_and_one_read_of_each_gradient(run, term):
    plain, guided = plan(run), plan(run, TERMS[term])
    assert len(guided.launches) == len(plain.launches)
    assert guided.evaluations == plain.evaluations * (2 if term in ("classifier-free", "autoguidance") else 1)
    pushes = {call.output for call in events(guided, Guide)}
    pushes |= {call.output for call in events(guided, Evaluate) if guided.names[call.output].startswith("U")}
    assert pushes, "nothing is guided"
    slopes = 2 if "heun" in run or run in ("half a network", "float64") else 1
    for before, after in zip(plain.launches, guided.launches):
        assert sum(slot in pushes for slot in after.inputs) <= slopes, "one for each slope of the step"
        assert len(after.draws) == len(before.draws) or "boosting" in term
    for slot in pushes:
        assert sum(slot in launch.inputs for launch in guided.launches) <= slopes


@pytest.mark.parametrize("run", ["ddpm", "ddpm, learned"])
def test_a_push_of_the_mean_costs_no_launch(run):
    plain, guided = plan(run), plan(run, ClassifierGuidance(classifier, rule="mean"))
    assert len(guided.launches) == len(plain.launches)


@pytest.mark.parametrize("run", ["heun", "heun, churn", "euler", "ddim", "ddpm"])
def test_a_discriminator_adds_one_read_at_most(run):
    """With the default w_2nd = 0, beside the same plan without guidance."""
    plain, guided = plan(run), plan(run, TERMS["discriminator"])
    more = [len(after.inputs) - len(before.inputs) for before, after in zip(plain.launches, guided.launches)]
    assert set(more) == {0, 1}


@pytest.mark.parametrize("run", ["ddim", "ddpm"])
def test_a_variance_preserving_state_is_the_discriminators_input(run):
    plain, guided = plan(run), plan(run, TERMS["discriminator"])
    assert [len(launch.outputs) for launch in guided.launches] == [len(launch.outputs) for launch in plain.launches]


def test_the_discriminators_input_is_written_by_the_launch_before():
    """Scaled to VP terms, in its dtype, beside the network's input; no pass of its own over the state."""
    guided = plan("heun, churn", TERMS["discriminator, float32"])
    calls = events(guided, Guide)
    made = {o.slot: (number, o) for number, launch in enumerate(guided.launches) for o in launch.outputs}
    assert len(calls) == 7 and all(call.slots[0] in made for call in calls)
    for call in calls:
        number, output = made[call.slots[0]]
        assert output.dtype == torch.float32
        assert any(o.for_network or o.name.startswith("x") for o in guided.launches[number].outputs)


class Critic(nn.Module):
    """A discriminator with convolutions."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(16, 1))
        self.time, self.classes = nn.Linear(1, 1), nn.Embedding(4, 1)

    def forward(self, y, tau, labels=None):
        return self.net(y) + self.time(tau[:, None]) + (0 if labels is None else self.classes(labels))


def critic(graphs):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return Critic().to(graphs.device)


GRAPHED = {
    "plain": {},
    "second order": {"w_2nd": 1.0},
    "boosting": {"boosting": Boosting(period=2)},
    "official window": {"boosting": Boosting(period=2), "batch_window": True, "time_min": 0.3},
    "probability, cosine": {"output": "probability", "time": "cosine"},
}


@pytest.mark.filterwarnings("error:.*:RuntimeWarning")
@pytest.mark.parametrize("name", GRAPHED)
def test_nothing_is_read_back(name, graphs):
    """A capture refuses every synchronisation, and a replay has the bits of an eager run."""
    options = dict(GRAPHED[name])
    net = critic(graphs)
    if options.get("output") == "probability":
        inner, net = net, nn.Sequential()
        net.inner = inner
        net.forward = lambda *arguments: net.inner(*arguments).sigmoid()
    eager, captured = (
        graphs.sampler(
            graphs.net(),
            steps=6,
            S_churn=4.0,
            graph=graph,
            epsilon_scale=1.004,
            guidance=DiscriminatorGuidance(net, **options),
        )
        for graph in ("off", "loop")
    )
    for seeds in (0, 7, 0):
        want = eager(4, seeds=seeds, labels=[0, 1, 2, 3])
        assert captured(4, seeds=seeds, labels=[0, 1, 2, 3]).equal(want) and want.isfinite().all()
    stats = captured.stats()
    assert (stats.captures, stats.fallbacks, stats.graphs) == (1, 0, 1)


@pytest.mark.filterwarnings("error:.*:RuntimeWarning")
def test_a_sweep_over_lambda_and_weight_is_one_graph(graphs):
    """Both are numbers of the plan; so a grid of them costs one capture."""
    first = graphs.sampler(steps=4, guidance=DiscriminatorGuidance(critic(graphs), 1.0), epsilon_scale=1.01)
    found = []
    for scale in (1.02, 1.05):  # 1 reads less: the last step's state
        for weight in (0.5, 2.0):
            sampler = first.replace(epsilon_scale=scale, guidance_scale=weight)
            found.append(sampler(2, seeds=0, labels=[1, 2]))
            assert found[-1].equal(
                first.replace(epsilon_scale=scale, guidance_scale=weight, graph="off")(2, seeds=0, labels=[1, 2])
            )
    assert first.stats().captures == 1 and first.stats().fallbacks == 0
    assert len({float(x.sum()) for x in found}) == 4


def test_plans_can_be_printed():
    text = str(plan("heun, churn", [TERMS["discriminator, boosting"], TERMS["classifier-free"]]))
    assert "guidance" in text and "row per sample" in text and "second opinion" in text
