"""ACE (arXiv 2602.21420): wrong answers that the policy has become sure of cost more.

on a laptop CPU, minutes:          python -m recipes.ace
on GRPO, the 7B model:             python -m recipes.ace 7b --dataset ROWS
on DAPO:                           python -m recipes.ace dapo-7b --dataset ROWS
on GRPO, Qwen3-VL-8B:              python -m recipes.ace 8b --dataset ROWS

It needs the reference's log-probs once per rollout, also without a KL. Wrong is what the accuracy says
(`--reward.correct`, `--reward.correct-above`). The form and alpha are reconstructed: see mmrl/objectives/ace.py.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_normalized
from mmrl.objectives.ace import ACE
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of
from mmrl.rollouts.groups import DynamicSampling, group_rollout

LARGE = "Qwen/Qwen3-VL-8B-Instruct"
DAPO = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 10.0}
PRESETS = {
    EMBEDDED: miniature(reward=OURS),
    "7b": Preset("ACE on GRPO", 7.0),
    "dapo-7b": Preset(
        "ACE on DAPO: clip-higher, even groups replaced", grpo=DAPO, dynamic=True
    ),
    "8b": Preset("ACE on GRPO, Qwen3-VL-8B", 8.0, model=LARGE),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(),
    ace: ACE = ACE(alpha=1.0, clamp=10.0),
    dynamic: bool = False,
    groups: DynamicSampling = DynamicSampling(),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0, grader="math-verify"),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=3072),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2),
    run: Run = Run(name="ace", prompts_per_step=512, updates_per_step=4, epochs=10),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=2048),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model whose confident errors cost more.

    Args:
        dynamic: Leave out groups that are all right or all wrong and sample further prompts.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        rollout=groups if dynamic else group_rollout,
        estimator=group_normalized,
        grpo=grpo,
        objectives=[ace],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("ace/confidence", "ace/factor", "policy/surprise"))


if __name__ == "__main__":
    launch(main, PRESETS)
