"""AdamW, learning-rate schedules, clipping; fp32 master weights where parameters are half precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Optim:
    """How weights are updated. Defaults are those of EasyR1 and PAPO."""

    lr: float = 1e-6
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after the warm-up, until the end of the run."""
    warmup: int = 0
    """Optimizer steps over which the learning rate rises from 0."""
    weight_decay: float = 1e-2
    """Decoupled weight decay; not applied to biases and norms."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 turns it off."""

    def __post_init__(self) -> None:
        allowed = {
            "lr": (self.lr >= 0, "0 or positive"),
            "warmup": (self.warmup >= 0, "0 or positive"),
            "weight_decay": (self.weight_decay >= 0, "0 or positive"),
            "beta1": (0 <= self.beta1 < 1, "in [0, 1)"),
            "beta2": (0 <= self.beta2 < 1, "in [0, 1)"),
            "max_grad_norm": (self.max_grad_norm >= 0, "0 (off) or positive"),
        }
        for name, (fine, rule) in allowed.items():
            if not fine:
                raise ValueError(f"Optim.{name} is {getattr(self, name)}; it must be {rule}.")

    def factor(self, step: int, steps: int) -> float:
        """Share of the peak learning rate at optimizer step `step` (from 0) of `steps`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, steps - self.warmup))
        if self.schedule == "linear":
            return 1.0 - done
        if self.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        return 1.0


class Optimizer:
    """One AdamW over the policy's trainable parameters."""

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], settings: Optim) -> None:
        if not named:
            raise ValueError(
                "Every parameter is frozen, so there is nothing to train; freeze fewer parts."
            )
        self.settings = settings
        self.steps = 0
        """Optimizer steps taken."""
        self.parameters = [p for _, p in named]
        self._masters = [
            p.detach().float() if p.dtype in (torch.float16, torch.bfloat16) else p
            for p in self.parameters
        ]
        plain = [m for m, p in zip(self._masters, self.parameters, strict=True) if p.ndim < 2]
        decayed = [
            m for m, p in zip(self._masters, self.parameters, strict=True) if p.ndim >= 2
        ]
        groups = [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self._adam = torch.optim.AdamW(
            [g for g in groups if g["params"]],
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            fused=True,
        )

    def gradient_norm(self) -> float:
        """Norm of all gradients; scales them to `max_grad_norm` if they are larger. NaN if any is not finite."""
        limit = self.settings.max_grad_norm or math.inf
        return float(nn.utils.clip_grad_norm_(self.parameters, limit, foreach=False))

    def step(self, planned: int) -> float:
        """Update the weights and clear the gradients; returns the learning rate. `planned` steps end the schedule."""
        lr = self.settings.lr * self.settings.factor(self.steps, planned)
        for group in self._adam.param_groups:
            group["lr"] = lr
        for master, parameter in zip(self._masters, self.parameters, strict=True):
            if master is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.float()
        self._adam.step()
        for master, parameter in zip(self._masters, self.parameters, strict=True):
            if master is not parameter:
                parameter.data.copy_(master)
                master.grad = None
        self.clear()
        self.steps += 1
        return lr

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def state(self) -> dict[str, Any]:
        """Tensors and numbers for a checkpoint."""
        own = [m for m, p in zip(self._masters, self.parameters, strict=True) if m is not p]
        return {"adam": self._adam.state_dict(), "steps": self.steps, "masters": own}

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned; parameters must have been restored before."""
        self._adam.load_state_dict(state["adam"])
        self.steps = state["steps"]
        saved = iter(state["masters"])
        for master, parameter in zip(self._masters, self.parameters, strict=True):
            if master is not parameter:
                master.data.copy_(next(saved))
