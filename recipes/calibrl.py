"""CalibRL (arXiv 2602.20197): an expert's likelihood is the baseline, not the target.

on a laptop CPU, minutes:           python -m recipes.calibrl
Qwen2.5-VL-7B:                      python -m recipes.calibrl 7b --dataset my.jsonl
compared by whole answers:          python -m recipes.calibrl 7b --dataset my.jsonl --calibrl.alignment mean

Rows need an expert answer in the column `solution` (the paper: chains of a stronger model for geometry problems,
checked for correctness). It is scored once per step and never trained.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_centered
from mmrl.objectives.calibrl import CalibRL
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.rollouts.experts import WithExpert

MEAN, SUM = {"alignment": "mean"}, {"alignment": "sum"}
PRESETS = {
    EMBEDDED: miniature(expert="target"),
    "7b": Preset("Qwen2.5-VL-7B: 10 answers and 1 expert, alpha 0.5, weight 0.1", 7.0),
    "7b-mean": Preset("compared by mean log-probs of whole answers (ours)", calibrl=MEAN),
    "7b-printed": Preset("compared by log-probs of whole answers, as printed", calibrl=SUM),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="answer-open"),
    calibrl: CalibRL = CalibRL(weight=0.1, alpha=0.5, alignment="position"),
    expert: str = "solution",
    expert_share: float = 1.0,
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.1),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2),
    sampling: Sampling = Sampling(group_size=10, temperature=1.0, max_tokens=4096),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2, decay_all=True),
    run: Run = Run(name="calibrl", prompts_per_step=480, updates_per_step=4, epochs=1),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=20480),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model with controllable exploration around expert answers.

    Args:
        expert: Column that holds the expert's answer.
        expert_share: Probability that a prompt keeps its expert answer.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    encode = policy.processing.encode_answer
    with_expert = WithExpert(encode, column=expert, probability=expert_share)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        rollout=with_expert,
        estimator=group_centered,
        grpo=grpo,
        objectives=[calibrl],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    watched = ("calibrl/lead", "calibrl/behind", "calibrl/logp_wrong", "policy/surprise")
    fit(trainer, watch=watched)


if __name__ == "__main__":
    launch(main, PRESETS)
