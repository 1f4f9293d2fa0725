"""DSDR (arXiv 2602.19895): right answers that differ from each other earn more, and keep more entropy.

on a laptop CPU, minutes:                    python -m recipes.dsdr
answers and their formulas, the 7B model:    python -m recipes.dsdr 7b --dataset ROWS
on DAPO:                                     python -m recipes.dsdr dapo-7b --dataset ROWS
answers and the boxes they refer to:         python -m recipes.dsdr boxes-7b --dataset ROWS
the bonus alone, or the entropy alone:       python -m recipes.dsdr 7b --dsdr.local 0  (--dsdr.weight 0)

Right is what the accuracy says (`--reward.correct`). Reconstructed: see mmrl/objectives/dsdr.py.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.objectives.dsdr import DSDR
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import EITHER_ORDER, RewardWeights, style_of

PRESETS = {
    # Where one answer alone is right, right answers never differ; these have no formulas.
    EMBEDDED: miniature(dsdr={"stretch": 50.0, "pieces": "none"}, reward=EITHER_ORDER),
    "7b": Preset("DSDR on GRPO, formulas", 7.0),
    "dapo-7b": Preset("DSDR with DAPO's clip", grpo={"clip_high": 0.28, "dual_clip": 10.0}),
    "boxes-7b": Preset("boxes in the place of formulas, ours", dsdr={"pieces": "boxes"}),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(),
    dsdr: DSDR = DSDR(weight=0.2, largest=0.5, local=0.005, temperature=0.2),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0, grader="math-verify"),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=4096),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2),
    run: Run = Run(name="dsdr", prompts_per_step=256, updates_per_step=1, epochs=2),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=2048),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model whose right answers stay diverse."""
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        grpo=grpo,
        objectives=[dsdr],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("dsdr/diversity", "dsdr/bonus", "loss/local_entropy"))


if __name__ == "__main__":
    launch(main, PRESETS)
