"""NGRPO (arXiv 2509.18851): each group is compared with a virtual answer of the largest reward.

on a laptop CPU, minutes:                python -m recipes.ngrpo
the 7B model:                            python -m recipes.ngrpo 7b --dataset ROWS
its half without the virtual answer:     python -m recipes.ngrpo 7b --dataset ROWS --ngrpo.virtual 0

Groups that are all wrong teach, those that are all right are left out and replaced. `--ngrpo.r-max` is the largest sum
that an answer can earn; raise it with the weights of the reward.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.ngrpo import NGRPO
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of
from mmrl.rollouts.groups import DynamicSampling, group_rollout

PRESETS = {
    EMBEDDED: miniature(reward=OURS, grpo={"clip_low": 0.16, "clip_high": 0.24}, dynamic=False),
    "7b": Preset("NGRPO, one virtual answer", 7.0),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(),
    ngrpo: NGRPO = NGRPO(r_max=1.0, virtual=1),
    dynamic: bool = True,
    # All-wrong groups stay: only a mean of (almost) 1 is dropped.
    groups: DynamicSampling = DynamicSampling(low=-1.0, high=0.99, rounds=0),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0, grader="math-verify"),
    grpo: GRPO = GRPO(clip_low=0.16, clip_high=0.24, dual_clip=None),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=3072),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2),
    run: Run = Run(name="ngrpo", prompts_per_step=1024, updates_per_step=4, epochs=20),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=1024),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model that learns from groups which are all wrong.

    Args:
        dynamic: Leave out groups that are all right and sample further prompts.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        rollout=groups if dynamic else group_rollout,
        estimator=ngrpo,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/even_groups", "policy/clip_low", "policy/surprise"))


if __name__ == "__main__":
    launch(main, PRESETS)
