"""The embedded model of the pretext recipes: a tiny Qwen-VL that has seen some puzzles, and answers unsurely.

`warm_puzzles()` builds a tiny model whose tokenizer knows the words of the miniature mix, and teaches it, supervised
and with our own trainer, to answer. A share `noise` of the targets is a random well-formed answer: so the policy sees a
part of what there is to see but spreads its answers. Most intervals are taught the wrong way round, the end before the
start. So reinforcement learning has something to sharpen and a convention to find out.
The result is kept in the user's cache under a key of what it depends on. It takes some minutes, once.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.pretext.catalogue import find
from data.pretext.rng import generator
from data.pretext_prompts import pretext_reward
from mmrl import tiny
from mmrl.grpo import GRPO
from mmrl.optim import Optim
from mmrl.policy import Policy
from mmrl.rewards import Rewards
from mmrl.rollout import LabelRollout
from mmrl.run import Run
from mmrl.surrogates import reinforce
from mmrl.trainer import Trainer
from mmrl.types import Prompt, Prompts, Sampling
from recipes.embedded import likelihood
from recipes.launch import EMBEDDED
from recipes.puzzles import MINIATURE, MINIATURES, Puzzles, bare, open_puzzles, smaller

SIZE = tiny.TinySize(merges=1200)
"""One token per word of the questions."""
INTERVALS = ("anomaly-grounding", "needle-clip")
TINY = Puzzles("miniature", **MINIATURE)


@dataclass(frozen=True)
class PuzzleWarmUp:
    """Supervised warm-up on pretext tasks."""

    puzzles: Puzzles = TINY
    steps: int = 160
    batch: int = 48
    lr: float = 2e-3
    noise: float = 0.3
    """Share of targets that are random well-formed answers."""
    swapped: float = 0.6
    """Share of intervals that name the end before the start, which earns nothing."""
    seed: int = 1000


class Lessons:
    """Prompts whose targets are partly random, and whose intervals mostly name the end first."""

    def __init__(self, prompts: Prompts, noise: float, swapped: float, seed: int) -> None:
        self.prompts, self.noise, self.swapped, self.seed, self.size = prompts, noise, swapped, seed, prompts.size

    def __getitem__(self, index: int) -> Prompt:
        prompt, rng = self.prompts[index], generator("lesson", self.seed, index)
        told = answer = str(prompt.answer)
        if rng.random() < self.noise:
            told = find(prompt.extra["task"]).guess(prompt.extra["truth"], rng)
        if prompt.extra["task"] in INTERVALS and rng.random() < self.swapped:
            told = "-".join(reversed(told.split("-")))
        target = prompt.extra["target"].replace(answer, told)
        return replace(prompt, extra={**prompt.extra, "target": target})


def warm_puzzles(settings: PuzzleWarmUp = PuzzleWarmUp()) -> Path:
    """Folder of the warmed-up model, from the cache if it is there."""
    start = tiny.cached(size=SIZE, corpus=corpus(settings))
    mix = MINIATURES[settings.puzzles.mix]
    tasks = [(part, find(part.task).version) for part in mix.ingredients]
    sources = [inspect.getsource(part) for part in (Lessons, _warm, bare, smaller)]
    key = hashlib.blake2b(repr((start.name, settings, tasks, sources)).encode(), digest_size=8).hexdigest()
    target = tiny.cache_folder() / "warm" / f"{settings.puzzles.mix}-{key}"
    if not target.is_dir():
        print("Warming up the tiny model (once; kept in the cache) …", file=sys.stderr)
    return tiny.publish(target, lambda place: _warm(start, settings, place))


def embedded_or(model: str) -> str:
    """The folder of the warmed-up model for "embedded", else the model itself."""
    return str(warm_puzzles()) if model == EMBEDDED else model


def corpus(settings: PuzzleWarmUp, count: int = 120) -> Sequence[str]:
    """Texts with the words of the mix, to train a tokenizer on."""
    with tempfile.TemporaryDirectory() as scratch:
        prompts = open_puzzles("drawn", settings.puzzles, Run(output=Path(scratch))).train
        return [_text(prompts[index]) for index in range(count)]


def _text(prompt: Prompt) -> str:
    parts = [part.get("text", "") for message in prompt.messages for part in message["content"]]
    return f"{''.join(parts)} {prompt.extra['target']}"


def _warm(start: Path, settings: PuzzleWarmUp, place: Path) -> None:
    policy = Policy.load(start, device="cpu", dtype="float32")
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(
            output=Path(scratch) / "warm",
            seed=settings.seed,
            steps=settings.steps,
            prompts_per_step=settings.batch,
            save_every=0,
            sample_every=0,
        )
        Trainer(
            policy,
            prompts=Lessons(
                open_puzzles("drawn", settings.puzzles, run).train, settings.noise, settings.swapped, settings.seed
            ),
            rewards=Rewards(puzzle=pretext_reward),
            rollout=LabelRollout(policy.processing.encode_answer, lambda prompt: policy.encode(prompt).ids),
            estimator=likelihood,
            surrogate=reinforce,
            grpo=GRPO(reduction="sequence"),
            sampling=Sampling(group_size=1),
            optim=Optim(lr=settings.lr, weight_decay=0.0, warmup=20, schedule="cosine"),
            run=run,
        ).fit()
    policy.save(place)
