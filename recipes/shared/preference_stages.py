"""The stages of MSRL: each is a run of its own in the run's folder, and begins with the model of the one before.

    learn     rationales of text pairs, supervised                                     vision frozen
    text      RL on text pairs                                                         vision frozen
    caption   RL on pairs whose pictures are captions, five to one text pair           vision frozen
    distil    the model reads captions and writes `rationales` texts of each pair; of those with the majority's letter
              the surest is learned, supervised, behind the picture itself, after its caption
    visual    RL on the pairs as they are

A run that is started again goes on in the stage where it was stopped; what `distil` writes stays in `rationales.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from mmrl.ground.faults import BadRow
from mmrl.ground.outputs import write_whole
from mmrl.ground.printable import tell
from mmrl.ground.require import require
from mmrl.ground.stopping import stop_if_asked
from mmrl.grpo import GRPO
from mmrl.losses.advantages import group_centered
from mmrl.losses.surrogates import reinforce
from mmrl.model.load import LoRA
from mmrl.model.policy import Policy
from mmrl.recipes.shared.opening import Load, open_policy
from mmrl.recipes.shared.preference_data import Interleaved, Pairs, Rationales, Told
from mmrl.recipes.shared.supervised import label_rollout, likelihood
from mmrl.rewards.pay import Rewards
from mmrl.rewards.preference import (
    CAPTION,
    best_rationale,
    preference_accuracy,
    preference_form,
    preference_task,
)
from mmrl.rollouts.choosing import opened
from mmrl.training.monitor import Monitor
from mmrl.training.optim import Optim
from mmrl.training.run import Run, refuse_several_processes
from mmrl.training.trainer import Trainer
from mmrl.types import Now, Prompt, Prompts, Sampling

Stage = Literal["learn", "text", "caption", "distil", "visual"]
VISION = ("vision", "merger")
AT_ONCE = 8
"""Pairs that are answered together in the distillation."""


@dataclass(frozen=True)
class MSRL:
    """Multi-stage RL of a model that judges."""

    stages: tuple[Stage, ...] = ("learn", "text", "caption", "distil", "visual")
    """Which stages there are, in this order; the last one trained is the run itself."""
    shares: tuple[float, ...] = (0.033, 0.868, 0.051, 0.005)
    """Share of `run.steps` of learn, text, caption and distil; the last stage has what is left."""
    accuracy: float = 1.0
    """Weight of the right letter."""
    form: float = 1.0
    """Weight of a thought and an answer."""
    task: float = 0.2
    """Weight of the kind of task, from the caption stage on."""
    replay: int = 5
    """New pairs to one text pair in the caption stage."""
    rationales: int = 8
    """Texts of each pair in the distillation, of which one is learned."""
    distilled: int = 19_442
    """Most pairs that the distillation reads."""
    rows: int = 128
    """Rows per step of the two supervised stages."""
    learn_lr: float = 1e-5
    """Learning rate of the first stage."""
    distil_lr: float = 2e-6
    """Learning rate of the distillation."""
    bare: bool = False
    """Ask in few words, without tags for task and caption; for a model that was taught the form."""

    def __post_init__(self) -> None:
        known = get_args(Stage)
        in_order = tuple(one for one in known if one in self.stages)
        shares = all(0 <= share < 1 for share in self.shares)
        require(
            self,
            stages=(
                bool(self.stages) and self.stages == in_order and in_order[-1] != "distil",
                f"some of {', '.join(known)}, each once and in this order; distil needs visual behind it",
            ),
            shares=(
                len(self.shares) == 4 and shares and sum(self.shares) < 1,
                "four shares from 0, below 1 together",
            ),
            accuracy=(0 <= self.accuracy <= 1000, "0 to 1,000"),
            form=(0 <= self.form <= 1000, "0 to 1,000"),
            task=(0 <= self.task <= 1000, "0 to 1,000"),
            replay=(1 <= self.replay <= 1000, "1 to 1,000"),
            rationales=(1 <= self.rationales <= 1000, "1 to 1,000"),
            rows=(self.rows >= 1, "at least 1"),
            distilled=(self.distilled >= 1, "at least 1"),
            learn_lr=(0 <= self.learn_lr <= 1, "in [0, 1]"),
            distil_lr=(0 <= self.distil_lr <= 1, "in [0, 1]"),
        )

    def steps(self, total: int) -> dict[Stage, int]:
        """Steps of each stage, of all of them together; the last one has what the others leave, at least one."""
        found: dict[Stage, int] = {}
        for stage, share in zip(get_args(Stage), self.shares, strict=False):
            found[stage] = round(share * total)
        *before, last = self.stages
        steps: dict[Stage, int] = {stage: found[stage] for stage in before}
        # However short the run is.
        while (left := total - sum(steps.values())) < 1 and any(steps.values()):
            longest = max(steps, key=lambda one: steps[one])
            steps[longest] -= 1
        steps[last] = max(left, 1)
        return steps

    def rewards(self, stage: Stage) -> Rewards:
        """What a verdict is paid in a stage."""
        parts: dict[str, Any] = {
            "accuracy": (self.accuracy, preference_accuracy),
            "form": (self.form, preference_form),
        }
        if stage in ("caption", "visual") and self.task and not self.bare:
            parts["task"] = (self.task, preference_task)
        return Rewards(**parts, correct="accuracy")


@dataclass(frozen=True)
class PairRows:
    """The rows of all stages."""

    text: Prompts
    """Text pairs."""
    learned: Prompts
    """Text pairs with rationales."""
    visual: Prompts
    """Pairs with pictures or clips, and their captions."""
    heldout: Prompts
    """Of the pairs with pictures."""
    heldout_text: Prompts
    """Of the text pairs."""


@dataclass(frozen=True)
class Stages:
    """What the stages of one run share."""

    msrl: MSRL
    rows: PairRows
    grpo: GRPO
    sampling: Sampling
    optim: Optim
    run: Run
    monitor: Monitor
    load: Load
    lora: LoRA

    def pairs(self, stage: Stage) -> Prompts:
        """What a stage with RL is asked."""
        bare, seed = self.msrl.bare, self.run.seed
        text = Pairs(self.rows.text, "text", seed, bare=bare)
        if stage == "text":
            return text
        if stage == "visual":
            return Pairs(self.rows.visual, "visual", seed, bare=bare)
        captioned = Pairs(self.rows.visual, "captioned", seed, bare=bare)
        return Interleaved(captioned, text, self.msrl.replay)

    def trainer(self, stage: Stage, model: str, run: Run) -> Trainer:
        """The trainer of a stage, from the model of the one before."""
        policy = self.policy(stage, model, run)
        if stage in ("learn", "distil"):
            return self._supervised(stage, policy, run)
        final = run.output == self.run.output
        return Trainer(
            policy,
            prompts=self.pairs(stage),
            heldout=self.heldout(stage) if final else None,
            rewards=self.msrl.rewards(stage),
            # Without dividing by the deviation, as the official script.
            estimator=group_centered,
            grpo=self.grpo,
            sampling=self.sampling,
            optim=self.optim,
            run=run,
            monitor=self.monitor,
            settings={"msrl": self.msrl},
        )

    def policy(self, stage: Stage, model: str, run: Run) -> Policy:
        """The model, its vision frozen but in the last two stages."""
        frozen = tuple(dict.fromkeys((*self.load.freeze, *VISION)))
        sees = stage in ("distil", "visual")
        return open_policy(
            model, self.load if sees else replace(self.load, freeze=frozen), self.lora, run
        )

    def heldout(self, stage: Stage) -> Prompts:
        """Held-out pairs in both orders, as the stage shows them."""
        shown = "visual" if stage == "visual" else "captioned" if stage == "caption" else "text"
        rows = self.rows.heldout_text if shown == "text" else self.rows.heldout
        return Pairs(rows, shown, self.run.seed, both=True, bare=self.msrl.bare)

    def _supervised(self, stage: Stage, policy: Policy, run: Run) -> Trainer:
        lessons = self._lessons(policy, run) if stage == "distil" else self._rationales()
        lr = self.msrl.learn_lr if stage == "learn" else self.msrl.distil_lr
        return Trainer(
            policy,
            prompts=lessons,
            rewards=Rewards(accuracy=preference_accuracy),
            rollout=label_rollout(policy),
            estimator=likelihood,
            surrogate=reinforce,
            grpo=GRPO(),
            sampling=Sampling(group_size=1),
            optim=replace(self.optim, lr=lr),
            run=replace(run, prompts_per_step=self.msrl.rows, updates_per_step=1),
            settings={"msrl": self.msrl},
        )

    def _rationales(self) -> Prompts:
        bare = self.msrl.bare
        return Rationales(Pairs(self.rows.learned, "text", self.run.seed, bare=bare))

    def _lessons(self, policy: Policy, run: Run) -> Prompts:
        """Pairs with pictures, and what the model wrote about them when it read captions."""
        bare, seed = self.msrl.bare, self.run.seed
        seen = Pairs(self.rows.visual, "visual", seed, bare=bare)
        file = run.folder.parent / "rationales.jsonl"
        if not file.is_file():
            read = Pairs(self.rows.visual, "captioned", seed, bare=bare)
            write_whole(file, "".join(self._written(policy, read, run)))
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if not rows:
            raise ValueError(
                f"{file} is empty: of no pair did a majority of the texts agree on a letter in a good form. Train the "
                "stages before for longer, write more texts (--msrl.rationales), or leave distil out (--msrl.stages)."
            )
        return Told(seen, {row["index"]: row["target"] for row in rows})

    def _written(self, policy: Policy, pairs: Pairs, run: Run) -> Iterator[str]:
        """A line for each pair of which a majority agreed."""
        refuse_several_processes(
            "the stage that writes rationales (--msrl.stages without distil)"
        )
        engine = opened(policy, run.rows_at_once, self.sampling)
        sampling = replace(self.sampling, group_size=self.msrl.rationales)
        # Pairs without a majority are left out, so there are more than the stage learns from.
        endless = 2 * self.msrl.rows * planned(run)
        count = min(self.msrl.distilled, pairs.size or endless)
        kept = 0
        for start in range(0, count, AT_ONCE):
            some = dict(_readable(pairs, range(start, min(start + AT_ONCE, count))))
            # A step of its own for each call, so that no two draw alike.
            now = Now(1 + start, 0.0, run.seed)
            replies = engine.generate([*some.values()], sampling, now) if some else []
            for place, (index, prompt) in enumerate(some.items()):
                size = self.msrl.rationales
                own = replies[place * size : (place + 1) * size]
                best = best_rationale(own, policy.processing.spell)
                if best is not None:
                    kept += 1
                    target = self._target(prompt, best.text)
                    yield json.dumps({"index": index, "target": target}) + "\n"
            stop_if_asked()
        tell(f"{kept} of {count} pairs have a rationale that the majority agrees with.")

    def _target(self, prompt: Prompt, text: str) -> str:
        """The caption before what the model wrote about it."""
        if self.msrl.bare:
            return text
        return f"<caption>{prompt.extra[CAPTION].strip()}</caption>\n{text.strip()}"


def planned(run: Run) -> int:
    """Steps of a stage, which are always given."""
    assert run.steps is not None, "a stage has its own number of steps"
    return run.steps


def stage_folder(run: Run, stage: Stage) -> Path:
    """Where a stage's own run is."""
    return run.folder / f"stage-{stage}"


def _readable(pairs: Prompts, places: Sequence[int]) -> Iterator[tuple[int, Prompt]]:
    for index in places:
        try:
            yield index, pairs[index]
        except BadRow:  # it is counted where the pairs are trained on
            continue
