"""The kernel against what it replaces. Run with `python -m benchmarks`."""

from __future__ import annotations

import pytest
import torch

from benchmarks.baselines import GuidedDiffusionStep, ancestral_update, edm_heun_step
from fastdiff import VP, Sampler
from fastdiff.ops import native, resolve_backend
from fastdiff.process import GaussianTables

SHAPES = {
    "1x3x32x32": (1, 3, 32, 32),
    "16x3x32x32": (16, 3, 32, 32),
    "64x3x32x32": (64, 3, 32, 32),
    "512x3x32x32": (512, 3, 32, 32),
    "16M": (16, 1 << 20),
}
pytestmark = pytest.mark.parametrize("size", SHAPES)


def launches(sampler: Sampler, which: slice):  # type: ignore[no-untyped-def]
    """The sampler's own launches as closures (inputs, seeds) -> outputs."""
    combine = native.operation("combine_out", resolve_backend(None))
    made = []
    for launch in sampler.plan().launches[which]:
        table = torch.from_numpy(launch.table).float()

        def run(inputs, seeds=None, variance=None, launch=launch, table=table):  # type: ignore[no-untyped-def]
            out = [torch.empty(inputs[0].shape) for _ in launch.outputs]
            combine(inputs, table, None, seeds, launch.draws, variance, launch.clip, out)
            return out

        made.append(run)
    return made


def model(x, t):  # type: ignore[no-untyped-def]
    raise AssertionError("only the arithmetic between network calls is measured")


class TestHeunStep:
    """A deterministic Heun step: EDM's float64 arithmetic against two launches."""

    @pytest.fixture
    def tensors(self, size):  # type: ignore[no-untyped-def]
        return [torch.randn(SHAPES[size]) for _ in range(3)]

    @pytest.mark.parametrize("draw", [True, False], ids=["as_published", "without_its_draw"])
    def test_edm_float64(self, measure, size, tensors, draw):  # type: ignore[no-untyped-def]
        x, first, second = tensors
        x = x.double()
        t, t_next = (torch.tensor(s, dtype=torch.float64) for s in (3.0, 2.0))
        measure(lambda: edm_heun_step(x, first, second, t, t_next, draw), x.numel())

    def test_torch_compile(self, measure, size, tensors):  # type: ignore[no-untyped-def]
        x, first, second = tensors
        x = x.double()
        t, t_next = (torch.tensor(s, dtype=torch.float64) for s in (3.0, 2.0))
        compiled = torch.compile(edm_heun_step, dynamic=True)
        measure(lambda: compiled(x, first, second, t, t_next, False), x.numel())

    def test_fastdiff(self, measure, size, tensors):  # type: ignore[no-untyped-def]
        x, first, second = tensors
        predict, correct = launches(Sampler(model, steps=6), slice(3, 5))
        # The values do not matter: the predictor reads two tensors, the corrector three.
        measure(lambda: (predict([x, first]), correct([x, first, second])), x.numel(), 28)


class TestAncestralStep:
    """guided-diffusion's step with learned-range variance, clipping and noise: one launch."""

    @pytest.fixture
    def tensors(self, size):  # type: ignore[no-untyped-def]
        shape = SHAPES[size]
        return torch.randn(shape), torch.randn(shape[0], 2 * shape[1], *shape[2:])

    def step(self, shape):  # type: ignore[no-untyped-def]
        q = GaussianTables(VP.cosine(1000).levels(100).alphas_cumprod)
        return GuidedDiffusionStep(q), torch.full((shape[0],), 50)

    def test_guided_diffusion(self, measure, tensors):  # type: ignore[no-untyped-def]
        x, output = tensors
        step, t = self.step(x.shape)
        measure(lambda: step(x, output, t), x.numel())

    def test_torch_compile(self, measure, tensors):  # type: ignore[no-untyped-def]
        x, output = tensors
        step, t = self.step(x.shape)
        compiled = torch.compile(step, dynamic=True)
        measure(lambda: compiled(x, output, t), x.numel())

    def test_fastdiff(self, measure, tensors):  # type: ignore[no-untyped-def]
        x, output = tensors
        eps, v = output.chunk(2, dim=1)
        options = {"process": "vp_cosine", "prediction": "eps", "solver": "ddpm", "steps": 100}
        sampler = Sampler(model, **options, variance="learned_range", clip_denoised=True)
        (step,) = launches(sampler, slice(50, 51))
        seeds = torch.arange(len(x))
        measure(lambda: step([eps, x], seeds, v), x.numel(), 16)


class TestNoiseStep:
    """a x + b eps + std z."""

    @pytest.fixture
    def tensors(self, size):  # type: ignore[no-untyped-def]
        return [torch.randn(SHAPES[size]) for _ in range(2)]

    @pytest.mark.parametrize("threads", [1, 2])
    def test_eager(self, measure, tensors, threads):  # type: ignore[no-untyped-def]
        x, eps = tensors
        a, b, std = (torch.tensor(c) for c in (0.9, -0.2, 0.3))
        measure(lambda: ancestral_update(x, eps, a, b, std), x.numel(), threads=threads)

    @pytest.mark.parametrize("threads", [1, 2])
    def test_fastdiff(self, measure, tensors, threads):  # type: ignore[no-untyped-def]
        x, eps = tensors
        table = torch.tensor([[0.9, -0.2, 0.3]])
        seeds = torch.arange(len(x))
        combine = native.operation("combine_out", resolve_backend(None))

        def step() -> None:
            combine([x, eps], table, None, seeds, [1], None, False, [torch.empty_like(x)])

        measure(step, x.numel(), 12, threads)


class TestNormal:
    """Standard normals, into a given tensor."""

    @pytest.mark.parametrize("threads", [1, 2])
    def test_torch_randn(self, measure, size, threads):  # type: ignore[no-untyped-def]
        shape = SHAPES[size]
        out = torch.empty(shape)
        measure(lambda: torch.randn(shape, out=out), out.numel(), 4, threads)

    @pytest.mark.parametrize("threads", [1, 2])
    def test_fastdiff(self, measure, size, threads):  # type: ignore[no-untyped-def]
        out, table = torch.empty(SHAPES[size]), torch.ones(1, 1)
        seeds = torch.arange(len(out))
        combine = native.operation("combine_out", resolve_backend(None))
        measure(lambda: combine([], table, None, seeds, [1], None, False, [out]), out.numel(), 4, threads)


class TestBandwidth:
    """a x + b eps into a given tensor, in bytes per second, against a plain copy."""

    def test_copy(self, measure, size):  # type: ignore[no-untyped-def]
        source = torch.randn(SHAPES[size])
        target = torch.empty_like(source)
        measure(lambda: target.copy_(source), source.numel(), 8)

    def test_fastdiff(self, measure, size):  # type: ignore[no-untyped-def]
        x, eps = (torch.randn(SHAPES[size]) for _ in range(2))
        target, table = torch.empty_like(x), torch.tensor([[0.9, -0.2]])
        combine = native.operation("combine_out", resolve_backend(None))
        measure(lambda: combine([x, eps], table, None, None, [], None, False, [target]), x.numel(), 12)
