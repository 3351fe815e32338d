"""AdamW on torch's fused kernel, with the state layout of Transformer Engine's FusedAdam."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch


class AdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 1711.05101) with an integer `step` in each parameter group.

    State per parameter: `exp_avg` and `exp_avg_sq`, shape and dtype of the parameter. Parameters
    without a gradient are left alone.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        adam_w_mode: bool,
    ) -> None:
        if not adam_w_mode:
            raise ValueError("only decoupled weight decay is supported")
        super().__init__(
            params, {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("closures are not supported")
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            group["step"] = group.get("step", 0) + 1
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p] = {
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.zeros_like(p),
                    }
            step = torch.tensor(float(group["step"]), dtype=torch.float32)
            torch._fused_adamw_(
                params,
                [p.grad for p in params],
                [self.state[p]["exp_avg"] for p in params],
                [self.state[p]["exp_avg_sq"] for p in params],
                [],
                [step] * len(params),
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )


@functools.cache
def install() -> None:
    """Give Megatron-Core this AdamW where it would take `torch.optim.AdamW`.

    With torch's AdamW the distributed optimizer of 0.16.1 cannot save a fresh state (its state dict
    asserts one `step`), fails to load (`KeyError: 'step'`), and after a load shares one `step`
    tensor among all parameters. This one keeps `step` in the parameter group as Transformer
    Engine's FusedAdam does, so the core's own path for that layout runs, and checkpoints look the
    same with and without Transformer Engine. Where that or apex is installed nothing is changed.
    """
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    if not optimizer.USING_PYTORCH_OPTIMIZER:
        return
    optimizer.Adam = AdamW
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.Adam = AdamW
    distrib_optimizer.USING_APEX_OPTIMIZER = True
    distrib_optimizer.HAVE_APEX_OR_TE = True
