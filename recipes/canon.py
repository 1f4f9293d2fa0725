"""CANON (arXiv 2509.23962): the two halves of a group, sorted by a number of each answer, are compared.

on a laptop CPU, minutes:                          python -m recipes.canon
sorted by length, the 7B model:                    python -m recipes.canon 7b --dataset ROWS
by entropy; weights by accuracy, as cosines:       python -m recipes.canon entropy-7b (accuracy-7b, cosine-7b)
by dependence on the picture, KL(raw‖masked):      python -m recipes.canon visual-7b --dataset ROWS
by any part of the reward, paid or not:            python -m recipes.canon part-7b --dataset ROWS --canon.part NAME

`--canon.alpha` below 1 takes a side: short answers (`--canon.favoured low`) or uncertain ones (`high`).
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer, VisualBranch
from mmrl.objectives.canon import CANON
from mmrl.perception.masking import PatchMask
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of

ENTROPY = {"by": "entropy", "favoured": "high"}
ADAPTIVE, WAVES = {**ENTROPY, "schedule": "accuracy"}, {**ENTROPY, "schedule": "cosine"}
LOOKING, PART = {"by": "visual", "favoured": "high"}, {"by": "part", "part": "format"}
TINY = {"reduction": "constant", "length_constant": 10}
PRESETS = {
    EMBEDDED: miniature(canon=ENTROPY, mask={"size": 16}, reward=OURS, grpo=TINY),
    "7b": Preset("CANON by length", 7.0),
    "entropy-7b": Preset("CANON by entropy", canon=ENTROPY),
    "accuracy-7b": Preset("by entropy, weights follow the accuracy", canon=ADAPTIVE),
    "cosine-7b": Preset("by entropy, weights as cosines with restarts", canon=WAVES),
    "visual-7b": Preset("by KL(raw‖masked), ours", canon=LOOKING),
    "part-7b": Preset("by a part of the reward, ours: the format", canon=PART),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(),
    canon: CANON = CANON(by="length", inter=1.0, alpha=1.0),
    mask: PatchMask = PatchMask(ratio=0.6, size=14),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0, grader="math-verify"),
    grpo: GRPO = GRPO(clip_high=0.28, kl=0.0, reduction="constant", length_constant=8192),
    sampling: Sampling = Sampling(group_size=16, temperature=1.0, max_tokens=8192),
    optim: Optim = Optim(lr=1e-6, weight_decay=0.1, warmup=5),
    run: Run = Run(name="canon", prompts_per_step=512, updates_per_step=16, steps=150),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=2048),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model with conditional advantages.

    Args:
        mask: The masked view that measures how much an answer depends on the picture (by "visual").
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        grpo=grpo,
        branches={canon.masked: VisualBranch(mask)},
        objectives=[canon],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("canon/number", "canon/inter", "answer/length"))


if __name__ == "__main__":
    launch(main, PRESETS)
