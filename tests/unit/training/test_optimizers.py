"""The optimisers compute what their libraries' do, and leave those as they are."""

import copy

import pytest
import torch
from consistency.training.optimizers import light, make_optimizer
from lion_pytorch import Lion

THEIRS = {
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1, fused=True),
    "radam": lambda weights: torch.optim.RAdam(weights, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "lion": lambda weights: Lion(weights, lr=0.01, weight_decay=0.1),
}


def trained(make):
    """The weights after ten steps, between which the state is saved and loaded into another optimiser."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in ((7, 5), (33,))]
    optimizer = make(weights)
    for step in range(10):
        if step == 5:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = make(weights)
            optimizer.load_state_dict(state)
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer.step()
    assert all(weight.requires_grad for weight in weights)
    return torch.cat([weight.detach().flatten() for weight in weights])


@pytest.mark.parametrize("name", THEIRS)
def test_the_weights_are_those_of_the_librarys_own_bit_for_bit(name):
    mine, theirs = trained(lambda weights: make_optimizer(name, weights, 0.01, 0.1)), trained(THEIRS[name])
    assert torch.equal(mine, theirs), f"{name}: differs by up to {(mine - theirs).abs().max():.3g}"


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.RAdam, Lion])
def test_the_library_is_not_changed(optimizer):
    """Also after a step, with which torch wraps an optimiser's `step` once more."""
    before = {name: getattr(optimizer, name) for name in ("add_param_group", "load_state_dict", "state_dict", "step")}
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    mine = light(optimizer)([weight], lr=0.1)
    mine.step()
    assert weight.tolist() != [1, 1]
    assert isinstance(mine, optimizer)
    assert {name: getattr(optimizer, name) for name in before} == before
