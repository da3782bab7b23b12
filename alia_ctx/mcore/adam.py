"""AdamW that keeps its step count per parameter group.

Megatron's distributed checkpoints store optimizer state tensor by tensor in the shape
of the parameter, and `step` per group, as TransformerEngine's and Apex's FusedAdam do.
torch's own AdamW keeps a `step` tensor per parameter, which a `fully_reshardable`
checkpoint cannot load. So this one stands in for it on CPU and GPU, and for theirs where
they are installed: one optimizer everywhere, whatever else a machine has. The update is
that of Loshchilov and Hutter (arXiv 1711.05101), computed in the dtype of the parameters
with `torch._foreach` kernels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from megatron.core import optimizer as megatron_optimizer
from megatron.core.optimizer import distrib_optimizer


class GroupStepAdamW(torch.optim.Optimizer):
    """AdamW; state per parameter: `exp_avg`, `exp_avg_sq`; per group: `step`."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **ignored: Any,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "step": 0,
            },
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] += 1
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(group, params)

    def _update(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        first, second = self._moments(params)
        grads: list[Any] = [p.grad for p in params]
        beta1, beta2 = group["betas"]
        step, rate = group["step"], group["lr"]
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - rate * group["weight_decay"])
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        scale = torch._foreach_sqrt(second)
        torch._foreach_div_(scale, (1 - beta2**step) ** 0.5)
        torch._foreach_add_(scale, group["eps"])
        torch._foreach_addcdiv_(params, first, scale, -rate / (1 - beta1**step))

    def _moments(
        self, params: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        for p in params:
            state = self.state[p]
            if not state:
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)
        return [self.state[p]["exp_avg"] for p in params], [
            self.state[p]["exp_avg_sq"] for p in params
        ]


def use_group_step_adam() -> None:
    """Give Megatron this AdamW in the place of the one that it picked."""
    # Upstream picks its Adam at import: TransformerEngine's, Apex's, or torch's for a last
    # resort, whose state a `fully_reshardable` checkpoint cannot load
    # (megatron/core/optimizer/__init__.py). The flags say that the one in place keeps
    # `step` per group, and is neither of the others
    # (megatron/core/optimizer/distrib_optimizer.py asks).
    megatron_optimizer.Adam = GroupStepAdamW
    megatron_optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.HAVE_APEX_OR_TE = True
    distrib_optimizer.USING_TE_OPTIMIZER = False
    distrib_optimizer.USING_APEX_OPTIMIZER = False
