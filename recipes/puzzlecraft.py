"""PuzzleCraft (arXiv 2512.14944): jigsaw, rotation and PatchFit; undecided groups of middling difficulty count most.

on a laptop CPU, minutes:                 python -m recipes.puzzlecraft
Qwen2.5-VL-7B, jigsaw (the main run):     python -m recipes.puzzlecraft 7b --dataset ~/photos
the mix 15 : 15 : 10:                     python -m recipes.puzzlecraft mix-7b --dataset ~/photos
plain GRPO on the same puzzles:           python -m recipes.puzzlecraft 7b --dataset ~/photos --puzzlecraft.influence 0

Advantages are r - mean(r), each answer is a mean over its tokens, no KL. RAC, whether the reasoning supports the
answer, is logged and never paid: `rac/judge` with --judge.url, else `rac/rule_standin`, which is not the paper's judge.
In `gaps-7b` tiles have gaps, which closes a shortcut. Departures: ε is 0.2 (the text prints 0 beside CARE); GRPO-CARE
is not offered; an epoch is 40,000 prompts for the mix (2,500 steps of 16), 82,783 for a single puzzle (5,174 steps).
The embedded preset solves two-tile jigsaws and rotations of drawn pictures, answering without reasoning.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Rewards, Run, Sampling, Trainer
from mmrl.data.pretext.prompts import pretext_correct, pretext_reward, solution_key
from mmrl.data.pretext.rac import JudgeRAC, RuleRAC
from mmrl.losses.advantages import group_centered
from mmrl.objectives.puzzlecraft import PuzzleCraft
from mmrl.recipes.shared.judge_server import JudgeServer
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.opening import EMBEDDED, Load, open_policy
from mmrl.recipes.shared.pretext_data import Puzzles, miniature_pretext, open_pretext
from mmrl.recipes.shared.pretext_warmup import warmed_up_for

MIX = {"puzzles": {"mix": "puzzlecraft-mix-paper"}, "run": {"steps": 2500}}
PRESETS = {
    EMBEDDED: miniature_pretext("miniature-puzzles"),
    "7b": Preset("Qwen2.5-VL-7B, jigsaw, tiles that touch as published", 7.0),
    "3b": Preset("Qwen2.5-VL-3B, jigsaw", 3.0, model="Qwen/Qwen2.5-VL-3B-Instruct"),
    "qwen3-2b": Preset("Qwen3-VL-2B, jigsaw", 2.0, model="Qwen/Qwen3-VL-2B-Instruct"),
    "qwen3-4b": Preset("Qwen3-VL-4B, jigsaw", 4.0, model="Qwen/Qwen3-VL-4B-Instruct"),
    "qwen3-8b": Preset("Qwen3-VL-8B, jigsaw", 8.0, model="Qwen/Qwen3-VL-8B-Instruct"),
    "gaps-7b": Preset("jigsaw, tiles with gaps (ours)", puzzles={"mix": "puzzlecraft-jigsaw"}),
    "rotation-7b": Preset("Qwen2.5-VL-7B, rotation", puzzles={"mix": "puzzlecraft-rotation"}),
    "patchfit-7b": Preset("Qwen2.5-VL-7B, PatchFit", puzzles={"mix": "puzzlecraft-patchfit"}),
    "mix-7b": Preset("Qwen2.5-VL-7B, 15 jigsaws : 15 PatchFits : 10 rotations", **MIX),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "drawn",
    puzzles: Puzzles = Puzzles("puzzlecraft-jigsaw-paper"),
    puzzlecraft: PuzzleCraft = PuzzleCraft(scale=4.0, gamma=0.5),
    judge: JudgeServer = JudgeServer(url="", model="Qwen/Qwen2.5-VL-72B-Instruct"),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2, kl=0.0, reduction="sequence"),
    sampling: Sampling = Sampling(group_size=8, temperature=0.9, top_p=0.95, max_tokens=2048),
    optim: Optim = Optim(lr=5e-7),
    run: Run = Run(name="puzzlecraft", prompts_per_step=16, steps=5174),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_pixels=802_816),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model on puzzles, weighting groups by difficulty and dispersion.

    Args:
        dataset: Folder of images, hub name, parquet file, webdataset shards, or "drawn".
        judge: Who judges whether the reasoning supports the answer; without an address a rule stands in.
    """
    data = open_pretext(dataset, puzzles, run)
    # Logged with weight 0: paid, a judge of reasoning would be what the policy learns to please.
    consistency = JudgeRAC(judge.judge()) if judge.url else RuleRAC()
    policy = open_policy(warmed_up_for(model, puzzles.mix), load, lora, run)
    trainer = Trainer(
        policy,
        prompts=data.train,
        heldout=data.heldout,
        rewards=Rewards(
            puzzle=pretext_reward, accuracy=(0.0, pretext_correct), rac=(0.0, consistency)
        ),
        estimator=group_centered,
        grpo=grpo,
        # Dispersion counts different solutions: two wordings of one are the same.
        objectives=[puzzlecraft.reading(solution_key)],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
        settings={"puzzles": puzzles, "dataset": dataset},
    )
    fit(trainer, watch=("reward/puzzle", "puzzlecraft/weight", "puzzlecraft/silent"))


if __name__ == "__main__":
    launch(main, PRESETS)
