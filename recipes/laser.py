"""LaSeR (arXiv 2510.14943): one place behind the answer learns whether it is right, and has a say in the advantage.

on a laptop CPU, minutes:                     python -m recipes.laser
Qwen2.5-VL-7B, mathematics:                   python -m recipes.laser 7b
your own model, pictures and clips included:  python -m recipes.laser 7b --model MODEL --dataset ROWS

The released code asks for <|vision_start|>, which stands for pictures in every Qwen model; here it is <|fim_pad|>,
whose usual value is measured in the first step in place of the paper's constant. The paper trains models of language
alone (Qwen2.5-7B, Open-Reasoner-Zero-7B and OctoThinker-3B, with the same numbers but for that constant); here it is
the vision-language model of that size.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_normalized
from mmrl.objectives.laser import LaSeR
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of

PRESETS = {
    # The tiny tokenizer knows few special tokens; its answers have no thought.
    EMBEDDED: miniature(
        reward=OURS, laser={"token": "<think>", "loss_warmup": 10, "mix_warmup": 10}
    ),
    "7b": Preset("Qwen2.5-VL-7B on mathematics", 7.0),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "zwhe99/DeepMath-103K",
    data: Data = Data(),
    laser: LaSeR = LaSeR(alpha=0.1, beta=0.1, tau=0.1, loss_warmup=200, mix_warmup=200),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0, grader="math-verify"),
    grpo: GRPO = GRPO(kl=0.0, entropy=0.0),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=8192),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2),
    run: Run = Run(name="laser", prompts_per_step=128, updates_per_step=1, epochs=2),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=2048),
    lora: LoRA = LoRA(),
) -> None:
    """Train a model that also says whether it is right."""
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        estimator=group_normalized,
        grpo=grpo,
        objectives=[laser],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("loss/self_reward", "laser/verified", "laser/self_reward"))


if __name__ == "__main__":
    launch(main, PRESETS)
