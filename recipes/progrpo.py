"""ProGRPO (arXiv 2602.05281): answers that are said too surely earn less, measured against the prompt's own likelihood.

on a laptop CPU, minutes:                     python -m recipes.progrpo
Qwen2.5-VL-7B, mathematics:                   python -m recipes.progrpo 7b
your own model, pictures and clips included:  python -m recipes.progrpo 7b --model MODEL --dataset ROWS

Do not follow it with an objective that subtracts a group's mean: the prompt's part goes away with it. The paper trains
a model of language alone; here it is the vision-language model of its size.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_normalized
from mmrl.objectives.progrpo import ProGRPO
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of

PRESETS = {
    EMBEDDED: miniature(reward=OURS),
    "7b": Preset("Qwen2.5-VL-7B on mathematics", 7.0),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "agentica-org/DeepScaleR-Preview-Dataset",
    data: Data = Data(),
    progrpo: ProGRPO = ProGRPO(alpha=0.5, share=0.2),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0, grader="math-verify"),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.28, kl=0.0, reduction="token"),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=8192),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2),
    run: Run = Run(name="progrpo", prompts_per_step=128, updates_per_step=1, epochs=2),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=2048),
    lora: LoRA = LoRA(),
) -> None:
    """Train a model with advantages that fall with confidence."""
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        estimator=group_normalized,
        grpo=grpo,
        objectives=[progrpo],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("progrpo/shift", "progrpo/answer", "policy/surprise"))


if __name__ == "__main__":
    launch(main, PRESETS)
