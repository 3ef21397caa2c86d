"""Averaged weights: their decay, buffers beside the weights, and a training that was interrupted."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ldcvae.training.phase import Phase, running_average


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def phase(ema: float, total: int = 40) -> Phase:
    return Phase(network(), total, 0.05, 0.0, ema, fused=True)


def train(one: Phase, until: int) -> None:
    """Steps whose batches are a function of the step."""
    one.network.train()
    while one.step < until:
        batch = 2.0 + 3.0 * torch.randn(16, 3, generator=torch.Generator().manual_seed(one.step))
        one.network(batch).square().mean().backward()
        one._update()


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("ema", [0.3, 0.9, 0.999])
def test_the_decay_warms_up_by_the_formula(ema):
    one, steps = phase(ema), 30
    expected = {name: tensor.double() for name, tensor in values(one.network).items()}
    for step in range(1, steps + 1):
        train(one, step)
        decay = min(ema, (1 + step) / (10 + step))
        for name, tensor in values(one.network).items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
        for name, tensor in values(one.averaged).items():
            if tensor.is_floating_point():
                torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert one.step == steps


def test_a_single_step_weighs_the_new_weights_by_nine_elevenths():
    one = nn.Linear(1, 1, bias=False)
    average = running_average(one, 0.999, lambda: 1)
    before = average.module.weight.clone()
    with torch.no_grad():
        one.weight.add_(11.0)
    average.update_parameters(one)
    torch.testing.assert_close(average.module.weight, before + 9.0)


def test_buffers_are_averaged_and_counts_are_copied():
    one = phase(0.9)
    assert isinstance(one.average, AveragedModel)
    train(one, 20)
    norm, averaged = one.network[1], one.averaged[1]
    assert norm.num_batches_tracked == averaged.num_batches_tracked == 20
    for name in ("running_mean", "running_var"):
        now, mean = getattr(norm, name), getattr(averaged, name)
        initial = torch.zeros(4) if name == "running_mean" else torch.ones(4)
        assert not torch.equal(mean, initial), name  # as it would be if only parameters were averaged
        assert not torch.equal(mean, now), name  # nor is it a copy
    one.adopt_average()
    torch.testing.assert_close(values(one.network), values(one.averaged), rtol=0, atol=0)


def test_the_average_is_a_copy_without_gradient_and_in_eval_mode():
    one = phase(0.9)
    assert one.averaged is one.average.module
    assert not one.averaged.training
    assert one.network.training
    assert not any(parameter.requires_grad for parameter in one.averaged.parameters())
    train(one, 1)
    assert all(parameter.requires_grad for parameter in one.network.parameters())
    known = {id(tensor) for tensor in one.network.state_dict(keep_vars=True).values()}
    assert not known & {id(tensor) for tensor in one.averaged.state_dict(keep_vars=True).values()}


@pytest.mark.parametrize("stop", [1, 7, 39])
@pytest.mark.parametrize("ema", [0.5, 0.999])
def test_a_resumed_average_equals_an_undisturbed_one(stop, ema):
    straight = phase(ema)
    train(straight, 40)
    killed = phase(ema)
    train(killed, stop)
    weights, state = copy.deepcopy(killed.network.state_dict()), copy.deepcopy(killed.state())
    resumed = Phase(network(seed=1), 40, 0.05, 0.0, ema, fused=True)
    resumed.network.load_state_dict(weights)
    resumed.load(state)
    train(resumed, 40)
    for name, tensor in values(straight.averaged).items():
        assert torch.equal(values(resumed.averaged)[name], tensor), name
    for name, tensor in values(straight.network).items():
        assert torch.equal(values(resumed.network)[name], tensor), name


def test_the_state_holds_plain_names_of_the_network():
    """So that checkpoints of version 0.1, whose average was a bare copy, are still read."""
    one = phase(0.9)
    train(one, 3)
    assert set(one.state()["average"]) == set(one.network.state_dict())
    assert phase(0.0).state()["average"] is None
