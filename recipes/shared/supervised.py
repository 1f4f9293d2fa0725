"""Supervised fine-tuning with the same trainer: the label is the only answer, every token of it has advantage 1.

Written as REINFORCE, so the loss is the mean negative log-likelihood of the labels. `published` keeps a model that was
made this way in the user's cache, under a key of everything it depends on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from mmrl.ground.printable import tell
from mmrl.ground.scratch import temporary_folder
from mmrl.ground.stopping import stop_if_asked
from mmrl.grpo import GRPO
from mmrl.losses.surrogates import reinforce
from mmrl.model import tiny
from mmrl.model.policy import Policy
from mmrl.model.ranks import Ranks
from mmrl.recipes.shared.tool_labels import ToolLabels
from mmrl.rewards.pay import Rewards, in_process
from mmrl.rollouts.groups import LabelRollout
from mmrl.training.dry import is_dry
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.trainer import Trainer
from mmrl.types import Prompt, Prompts, Rollout, Sampling


class Lesson(Protocol):
    """Numbers of a supervised warm-up."""

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        ...

    @property
    def batch(self) -> int:
        """Labels per step."""
        ...

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        ...

    @property
    def seed(self) -> int:
        """Seed of the run."""
        ...


def likelihood(reward: torch.Tensor, group: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Advantage 1 for every token: supervised fine-tuning as policy gradient."""
    return torch.ones_like(reward)


def label_rollout(policy: Policy) -> LabelRollout:
    """Each prompt's label (`extra["target"]`, else its answer; or `extra["turns"]`, with tools) as its only answer."""

    def prompt_tokens(prompt: Prompt) -> Any:
        return policy.encode(prompt).ids

    processing = policy.processing
    return ToolLabels(processing.encode_answer, prompt_tokens, processing=processing)


@in_process
def unpaid(rollout: Rollout) -> float:
    """Labels are not compared, so all are worth the same; `likelihood` does not look at rewards."""
    return 1.0


def supervised(
    start: Path, lessons: Callable[[Run], Prompts], place: Path, numbers: Lesson
) -> None:
    """Train a model on the labels of lessons (`extra["target"]`) with our own trainer, and save it in `place`."""
    # In float32 on the CPU, so that the model under a key is the same wherever it is made.
    policy = Policy.load(start, device="cpu", dtype="float32")
    with temporary_folder("warm") as scratch:
        run = Run(
            output=scratch / "warm",
            seed=numbers.seed,
            steps=numbers.steps,
            prompts_per_step=numbers.batch,
            save_every=0,
            sample_every=0,
        )
        Trainer(
            policy,
            prompts=lessons(run),
            rewards=Rewards(unpaid=unpaid),
            rollout=label_rollout(policy),
            estimator=likelihood,
            surrogate=reinforce,
            grpo=GRPO(reduction="sequence"),
            sampling=Sampling(group_size=1),
            optim=Optim(lr=numbers.lr, weight_decay=0.0, warmup=20, schedule="cosine"),
            run=run,
            # Made once for all who find it in the cache; of several processes the others wait for it.
            ranks=Ranks.alone(),
        ).fit()
    stop_if_asked()
    policy.save(place)


def published(
    name: str,
    start: Path,
    lessons: Callable[[Run], Prompts],
    numbers: Lesson,
    depends_on: Sequence[object],
) -> Path:
    """Folder of the model that learned the lessons, from the cache if it is there, else made once.

    The key holds the starting model, the numbers and what else it depends on: source text counts, so a changed lesson
    never meets an old model.
    """
    key = repr((start.name, numbers, *depends_on)).encode()
    target = (
        tiny.cache_folder()
        / "warm"
        / f"{name}-{hashlib.blake2b(key, digest_size=8).hexdigest()}"
    )
    # Who only looks at rows needs the processor, which the start has.
    if is_dry():
        return start
    # Of several processes the first makes it, the others find it.
    with Ranks.here().first_before_others():
        if not target.is_dir():
            tell(f"Warming up the tiny model for {name} (once; kept in the cache) …")
        return tiny.publish(target, lambda place: supervised(start, lessons, place, numbers))
