"""AdamW, learning-rate schedules, clipping; fp32 master weights where parameters are half precision."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from mmrl.ground.require import require
from mmrl.ground.seeds import derive_seed
from mmrl.model.gradients import HALF, collect_in_fp32
from mmrl.model.placement import fill, is_sharded, own_part
from mmrl.model.ranks import Ranks
from mmrl.model.sharding import add_up, norm_of
from mmrl.training.retries import OnNonFinite

OVERFLOW = 1e18
"""AdamW keeps squares of gradients in float32, which ends at 3e38."""


@dataclass(frozen=True)
class Optim:
    """How weights are updated. Defaults are those of EasyR1 and PAPO, but for `decay_all`, which they do."""

    lr: float = 1e-6
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after the warm-up, until the end of the run."""
    warmup: int = 0
    """Optimizer steps over which the learning rate rises from 0."""
    warmup_share: float = 0.0
    """The same as a share of the run, in [0, 1]: int(share * steps) steps; 0 leaves it to `warmup`."""
    schedule_steps: int | None = None
    """Optimizer steps after which the schedule ends; None is the run's length. Longer, for a run that stops early."""
    weight_decay: float = 1e-2
    """Decoupled weight decay; not applied to biases and norms unless `decay_all`."""
    decay_all: bool = False
    """Decay biases and norms too, as EasyR1, PAPO and verl do (one AdamW group over all weights)."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 turns it off."""
    masters: bool = True
    """Keep fp32 copies of bf16 weights (4 bytes each). Without them a step is rounded to bf16 by chance, up or down in
    proportion, so that small steps move the weights on average; moments are bf16 too. Needs torchao."""
    eight_bit: bool = False
    """Keep the two moments in 8 bits each instead of 32, quantised in blocks. Needs torchao."""
    nonfinite: OnNonFinite = "retry"
    """A step whose loss or gradient is not finite: retry (other prompts and draws), skip (no update) or stop."""

    def __post_init__(self) -> None:
        one_warmup = not (self.warmup and self.warmup_share)
        ends = self.schedule_steps is None or self.schedule_steps >= 1
        require(
            self,
            lr=(0 <= self.lr <= 1, "in [0, 1]"),
            warmup=(self.warmup >= 0, "0 or positive"),
            warmup_share=(
                0 <= self.warmup_share <= 1 and one_warmup,
                "in [0, 1], and 0 if warmup is set",
            ),
            schedule_steps=(ends, "at least 1, or None for the length of the run"),
            weight_decay=(0 <= self.weight_decay <= 1, "in [0, 1]"),
            beta1=(0 <= self.beta1 < 1, "in [0, 1)"),
            beta2=(0 <= self.beta2 < 1, "in [0, 1)"),
            max_grad_norm=(self.max_grad_norm >= 0, "0 (off) or positive"),
            nonfinite=(self.nonfinite in get_args(OnNonFinite), "'retry', 'skip' or 'stop'"),
        )

    def factor(self, step: int, steps: int) -> float:
        """Share of the peak learning rate at optimizer step `step` (from 0) of `steps`."""
        steps = self.schedule_steps or steps
        warmup = self.warmup or int(self.warmup_share * steps)
        if step < warmup:
            return (step + 1) / warmup  # step 0 learns already
        after_warmup = max(1, steps - warmup)
        done = min(1.0, (step - warmup) / after_warmup)
        if self.schedule == "linear":
            return 1.0 - done
        if self.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        return 1.0

    def when_extended(self, done: int, before: int, now: int) -> str:
        """What a run of `before` optimizer steps does with its learning rate if it has `now`, in a sentence.

        `done`: optimizer steps that were taken as a run of `before` steps takes them.
        """
        was, new = self.factor(max(0, done - 1), before), self.factor(done, now)
        follows = any(self.factor(k, before) != self.factor(k, now) for k in range(before))
        if not follows:
            return "Its learning rate does not depend on the length of the run."
        kind = f"{self.schedule} schedule" if self.schedule != "constant" else "warm-up"
        return (
            f"Its {kind} is from here on that of {now} optimizer steps: the learning rate was {self.lr * was:.3g} and "
            f"goes on at {self.lr * new:.3g}. The {done} steps before had the schedule of {before}, so it is not the "
            "run that would have been planned so."
        )


class Optimizer:
    """One AdamW over the policy's trainable parameters, which may be shards of `ranks`' processes or copies on each.

    Raises ValueError if nothing is trained, and for rounding by chance of shards.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, nn.Parameter]],
        settings: Optim,
        ranks: Ranks | None = None,
    ) -> None:
        if not named:
            raise ValueError(
                "Every parameter is frozen, so there is nothing to train; freeze fewer parts."
            )
        self.settings = settings
        self.ranks = ranks or Ranks.alone()
        self.steps = 0
        """Optimizer steps taken."""
        self.parameters = [p for _, p in named]
        if not settings.masters and any(map(is_sharded, self.parameters)):
            raise ValueError(
                "--optim.masters False rounds bf16 weights by chance, but the shards of a model on several devices are "
                "fp32 and each device has its part of them only; leave --optim.masters on, or use --load.shard off."
            )
        collect_in_fp32(p for p in self.parameters if not is_sharded(p))
        self._masters = [_master(p) if settings.masters else p for p in self.parameters]
        self._adam = _adamw(_grouped(self._masters, settings), settings)

    @property
    def largest_norm(self) -> float:
        """Norms from here on spoil the optimizer's moments; scaled down, every finite one is fine."""
        return math.inf if self.settings.max_grad_norm else OVERFLOW

    def gradient_norm(self) -> float:
        """Norm of all gradients; scales them to `max_grad_norm` if they are larger. NaN if any is not finite."""
        limit = self.settings.max_grad_norm or math.inf
        if self.ranks.several:
            return self._common_norm(limit)
        # Plain kernels in the order of the parameters; left to itself, torch chooses by device.
        norm = nn.utils.clip_grad_norm_(self.parameters, limit, foreach=False)
        return float(norm)

    def collect(self) -> None:
        """Add up over all processes what each has collected by itself, after the last backward of an update."""
        add_up(self.parameters, self.ranks)

    def norm(self) -> float:
        """Norm of all gradients together as they are; 0 if there is none."""
        return norm_of(self.parameters, self.ranks)

    def _common_norm(self, limit: float) -> float:
        """As `gradient_norm`, of all processes."""
        norm = self.norm()
        scale = min(1.0, limit / (norm + 1e-6))  # as torch's own clipping does it
        if scale < 1.0:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    own_part(parameter.grad).mul_(scale)
        return norm

    def step(self, planned: int) -> float:
        """Update the weights and clear the gradients; returns the learning rate. `planned` steps end the schedule."""
        factor = self.settings.factor(self.steps, planned)
        lr = self.settings.lr * factor
        for group in self._adam.param_groups:
            if isinstance(
                group["lr"], torch.Tensor
            ):  # torchao compiles the step and reads it from a tensor
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        for master, parameter in self._copies():
            master.grad = parameter.grad  # fp32 as the master is, and the same memory
        with self._own_draws():
            self._adam.step()
        for master, parameter in self._copies():
            parameter.data.copy_(
                master
            )  # rounded to half precision; the master keeps what was lost
            master.grad = None
        self.clear()
        self.steps += 1
        return lr

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def bytes_to_come(self) -> int:
        """Bytes of gradients and moments that are not there yet, while nothing is being learnt."""
        parameters = [own_part(p) for p in self.parameters]
        gradients = sum(max(4, p.element_size()) * p.numel() for p in parameters)
        if self._adam.state:  # after a step, or in a run that goes on
            return gradients
        each = [moment_bytes(self.settings, p.element_size()) * p.numel() for p in parameters]
        return gradients + int(sum(each))

    def state(self) -> dict[str, Any]:
        """Tensors and numbers for a checkpoint."""
        return {
            "adam": self._adam.state_dict(),
            "steps": self.steps,
            "masters": [master for master, _ in self._copies()],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned; parameters must have been restored before."""
        self._adam.load_state_dict(state["adam"])
        self.steps = state["steps"]
        # Masters hold bits that the half-precision weights have lost: they cannot be made from the weights.
        for (master, _), saved in zip(self._copies(), state["masters"], strict=True):
            master.data.copy_(saved)

    def kept(self, place: int, *, fresh: bool = False) -> dict[str, torch.Tensor]:
        """Of the n-th parameter: its "weight" at its most precise, and what AdamW keeps of it; to read or to fill.

        `fresh`: zeros for what it keeps only after its first step.
        """
        master = self._masters[place]
        state = self._adam.state[master]
        if fresh and not state:
            # As torch's AdamW begins it.
            state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(master, memory_format=torch.preserve_format)
        return {"weight": master, **state}

    def forget(self, place: int) -> None:
        """Keep nothing of the n-th parameter but its weight, as before its first step."""
        self._adam.state.pop(self._masters[place], None)

    def restored(self, steps: int) -> None:
        """After what is `kept` was filled: the half-precision weights are those of their masters, `steps` were done."""
        self.steps = steps
        for master, parameter in self._copies():
            parameter.data.copy_(master)

    def load_whole(self, state: dict[str, Any], weights: Sequence[torch.Tensor]) -> None:
        """As `load`, of a state that one process wrote, into parameters of which this process may have a part only.

        `weights`: those that were stored with it, which are whole, in the order of the parameters.
        """
        if not any(map(is_sharded, self.parameters)):
            self.load(state)
            return
        masters = iter(state["masters"])
        for place, weight in enumerate(weights):
            precise = next(masters) if weight.dtype in HALF else weight
            fill(self._masters[place], precise)
        # One process numbers the weights that decay first, then the others.
        least = 0 if self.settings.decay_all else 2
        order = sorted(range(len(weights)), key=lambda place: weights[place].ndim < least)
        for number, place in enumerate(order):
            moments = state["adam"]["state"].get(number)
            if moments is None:
                continue
            for name, value in self.kept(place, fresh=True).items():
                if name != "weight":
                    fill(value, moments[name])
        self.restored(state["steps"])

    @contextmanager
    def _own_draws(self) -> Iterator[None]:
        """Rounding by chance depends on the step alone, so that a resumed run rounds as the whole one does."""
        if self.settings.masters:
            yield
            return
        devices = {p.device for p in self.parameters if p.device.type == "cuda"}
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(derive_seed("rounding", self.steps))
            yield

    def _copies(self) -> list[tuple[torch.Tensor, nn.Parameter]]:
        """(fp32 master, half-precision parameter) of the parameters that have a copy."""
        pairs = zip(self._masters, self.parameters, strict=True)
        return [(master, parameter) for master, parameter in pairs if master is not parameter]


def _grouped(weights: Sequence[torch.Tensor], settings: Optim) -> list[dict[str, Any]]:
    """Groups of AdamW: with and without decay, shards apart from whole weights, which one kernel cannot step."""
    # Biases and norms have one dimension; decay would pull them to 0 for no good.
    least = 0 if settings.decay_all else 2
    groups: list[dict[str, Any]] = []
    for sharded in (False, True):
        some = [weight for weight in weights if is_sharded(weight) == sharded]
        decayed = [weight for weight in some if weight.ndim >= least]
        plain = [weight for weight in some if weight.ndim < least]
        groups.append({"params": decayed, "weight_decay": settings.weight_decay})
        groups.append({"params": plain, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]  # AdamW refuses an empty one


def _adamw(groups: list[dict[str, Any]], settings: Optim) -> torch.optim.Optimizer:
    """The AdamW that keeps its state as the settings say: torch's fused one, or one of torchao's."""
    common: dict[str, Any] = {
        "lr": settings.lr,
        "betas": (settings.beta1, settings.beta2),
    }
    if settings.masters and not settings.eight_bit:
        return torch.optim.AdamW(groups, fused=True, **common)
    try:
        from torchao.optim import AdamW8bit, _AdamW
    except ImportError as error:
        asked = "eight_bit" if settings.eight_bit else "masters=False"
        raise ValueError(
            f"Optim.{asked} needs torchao, which is not installed: pip install 'mmrl[torchao]'."
        ) from error
    kind = AdamW8bit if settings.eight_bit else _AdamW
    return kind(groups, bf16_stochastic_round=not settings.masters, **common)


def _master(parameter: nn.Parameter) -> torch.Tensor:
    """The tensor that AdamW updates: an fp32 copy of half precision, else the parameter itself."""
    return parameter.detach().float() if parameter.dtype in HALF else parameter


def moment_bytes(optim: Optim, itemsize: int) -> float:
    """Bytes of both moments per trained weight."""
    if optim.eight_bit:
        return 2 * (1 + 4 / 256)  # a float32 scale per block of 256
    if not optim.masters:
        return 2.0 * itemsize  # in the format of the weights
    return 2.0 * max(4, itemsize)
