"""What holds for every loss of a network told a time, a level or its label."""

from __future__ import annotations

import pytest
import torch

from fastdiff import ops
from fastdiff.sde import VESDE, VPSDE, subVPSDE
from fastdiff.training.losses import dsm_loss, edm_loss, flow_loss, sde_ddpm_loss, sde_loss, smld_loss, ssm_vr_loss

from ...tolerances import LOSS

SIGMA = torch.tensor([0.02, 0.5, 7.0])
TIME = torch.tensor([0.1, 0.5, 0.9])
LABELS = torch.tensor([0, 7, 3])
SEEDS = torch.tensor([3, 4, 9])
SIGMAS = torch.linspace(3, 0.1, 10)

# name: (the loss, levels, what follows the noise)
LOSSES = {
    "edm": (edm_loss, SIGMA, ()),
    "flow": (flow_loss, TIME, ()),
    "vp": (sde_loss, TIME, (VPSDE(),)),
    "subvp": (sde_loss, TIME, (subVPSDE(),)),
    "ve": (sde_loss, TIME, (VESDE(),)),
    "smld": (smld_loss, LABELS, (VESDE(N=10),)),
    "ddpm": (sde_ddpm_loss, LABELS, (VPSDE(N=20),)),
    "dsm": (dsm_loss, LABELS, (SIGMAS,)),
    "dsm_sigma": (dsm_loss, SIGMA, ()),
    "ssm_vr": (ssm_vr_loss, LABELS, (SIGMAS,)),
}
each_loss = pytest.mark.parametrize("name", LOSSES)
perturbed_loss = pytest.mark.parametrize("name", [name for name in LOSSES if name != "ssm_vr"])


def samples(shape=(3, 2, 5, 3)):
    return torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape).sin()


def network(x, time, scale=1.0):
    return scale * x.sin()


def run(name, x0, noise, levels=None, **options):
    loss, own, more = LOSSES[name]
    return loss(options.pop("network", network), x0, own if levels is None else levels, noise, *more, **options)


@each_loss
def test_one_number_per_sample_of_its_own(name):
    x0 = samples()
    whole = run(name, x0, SEEDS)
    assert (whole.shape, whole.dtype) == ((3,), torch.float32)
    assert whole.isfinite().all()
    one = LOSSES[name][1][1:2]
    torch.testing.assert_close(run(name, x0[1:2], SEEDS[1:2], one), whole[1:2], rtol=LOSS[torch.float32], atol=0)
    crossed = x0.transpose(1, 3).contiguous().transpose(1, 3)
    torch.testing.assert_close(run(name, crossed, SEEDS), whole, rtol=LOSS[torch.float32], atol=0)


@each_loss
def test_empty_batch(name):
    assert run(name, samples()[:0], SEEDS[:0], LOSSES[name][1][:0]).shape == (0,)


@each_loss
def test_flat_samples(name):
    assert run(name, samples((3, 2)), SEEDS).shape == (3,)


@each_loss
def test_further_arguments_reach_the_network(name):
    assert not torch.equal(run(name, samples(), SEEDS, cond={"scale": 2.0}), run(name, samples(), SEEDS))


@each_loss
def test_half_precision_output_is_compared_in_float32(name):
    """As under autocast."""
    loss = run(name, samples(), SEEDS, network=lambda x, time: network(x, time).bfloat16())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, run(name, samples(), SEEDS), rtol=0.1, atol=0.1)


@perturbed_loss
def test_seeds_stand_for_their_normals(name):
    x0 = samples()
    z, xi = (ops.normal(SEEDS, x0.shape, draw) for draw in (0, 1))
    close = {"rtol": LOSS[torch.float32], "atol": LOSS[torch.float32]}
    torch.testing.assert_close(run(name, x0, SEEDS), run(name, x0, z), **close)
    perturbed = run(name, x0, SEEDS, gamma=0.3)
    torch.testing.assert_close(perturbed, run(name, x0, z, gamma=0.3, xi=xi), **close)
    assert not torch.equal(perturbed, run(name, x0, SEEDS))
    torch.testing.assert_close(run(name, x0, SEEDS, gamma=0.0), run(name, x0, SEEDS), **close)


@perturbed_loss
def test_input_perturbation_leaves_the_target_alone(name):
    """The network sees z + gamma xi; what it is compared with moves only in the negative control."""
    x0, seen = samples(), {}

    def recorder(key):
        def constant(x, time):
            seen[key] = x
            return torch.full_like(x, 0.3)  # so the loss knows of the target alone

        return constant

    plain = run(name, x0, SEEDS, network=recorder("plain"))
    perturbed = run(name, x0, SEEDS, network=recorder("perturbed"), gamma=0.3)
    negative = run(name, x0, SEEDS, network=recorder("negative"), gamma=0.3, perturbed_target=True)
    torch.testing.assert_close(perturbed, plain, rtol=LOSS[torch.float32], atol=0)
    assert not torch.allclose(negative, plain, rtol=1e-3)
    assert torch.equal(seen["perturbed"], seen["negative"])
    assert not torch.allclose(seen["perturbed"], seen["plain"], rtol=1e-3)


@each_loss
@pytest.mark.parametrize("wrong", [torch.ones(2), torch.ones(3, 1), torch.ones(2, dtype=torch.int64)])
def test_levels_of_another_shape_are_refused(name, wrong):
    with pytest.raises(ValueError, match=r"^(sigma|t|labels|levels) must be an? (integer|floating) tensor \[3\]"):
        run(name, samples(), SEEDS, wrong)


@each_loss
def test_levels_of_another_kind_are_refused(name):
    own = LOSSES[name][1]
    other = torch.ones(3) if own.dtype == torch.int64 else LABELS
    with pytest.raises(ValueError, match=r"got torch\.(int64|float32)"):
        run(name, samples(), SEEDS, other)


@each_loss
def test_output_of_another_shape_is_refused(name):
    with pytest.raises(ValueError, match=r"^network must return the shape of its input, \[3, 2, 5, 3\], got \[3, 4, 5"):
        run(name, samples(), SEEDS, network=lambda x, time: torch.cat([x, x], 1))


@each_loss
def test_samples_that_are_bare_numbers_are_refused(name):
    with pytest.raises(ValueError, match=r"x0 must be samples \[B, \.\.\.\]"):
        run(name, torch.zeros(3), SEEDS)
