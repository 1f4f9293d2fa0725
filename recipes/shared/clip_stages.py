"""What happens before RL: a supervised stage, and the difficulty filter by the model that is to be trained.

Both write into the run's folder and continue where they were stopped: `sft/` is a run of its own, and
`difficulty.jsonl` gains a line with each answer, so that the pass resumes after the last one. The filter reads that
file and nothing else (`python -m recipes.difficulty` writes one by itself).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmrl.data.grounding.difficulty import (
    stratified_sample,
    time_r1_epoch,
    time_r1_first_set,
    timelens2_weights,
)
from mmrl.data.grounding.rewards import span_iou
from mmrl.data.grounding.spans import as_spans, lenient_spans
from mmrl.data.rows.sources import Subset
from mmrl.ground.faults import BadRow
from mmrl.ground.outputs import OutputError, alone, refuse_file
from mmrl.ground.printable import tell
from mmrl.ground.require import require
from mmrl.ground.stopping import stop_if_asked
from mmrl.grpo import GRPO
from mmrl.losses.surrogates import reinforce
from mmrl.model.policy import Policy
from mmrl.recipes.shared.clip_asking import SpanStyle
from mmrl.recipes.shared.supervised import label_rollout, likelihood
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.choosing import opened
from mmrl.training.door import entered
from mmrl.training.going_on import refuse_branching
from mmrl.training.identity import changes
from mmrl.training.optim import Optim
from mmrl.training.run import Run, refuse_several_processes
from mmrl.training.tracking import (
    append_rows,
    describe,
    describe_prompts,
    read_rows,
)
from mmrl.training.trainer import Trainer
from mmrl.types import Now, Prompt, Prompts, Sampling

AT_ONCE = 8
"""Prompts that are answered together in the difficulty pass."""


@dataclass(frozen=True)
class Tuning:
    """The supervised stage before RL (TimeLens-8B: 30,000 rows, learning rate 1e-5, 128 rows per step)."""

    rows: int = 0
    """Rows it learns from; 0 leaves the stage out."""
    lr: float = 1e-5
    """Peak learning rate, cosine schedule."""
    warmup: float = 0.03
    """Share of the steps over which the rate rises."""
    weight_decay: float = 0.1
    """Decoupled weight decay."""
    rows_per_step: int = 128
    """Rows per optimizer step."""
    epochs: float = 1.0
    """Passes over the rows."""

    def __post_init__(self) -> None:
        require(
            self,
            lr=(0 <= self.lr <= 1, "in [0, 1]"),
            warmup=(0 <= self.warmup <= 1, "in [0, 1]"),
            weight_decay=(0 <= self.weight_decay <= 1, "in [0, 1]"),
            epochs=(self.epochs > 0, "positive"),
        )


@dataclass(frozen=True)
class Selection:
    """Which rows RL sees, by the IoU that the model reaches on them before it."""

    target: int = 0
    """Rows to draw; 0 trains on all and makes no difficulty pass."""
    rule: Literal["timelens", "time-r1", "time-r1-epoch", "timelens2"] = "timelens"
    """timelens: Gaussian over the IoU, the same number from each bucket of duration; time-r1: its first set, IoU > 0
    around 0.3; time-r1-epoch: its set for a further epoch, 0 < IoU ≤ 0.7 evenly spaced; timelens2: (1 - IoU)²."""
    mean: float = 0.05
    """Mean of the Gaussian, in IoU (timelens)."""
    std: float = 0.2
    """Its standard deviation (timelens)."""
    file: Path | None = None
    """Take the IoUs from this file (of recipes.difficulty) instead of making a pass."""
    seed: int = 42
    """Seeds the draw."""

    def __post_init__(self) -> None:
        require(self, std=(self.std > 0, "positive"))


def stage_run(run: Run) -> Run:
    """The run after its old output was deleted, if it shall be: before the stages write, not after."""
    with entered(run) as door:
        door.start_anew(run)
    return replace(run, overwrite=False)


def tuned(policy: Policy, prompts: Prompts, style: SpanStyle, tuning: Tuning, run: Run) -> Path:
    """Train on the true answers with the same trainer; the folder of the model."""
    refuse_branching(run, "its model is tuned first, in the run's own folder (--tuning.rows)")
    rows = min(tuning.rows, prompts.size or tuning.rows)
    steps = max(1, int(rows * tuning.epochs) // tuning.rows_per_step)
    place = run.folder / "sft"
    # A run of its own, so that a stage that was stopped goes on from its own checkpoints.
    trainer = Trainer(
        policy,
        prompts=Subset(prompts, range(rows)),
        rewards=Rewards(accuracy=style.parts["accuracy"]),
        rollout=label_rollout(policy),
        estimator=likelihood,
        surrogate=reinforce,
        grpo=GRPO(),
        sampling=Sampling(group_size=1),
        optim=Optim(
            lr=tuning.lr,
            weight_decay=tuning.weight_decay,
            warmup=round(tuning.warmup * steps),
            schedule="cosine",
        ),
        run=replace(
            run,
            output=place,
            steps=steps,
            prompts_per_step=min(tuning.rows_per_step, rows),
            updates_per_step=1,
        ),
    )
    trainer.fit()
    stop_if_asked()
    return place / "model"


def selected(
    policy: Policy, prompts: Prompts, selection: Selection, sampling: Sampling, run: Run
) -> Subset:
    """The prompts that RL is given."""
    file = selection.file or run.folder / "difficulty.jsonl"
    if selection.file is None:
        refuse_several_processes(
            "the pass that selects rows (do it first with python -m recipes.difficulty, then --selection.file FILE)"
        )
        told = {"policy": policy.description, "prompts": describe_prompts(prompts)}
        measure_difficulty(policy, prompts, file, sampling, run.seed, told, run.rows_at_once)
    found = [row for row in answered(file) if "iou" in row]
    ious = [row["iou"] for row in found]
    chosen = _chosen(found, ious, selection)
    if not chosen:
        raise ValueError(
            f"{file}: the rule {selection.rule!r} takes none of {len(found)} rows; choose another."
        )
    mean = sum(ious[i] for i in chosen) / len(chosen)
    tell(
        f"{len(chosen)} of {len(found)} rows selected by {file}; their mean IoU is {mean:.3f}."
    )
    # Places among the answered rows become indices of the prompts: rows that cannot be used have no IoU.
    return Subset(prompts, [found[i]["index"] for i in chosen])


def _chosen(
    rows: Sequence[dict[str, Any]], ious: Sequence[float], selection: Selection
) -> list[int]:
    """Places of the rows that the rule takes."""
    if selection.rule == "timelens":
        lengths = [row["duration"] or 0.0 for row in rows]
        return stratified_sample(
            ious,
            lengths,
            selection.target,
            mean=selection.mean,
            std=selection.std,
            seed=selection.seed,
        )
    if selection.rule == "time-r1":
        return time_r1_first_set(ious, selection.target, selection.seed)
    if selection.rule == "time-r1-epoch":
        return time_r1_epoch(ious, selection.target)
    weights = timelens2_weights([[iou] for iou in ious])
    # A row that is answered perfectly has no weight and cannot be drawn without replacement.
    count = min(selection.target, int((weights > 0).sum()))
    rng = np.random.default_rng(selection.seed)
    return rng.choice(len(ious), count, replace=False, p=weights).tolist()


def measure_difficulty(
    policy: Policy,
    prompts: Prompts,
    file: Path,
    sampling: Sampling,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    rows_at_once: int = 256,
) -> None:
    """Answer every prompt greedily, one line each: index, id, iou, pred, answer, duration; or index and bad.

    Lines that are there are kept, so that the pass goes on where it was stopped. An answer that cannot be read has the
    IoU 0 and, as in TimeLens, a span beyond the clip. The first line holds `settings`, that of the pass; one with
    others is not continued. Raises `OutputError`, also for a file that is something else.
    """
    if prompts.size is None:
        raise ValueError(
            "The difficulty pass answers every prompt once, but the data is endless; set data.limit."
        )
    refuse_foreign_difficulties(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    with alone(file, "--output"):
        _begin(file, settings)
        done = {row["index"] for row in answered(file)}
        left = [index for index in range(prompts.size) if index not in done]
        greedy, now = replace(sampling, group_size=1, temperature=0.0), Now(0, 0.0, seed)
        engine = opened(policy, rows_at_once, greedy)
        for begin in range(0, len(left), AT_ONCE):
            with policy.vision.no_update():  # leaving it forgets the clips of this block
                rows, usable = _usable(policy, prompts, left[begin : begin + AT_ONCE])
                asked = [prompt for _, prompt in usable]
                rollouts = engine.generate(asked, greedy, now) if asked else []
            for (index, prompt), rollout in zip(usable, rollouts, strict=True):
                rows.append(_line(index, prompt, rollout.text))
            append_rows(file, sorted(rows, key=lambda row: row["index"]))


def refuse_foreign_difficulties(file: Path) -> None:
    """Refuse a file that is there and holds something else. Raises `OutputError`."""
    refuse_file(file, _is_ours, "file of answers and their IoU (of recipes.difficulty)")


def answered(file: Path) -> list[dict[str, Any]]:
    """The lines of a difficulty file, in order of their index. Damaged ones are named and will be made again."""
    if not file.is_file():
        return []
    rows = {row["index"]: row for _, row in read_rows(file, _is_line) if _is_answer(row)}
    return [rows[index] for index in sorted(rows)]


def _begin(file: Path, settings: Mapping[str, Any] | None) -> None:
    """Write the settings of the pass into an empty file; refuse those of another pass."""
    now = describe(settings or {})
    if not file.stat().st_size:
        append_rows(file, [{"difficulty": now}])
        return
    with file.open(encoding="utf-8", errors="replace") as lines:
        first = _object(lines.readline())
    if "difficulty" in first and (changed := changes(first["difficulty"], now)):
        told = "\n  ".join(f"difficulty.{line}" for line in changed)
        raise OutputError(
            f"{file} holds the answers of a pass with other settings:\n  {told}\n"
            "Use the old settings to continue it, another --output, or delete it to start anew."
        )


def _is_ours(text: str) -> bool:
    """Is there an answer or the settings of a pass, and nothing else that can be read?"""
    rows = [row for line in text.split("\n") if (row := _object(line))]
    return bool(rows) and all(map(_is_line, rows))


def _is_line(row: Mapping[str, Any]) -> bool:
    return "difficulty" in row or _is_answer(row)


def _is_answer(row: Mapping[str, Any]) -> bool:
    return type(row.get("index")) is int and ("iou" in row or "bad" in row)


def _object(line: str) -> dict[str, Any]:
    """The object on a line; nothing for a damaged one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _usable(
    policy: Policy, prompts: Prompts, indices: Sequence[int]
) -> tuple[list[dict[str, Any]], list[tuple[int, Prompt]]]:
    """Lines of rows that cannot be used, and the prompts of the others."""
    bad, usable = [], []
    for index in indices:
        try:
            prompt = prompts[index]
            policy.encode(prompt)
        except BadRow as problem:
            bad.append({"index": index, "bad": str(problem)})
            continue
        usable.append((index, prompt))
    return bad, usable


def _line(index: int, prompt: Prompt, text: str) -> dict[str, Any]:
    duration = prompt.extra.get("duration")
    end = duration or 0.0
    return {
        "index": index,
        "id": prompt.id,
        "iou": span_iou(text, as_spans(prompt.extra.get("spans", prompt.answer))),
        "pred": lenient_spans(text) or [(end + 10, end + 20)],
        "answer": text,
        "duration": duration,
    }
