"""KnowRL: questions are asked with the fewest knowledge points that answer them best.

on a laptop CPU, minutes:               python -m recipes.knowrl
subset search over the points:          python -m recipes.knowrl 7b --dataset my.jsonl
without what can be left out singly:    python -m recipes.knowrl strict-7b --dataset my.jsonl
the same, one right answer tolerated:   python -m recipes.knowrl tolerant-7b --dataset my.jsonl
all points:                             python -m recipes.knowrl all-7b --dataset my.jsonl
keep what was measured, and use it:     ... --write-table points.jsonl, then ... --table points.jsonl

No arXiv number is known to us; numbers are those of the released script (github.com/Hasuer/KnowRL, commit bed9a053),
whose selection code is not released: `mmrl/rollouts/knowledge_points.py` says what is reconstructed. Rows need points,
short texts that help, in the column `points`, and ids of their own; rows without are plain GRPO. On drawn look-ups a
point says what one cell holds. The published model reads text (OpenMath-Nemotron-1.5B, on mathematics); here it is a
vision-language model on your rows.
"""

from pathlib import Path

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_normalized
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.recipes.shared.point_data import point_model
from mmrl.recipes.shared.solution_data import OBSERVED, Observed
from mmrl.rollouts.groups import DynamicSampling, group_rollout
from mmrl.rollouts.knowledge_points import KnowRL
from mmrl.rollouts.knowrl import AccuracyTable, KnowRLRollout, TableFile

PRESETS = {
    # Drawn rows never come again: few questions, so that some time is left for the training.
    EMBEDDED: miniature(
        points=OBSERVED,
        knowrl={"samples": 2, "subsets": 8},
        dynamic=False,
        data={"limit": 64},
        run={"prompts_per_step": 8},
    ),
    "7b": Preset("subset search, 8 answers to each set of points", 7.0),
    "strict-7b": Preset("without points that cost nothing singly", knowrl={"choose": "s-loo"}),
    "tolerant-7b": Preset("... that cost one right answer", knowrl={"choose": "t-loo"}),
    "all-7b": Preset("all points, nothing is measured", knowrl={"choose": "all"}),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="answer-open"),
    knowrl: KnowRL = KnowRL(choose="css", samples=8, slack=1),
    points: str = "points",
    table: str | None = None,
    write_table: str | None = None,
    dynamic: bool = True,
    groups: DynamicSampling = DynamicSampling(spread=True, at_once=512, rounds=20),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.26),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=32_768),
    optim: Optim = Optim(lr=1e-6),
    run: Run = Run(name="knowrl", prompts_per_step=256, updates_per_step=4, epochs=10),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=8192),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model on questions with the knowledge points that they need.

    Args:
        points: Column that holds the points: a list of texts, or a text with one a line.
        table: File with accuracies that an earlier run wrote: only what it lacks is measured.
        write_table: File into which what is known goes, one question a line.
        dynamic: Leave out groups that are all right or all wrong, and take further questions.
    """
    if table and write_table and Path(table).resolve() == Path(write_table).resolve():
        raise ValueError(
            f"--table and --write-table are both {table}: a run that goes on would begin with what it wrote itself. "
            "Name another file by --write-table; it holds what is in the table as well."
        )
    known = AccuracyTable.read(table) if table else None
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(point_model(model), load, lora, run)
    if points == OBSERVED:  # drawn rows say what stands in the cells
        prompts = Observed(prompts)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        rollout=KnowRLRollout(
            groups if dynamic else group_rollout,
            knowrl=knowrl,
            column=points,
            check=policy.encode,
            table=known,
            written=TableFile.at(write_table),
        ),
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/accuracy", "knowrl/points", "knowrl/given"))


if __name__ == "__main__":
    launch(main, PRESETS)
