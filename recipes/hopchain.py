"""HopChain (arXiv 2603.17024): chains of hops, each of which must be looked up in the picture, with SAPO.

on a laptop CPU, minutes:                     python -m recipes.hopchain
Qwen3-VL-8B, on drawn scenes and photos:      python -m recipes.hopchain 8b --dataset ~/photos
beside your own rows, as in the paper:        python -m recipes.hopchain 8b --dataset ~/photos --rows my.jsonl
the second half, or the last hop (ablation):  python -m recipes.hopchain half-8b …, last-8b …

A chain leads through three to six objects, and its answer is one whole number, paid 1 if equal. SAPO (2511.20347) has a
smooth gate in place of the clip, steeper where the advantage is negative.

Departures
1. The paper lets models and annotators write questions about photographs; here a program is drawn and executed on
   objects drawn over a plain ground or over your photographs (data/pretext/tasks/hop_chain.py). Neither its data nor
   its code is public, and questions that a model always solves are not removed.
2. It trains Qwen3.5-35B-A3B and 397B-A17B. Batch, rate, warm-up, decay and lengths are those of the closest open code,
   Video-HopChain's script for Qwen3-VL-8B; the gate's numbers are SAPO's own.
The embedded preset has two hops among three objects and names the first, without reasoning. Its digits are too small
for the tiny model, which learns what the words tell: half of the answers.
"""

from functools import partial

from mmrl import GRPO, LoRA, Monitor, Optim, Rewards, Run, Sampling, Trainer
from mmrl.losses.advantages import group_normalized
from mmrl.losses.surrogates import sapo
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.opening import EMBEDDED, Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.recipes.shared.pretext_data import (
    MINIATURE,
    Puzzles,
    miniature_pretext,
    open_pretext,
)
from mmrl.recipes.shared.pretext_warmup import warmed_up_for
from mmrl.recipes.shared.row_accuracy import RowAccuracy
from mmrl.recipes.shared.rows_beside import RowsBeside, puzzle_correct, puzzle_pay

PRESETS = {
    EMBEDDED: miniature_pretext(
        "miniature-hops",
        puzzles={**MINIATURE, "mix": "miniature-hops", "shown": 64},
        optim={"lr": 5e-4},
    ),
    "8b": Preset("Qwen3-VL-8B, whole chains", 8.0),
    "half-8b": Preset(
        "the second half of each chain (ablation)", puzzles={"mix": "hopchain-half"}
    ),
    "last-8b": Preset(
        "the last hop of each chain (ablation)", puzzles={"mix": "hopchain-last"}
    ),
}


def main(
    model: str = "Qwen/Qwen3-VL-8B-Instruct",
    dataset: str = "drawn",
    puzzles: Puzzles = Puzzles("hopchain"),
    rows: str = "",
    rows_share: float = 0.5,
    data: Data = Data(style="box"),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0),
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
    grpo: GRPO = GRPO(kl=0.0),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=16_384),
    optim: Optim = Optim(lr=1e-6, weight_decay=0.1, decay_all=True, warmup=25),
    run: Run = Run(name="hopchain", prompts_per_step=128, updates_per_step=8, steps=250),
    monitor: Monitor = Monitor(probe_every=50),
    load: Load = Load(max_pixels=802_816, max_prompt_tokens=5376),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model on chains of hops through a picture.

    Args:
        dataset: Folder of images, hub name, parquet file, webdataset shards, or "drawn".
        rows: Ordinary rows beside the chains: a file, folder, hub name or drawn:lookup; empty for chains alone.
        rows_share: Share of the questions that are rows.
        data: How the rows are read and asked.
        reward: How the rows are paid.
        tau_positive: Steepness of SAPO's gate where the advantage is positive.
        tau_negative: The same where it is negative or 0.
    """
    chains = open_pretext(dataset, puzzles, run)
    style, paid = style_of(data.style), {}
    prompts = chains.train
    if reward.own:
        raise ValueError(
            "--reward is not for this recipe: chains are checked hop by hop, and rows by --data.style."
        )
    if rows:
        # The evaluation stays with the chains: rows have evaluations of their own (recipes.evaluate).
        ordinary, _ = open_data(rows, data, run.seed)
        prompts = RowsBeside(chains.train, ordinary, rows_share, run.seed)
        paid["rows"] = (reward.accuracy, RowAccuracy(reward.accuracy_of(style)))
    policy = open_policy(warmed_up_for(model, puzzles.mix), load, lora, run)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=chains.heldout,
        rewards=Rewards(chain=puzzle_pay, accuracy=(0.0, puzzle_correct), **paid),
        estimator=group_normalized,
        surrogate=partial(sapo, tau_positive=tau_positive, tau_negative=tau_negative),
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
        settings={"puzzles": puzzles, "dataset": dataset, "rows": rows, "share": rows_share},
    )
    fit(trainer, watch=("reward/chain", "policy/ratio_max"))


if __name__ == "__main__":
    launch(main, PRESETS)
