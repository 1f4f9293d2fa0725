"""The embedded model: a tiny Qwen-VL that has seen enough to learn more.

`warm_model()` builds a tiny model and teaches it, supervised and with our own trainer, to describe drawn pictures of
four cells and to look up a cell, or to narrate drawn clips and to say when something is shown. Most look-up targets say
the shape before the colour and most spans name their end first, while the reward asks for the other order: so the
policy sees well enough, answers mostly the wrong way round, and reinforcement learning has something to find out within
a hundred steps. What it finds out is mainly a convention; its eyesight improves slowly.
The result is kept in the user's cache under a key of everything it depends on, and made again when any of it changes.
It takes a minute for pictures and three for clips, once.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from mmrl.data.drawn import drawn, scenes
from mmrl.data.grounding.time_encodings import EncodingName, TimeEncoded
from mmrl.grpo import GRPO
from mmrl.losses.surrogates import reinforce
from mmrl.model import tiny
from mmrl.model.policy import Policy
from mmrl.rewards.pay import Rewards, in_process
from mmrl.rollouts.groups import LabelRollout
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.trainer import Trainer
from mmrl.types import Prompts, Rollout, Sampling


@dataclass(frozen=True)
class WarmUp:
    """Supervised warm-up of the embedded model."""

    family: Literal["qwen2_5_vl", "qwen3_vl"] = "qwen2_5_vl"
    task: drawn.Task = "lookup"
    cells: int = 2
    """Rows and columns of a picture."""
    size_px: int = 32
    """Side of a picture in pixels."""
    frames: int = 12
    """Frames of a clip, two per second."""
    telling: EncodingName = "native"
    """How the times of a clip are told."""
    steps: int = 200
    batch: int = 48
    lr: float = 2e-3
    swapped: float = 0.6
    """Share of look-up targets with the shape before the colour, or of spans with the end before the start."""
    noise: float = 0.0
    """Share of look-up targets replaced by a random colour and shape."""
    describe_share: float = 0.5
    """Share of dense descriptions."""
    seed: int = 0


def warm_model(settings: WarmUp = WarmUp()) -> Path:
    """Folder of the warmed-up model, from the cache if it is there."""
    start = tiny.cached(settings.family, corpus=drawn.tokenizer_texts())
    sources = [Path(module.__file__ or "").read_bytes() for module in (drawn, scenes)] + [
        Path(__file__).read_bytes()
    ]
    key = hashlib.blake2b(
        repr((start.name, settings, sources)).encode(), digest_size=8
    ).hexdigest()
    target = tiny.cache_folder() / "warm" / f"{settings.task}-{key}"
    if not target.is_dir():
        print("Warming up the tiny model (once; kept in the cache) …", file=sys.stderr)
    numbers = {
        "steps": settings.steps,
        "batch": settings.batch,
        "lr": settings.lr,
        "seed": settings.seed,
    }
    return tiny.publish(
        target, lambda place: supervised(start, lambda _: _lessons(settings), place, **numbers)
    )


def supervised(
    start: Path,
    lessons: Callable[[Run], Prompts],
    place: Path,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
) -> None:
    """Teach a model the targets of lessons (`extra["target"]`) with our own trainer, and save it in `place`."""
    policy = Policy.load(start, device="cpu", dtype="float32")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "warm"
        run = Run(
            output=folder,
            seed=seed,
            steps=steps,
            prompts_per_step=batch,
            save_every=0,
            sample_every=0,
        )
        Trainer(
            policy,
            prompts=lessons(run),
            rewards=Rewards(taught=taught),
            rollout=LabelRollout(
                policy.processing.encode_answer, lambda prompt: policy.encode(prompt).ids
            ),
            estimator=likelihood,
            surrogate=reinforce,
            grpo=GRPO(reduction="sequence"),
            sampling=Sampling(group_size=1),
            optim=Optim(lr=lr, weight_decay=0.0, warmup=20, schedule="cosine"),
            run=run,
        ).fit()
    policy.save(place)


@in_process
def taught(rollout: Rollout) -> float:
    """Every target is taken as it is; the estimator does not look at rewards."""
    return 1.0


def likelihood(reward: torch.Tensor, group: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Advantage 1 for every token: supervised fine-tuning as policy gradient."""
    return torch.ones_like(reward)


def _lessons(settings: WarmUp) -> Prompts:
    """Look-ups mixed with dense descriptions, or clips with dense narrations."""
    picture = {
        "cells": settings.cells,
        "size_px": settings.size_px,
        "swapped": settings.swapped,
    }
    clip = {"frames": settings.frames, "swapped": settings.swapped}
    options = picture if settings.task == "lookup" else clip
    mixed = drawn.warmup(
        settings.seed, settings.noise, settings.describe_share, task=settings.task, **options
    )
    return (
        mixed
        if settings.task == "lookup"
        else TimeEncoded(mixed, settings.telling, spans=False)
    )
