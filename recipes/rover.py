"""ROVER (arXiv 2509.24981): the log-ratio learns the values of the uniformly random policy, and keeps diversity.

on a laptop CPU, minutes:                     python -m recipes.rover
Qwen3-VL-8B, mathematics:                     python -m recipes.rover 8b
Qwen2.5-VL-3B, rewards only centred:          python -m recipes.rover countdown-3b --dataset ROWS
your own model, pictures and clips included:  python -m recipes.rover 8b --model MODEL --dataset ROWS

Its loss is a regression, so that clip, surrogate and estimator of GRPO have no part in it; KL and entropy bonus are
added as usual, and so are terms of other objectives. The paper trains models of language alone; here they are the
vision-language models of their sizes. Rows of its countdown games must be given.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_centered
from mmrl.objectives.rover import ROVER
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of

PRESETS = {
    EMBEDDED: miniature(reward=OURS),
    "8b": Preset("Qwen3-VL-8B on mathematics", 8.0),
    "countdown-3b": Preset(
        "Qwen2.5-VL-3B on countdown games: 5 answers of 1,024 tokens, rewards only centred",
        3.0,
        model="Qwen/Qwen2.5-VL-3B-Instruct",
        rover={"scaled": False},
        sampling={"group_size": 5, "temperature": 1.0, "max_tokens": 1024},
    ),
}


def main(
    model: str = "Qwen/Qwen3-VL-8B-Instruct",
    dataset: str = "agentica-org/DeepScaleR-Preview-Dataset",
    data: Data = Data(),
    rover: ROVER = ROVER(rho=1.0, gamma=1.0, scaled=True),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0, grader="math-verify"),
    grpo: GRPO = GRPO(kl=0.0, entropy=0.0),
    sampling: Sampling = Sampling(group_size=8, temperature=0.6, max_tokens=8192),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2),
    run: Run = Run(name="rover", prompts_per_step=128, updates_per_step=4),
    monitor: Monitor = Monitor(),
    load: Load = Load(),
    lora: LoRA = LoRA(),
) -> None:
    """Train a model by the values of the uniformly random policy."""
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        estimator=group_centered,
        grpo=grpo,
        objectives=[rover],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("loss/rover", "rover/value", "rover/ahead", "policy/surprise"))


if __name__ == "__main__":
    launch(main, PRESETS)
