"""MSSR (arXiv 2512.18215): one answer per prompt, a remembered success rate as baseline, an entropy bonus.

on a laptop CPU, minutes:             python -m recipes.mssr
Qwen2.5-VL-7B:                        python -m recipes.mssr 7b
Qwen2.5-VL-3B:                        python -m recipes.mssr 3b
without the entropy bonus (MVSR):     python -m recipes.mssr mvsr-7b

A first pass answers every prompt once and sets the baselines, so the data must not be endless. Checkpoints keep the
memory.
"""

from functools import partial

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_centered
from mmrl.objectives.mssr import MSSR
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.rollouts.groups import FirstPass, group_rollout

PLAIN = {"mssr": {"lambda_entropy": 0.0}}
SMALL = "Qwen/Qwen2.5-VL-3B-Instruct"
TINY = {
    "data": {"style": "tag", "limit": 256},
    "reward": {"grader": "ours"},
    "grpo": {"kl": 0.01},
    "sampling": {"group_size": 1},
    "optim": {"max_grad_norm": 1.0},
    "run": {"prompts_per_step": 128},
}
PRESETS = {
    EMBEDDED: miniature(**TINY),
    "7b": Preset("Qwen2.5-VL-7B: 2048 prompts per step, one answer each", 7.0),
    "3b": Preset("Qwen2.5-VL-3B", 3.0, model=SMALL),
    "mvsr-7b": Preset("Qwen2.5-VL-7B without the entropy bonus", **PLAIN),
    "mvsr-3b": Preset("Qwen2.5-VL-3B without the entropy bonus", model=SMALL, **PLAIN),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "Osilly/Vision-R1-rl",
    data: Data = Data(split="train", style="box-inline"),
    mssr: MSSR = MSSR(
        lambda_entropy=0.4, gamma=2.0, eta_min=0.875, eta_max=0.96, target=0.01, window=10
    ),
    first_pass: bool = True,
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0, grader="mathruler"),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.3, kl=0.01),
    sampling: Sampling = Sampling(group_size=1, temperature=1.0, max_tokens=4096),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2, decay_all=True, max_grad_norm=0.5),
    run: Run = Run(name="mssr", prompts_per_step=2048, updates_per_step=16, steps=150),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=262_144, max_pixels=4_194_304, max_prompt_tokens=2048),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model with one answer per prompt.

    Args:
        first_pass: Answer every prompt once to set its baseline; off: every baseline starts at one half.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    memory = mssr.start_memory()
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        rollout=FirstPass(memory.start, policy) if first_pass else group_rollout,
        # A group of one has no mean but itself; its reward passes, and MSSR subtracts the remembered baseline.
        estimator=partial(group_centered, alone="reward"),
        grpo=grpo,
        objectives=[mssr],
        memories=[memory],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("mssr/value", "mssr/capped", "policy/surprise"))


if __name__ == "__main__":
    launch(main, PRESETS)
