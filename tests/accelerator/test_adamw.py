"""AdamW is torch's, with the state layout of Transformer Engine's FusedAdam."""

from __future__ import annotations

import pytest
import torch
from megatron.core import optimizer as megatron_optimizer
from torch import Tensor

from megatron_soaes.accelerator.adamw import AdamW
from megatron_soaes.accelerator.device import this_device

SHAPES = [(4, 3), (7,), (1,)]


def parameters(seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in SHAPES]


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(*shape, generator=generator) for shape in SHAPES]


def make(params: list[torch.nn.Parameter], weight_decay: float = 0.1, lr: float = 0.02) -> AdamW:
    return AdamW(
        params, lr=lr, weight_decay=weight_decay, betas=(0.8, 0.95), eps=1e-6, adam_w_mode=True
    )


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_it_is_torchs_adamw(weight_decay: float) -> None:
    ours, theirs = parameters(), parameters()
    optimizer = make(ours, weight_decay)
    reference = torch.optim.AdamW(
        theirs, lr=0.02, weight_decay=weight_decay, betas=(0.8, 0.95), eps=1e-6
    )
    for step in range(6):
        for group in (*optimizer.param_groups, *reference.param_groups):
            group["lr"] = 0.02 / (step + 1)
        for one, two, gradient in zip(ours, theirs, gradients(step), strict=True):
            one.grad, two.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
        for one, two in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)
    assert not torch.equal(ours[0], parameters()[0])


def test_weight_decay_does_something() -> None:
    found = []
    for weight_decay in (0.0, 0.1):
        params = parameters()
        optimizer = make(params, weight_decay)
        for parameter, gradient in zip(params, gradients(0), strict=True):
            parameter.grad = gradient
        optimizer.step()
        found.append(params[0].detach())
    torch.testing.assert_close(found[0] - found[1], 0.02 * 0.1 * parameters()[0].detach())


def test_moments_belong_to_parameters_and_steps_to_groups() -> None:
    params = parameters()
    optimizer = make(params)
    for step in range(3):
        for parameter, gradient in zip(params, gradients(step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    (group,) = optimizer.param_groups
    assert group["step"] == 3
    for parameter in params:
        state = optimizer.state[parameter]
        assert state.keys() == {"exp_avg", "exp_avg_sq"}
        assert all(moment.shape == parameter.shape for moment in state.values())


def test_a_parameter_without_gradient_is_left_alone() -> None:
    params = parameters()
    before = [parameter.detach().clone() for parameter in params]
    optimizer = make(params)
    params[0].grad = gradients(0)[0]
    optimizer.step()
    assert not torch.equal(params[0], before[0])
    assert torch.equal(params[1], before[1])
    assert params[1] not in optimizer.state


def test_a_saved_state_goes_on_as_it_was() -> None:
    def do(optimizer: AdamW, params: list[torch.nn.Parameter], steps: range) -> None:
        for step in steps:
            for parameter, gradient in zip(params, gradients(step), strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()

    straight, interrupted = parameters(), parameters()
    do(make(straight), straight, range(6))
    first = make(interrupted)
    do(first, interrupted, range(3))
    second = make(interrupted)
    second.load_state_dict(first.state_dict())
    do(second, interrupted, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight, interrupted, strict=True))


def test_what_it_does_not_do_is_refused() -> None:
    with pytest.raises(ValueError, match="decoupled"):
        AdamW(
            parameters(), lr=0.1, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-8, adam_w_mode=False
        )
    with pytest.raises(ValueError, match="closures"):
        make(parameters()).step(lambda: 0.0)


def test_megatron_core_takes_it_where_nothing_faster_is_installed() -> None:
    this_device()
    assert megatron_optimizer.Adam is AdamW
