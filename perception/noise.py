"""Views that add nuisance: Gaussian noise (VOGUE) and variance-preserving diffusion noise (NoisyRollout, DVRP).

Gaussian: x + sigma * e on pixels in [0, 1], clipped, truncated to uint8.

Diffusion (table of NoisyRollout and Visual Contrastive Decoding): beta_k = sigmoid(linspace(-6, 6, 1000)) *
(5e-3 - 1e-5) + 1e-5, abar = cumprod(1 - beta); the view shows sqrt(abar_t) x + sqrt(1 - abar_t) e on pixels in [0, 1],
clipped, truncated to uint8. The standard deviation sqrt(1 - abar_t) is 0.058, 0.110, 0.194, 0.327, 0.413, 0.505 at
t = 100, 200, 300, 400, 450, 500.

Annealing: t(progress) = floor(t * anneal(progress)). With `Sigmoid(1, steepness, middle)` the factor is
sigmoid(steepness * (middle - progress)), which is DVRP's rule at steepness 10 and middle 0.5, and NoisyRollout's
floor(a0 (1 - sigmoid(l (s - g) / s_max))) at steepness l and middle g / s_max, with progress = s / s_max.

Departures:
1. t = 0 shows the pixels unchanged; the table's first entry would still add noise of 0.3 % (our choice, so that a
   strength of zero is exactly no view).
2. Timesteps are rounded down for DVRP as for NoisyRollout (DVRP's rounding is not known).
3. One noise per frame of a clip; the published methods treat images.
4. VOGUE's released code multiplies sigma by a strength of 1; its other perturbations are in `mmrl.perception.perturb`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.losses.schedules import Linear, Sigmoid
from mmrl.perception.pixels import checked
from mmrl.types import Now, View, ViewContext

STEPS = 1000
"""Length of the diffusion table."""


@dataclass(frozen=True)
class GaussianNoise(View):
    """Add independent Gaussian noise to every channel of every pixel."""

    sigma: float = 0.4
    """Standard deviation on pixels in [0, 1]; 0.4 in VOGUE's paper, 0.2 in its scripts."""
    anneal: Linear | None = None
    """Factor on sigma over the run; None keeps it."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = False
    runs_ahead: ClassVar[bool] = True

    def __post_init__(self) -> None:
        fits = self.sigma >= 0.0 and math.isfinite(self.sigma)
        require(self, sigma=(fits, "0 (no noise) or positive"))

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        checked(frames, "GaussianNoise")
        sigma = self.strength(now)
        return _mixed(frames, 1.0, sigma, rng) if sigma > 0 else frames

    def strength(self, now: Now) -> float:
        """The standard deviation at this time, at least 0."""
        return self.sigma * _factor(self.anneal, now)


@dataclass(frozen=True)
class DiffusionNoise(View):
    """Noise as after t steps of a variance-preserving diffusion."""

    t: int = 500
    """First timestep, 0 (no noise) to 999. DVRP: 500, medical 100. NoisyRollout: 500, K12 and 32B 450."""
    anneal: Sigmoid | None = Sigmoid(start=1.0, steepness=10.0, middle=0.5)  # noqa: RUF009 (frozen)
    """Factor on t over the run; None keeps t."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = False
    runs_ahead: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self, t=(0 <= self.t < STEPS, f"one of the timesteps 0 to {STEPS - 1}"))
        if self.anneal is not None and self.anneal.start > 1.0:
            raise ValueError(
                f"DiffusionNoise.anneal.start is {self.anneal.start}; it multiplies t and may not exceed 1. "
                "Raise t instead."
            )

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        checked(frames, "DiffusionNoise")
        step = self.timestep(now)
        kept, added = diffusion_scales(step)
        return _mixed(frames, kept, added, rng) if step > 0 else frames

    def strength(self, now: Now) -> float:
        """The standard deviation of the noise at this time."""
        return diffusion_scales(self.timestep(now))[1]

    def timestep(self, now: Now) -> int:
        """The timestep at this time, 0 to t."""
        return math.floor(self.t * _factor(self.anneal, now))


def _factor(anneal: Linear | Sigmoid | None, now: Now) -> float:
    """The annealing at this time, at least 0: a line may run below."""
    return 1.0 if anneal is None else max(anneal(now.progress), 0.0)


def diffusion_scales(t: int) -> tuple[float, float]:
    """Factors of picture and noise, (sqrt(abar_t), sqrt(1 - abar_t)); exactly (1, 0) at t = 0."""
    if t == 0:
        return 1.0, 0.0
    abar = _abar()[t]
    return math.sqrt(abar), math.sqrt(1.0 - abar)


@cache
def _abar() -> tuple[float, ...]:
    """The cumulative products abar_0 ... abar_999."""
    # In float64: a product of a thousand factors near 1.
    rise = torch.sigmoid(torch.linspace(-6.0, 6.0, STEPS, dtype=torch.float64))
    betas = rise * (5e-3 - 1e-5) + 1e-5
    return tuple(torch.cumprod(1.0 - betas, 0).tolist())


def _mixed(frames: Tensor, kept: float, added: float, rng: torch.Generator) -> Tensor:
    """kept * x + added * 255 * e in units of grey levels, clipped and truncated to uint8."""
    # Drawn where the generator lives and moved after, so that every device sees the same noise.
    noise = torch.randn(frames.shape, generator=rng, device=rng.device).to(frames.device)
    mixed = frames.float() * kept + noise * (added * 255.0)
    return mixed.clamp(0.0, 255.0).to(torch.uint8)  # truncated, not rounded, as in the code
