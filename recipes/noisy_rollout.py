"""NoisyRollout (arXiv 2504.13055): half of each group is sampled from a noisy picture and trained as if it were clean.

on a laptop CPU, minutes:            python -m recipes.noisy_rollout
Qwen2.5-VL-7B on Geometry3K:         python -m recipes.noisy_rollout 7b
Qwen2.5-VL-7B on K12:                python -m recipes.noisy_rollout 7b-k12
Qwen2.5-VL-32B on Geometry3K:        python -m recipes.noisy_rollout 32b

Only the sampler sees noise, and clean and noisy answers share one group. The entropy bonus and the missing dual clip
are those of the code; the paper does not mention them.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer, VisualBranch
from mmrl.losses.advantages import group_normalized
from mmrl.losses.schedules import Sigmoid
from mmrl.perception.noise import DiffusionNoise
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.machines import TWO_LARGE_NODES
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of
from mmrl.rollouts.noisy import NoisyRollout

# Steepness, and the step at which half of the noise is left as a share of the run.
K12 = {
    "dataset": "xyliu6/k12-freeform",
    "noise": {"t": 450, "anneal": Sigmoid(1.0, 60.0, 40 / 120)},
    "run": {"steps": 120},
}
BIG = {
    "machine": TWO_LARGE_NODES,
    "model": "Qwen/Qwen2.5-VL-32B-Instruct",
    "sampling": {"group_size": 8},
}
BIG_GEOMETRY = {
    **BIG,
    "noise": {"t": 450, "anneal": Sigmoid(1.0, 30.0, 35 / 40)},
    "run": {"steps": 40},
}
BIG_K12 = {
    **BIG,
    "dataset": "xyliu6/k12-freeform",
    "noise": {"t": 450, "anneal": Sigmoid(1.0, 60.0, 35 / 70)},
    "run": {"steps": 70},
}
PRESETS = {
    EMBEDDED: miniature(
        noise={"t": 300},
        load={"freeze": ()},
        grpo={"entropy": 0.0, "dual_clip": 3.0},
        reward=OURS,
    ),
    "7b": Preset("7B on Geometry3K: noise 500, 6 + 6 answers, 60 steps", 7.0),
    "7b-k12": Preset("7B on K12: noise 450, 120 steps", **K12),
    "32b": Preset(
        "32B on Geometry3K: noise 450, 4 + 4 answers, 40 steps", 32.0, **BIG_GEOMETRY
    ),
    "32b-k12": Preset("32B on K12: 70 steps", **BIG_K12),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "xyliu6/geometry3k",
    data: Data = Data(split="train", style="box-system"),
    share: float = 0.5,
    noise: DiffusionNoise = DiffusionNoise(
        t=500, anneal=Sigmoid(start=1.0, steepness=30.0, middle=40 / 60)
    ),
    reward: RewardWeights = RewardWeights(accuracy=0.9, format=0.1, grader="mathruler"),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2, dual_clip=None, entropy=1e-3),
    sampling: Sampling = Sampling(group_size=12, temperature=1.0, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2, decay_all=True),
    run: Run = Run(name="noisy_rollout", prompts_per_step=512, updates_per_step=4, steps=60),
    monitor: Monitor = Monitor(),
    load: Load = Load(
        freeze=("vision",), min_pixels=262_144, max_pixels=1_000_000, max_prompt_tokens=2048
    ),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model on answers to clean and to noisy pictures.

    Args:
        share: Share of each group that is sampled from the noisy picture.
        noise: First timestep of the diffusion noise and how it fades over the run.
        sampling: How answers are sampled; group_size counts clean and noisy ones.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    # Noise lies on the pixels that the model reads: on the file's it would shrink with them.
    noisy = VisualBranch(noise, stage="resized")
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        rollout=NoisyRollout(policy, noisy, share=share),
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("rollout/noisy_answers", "policy/mismatch"))


if __name__ == "__main__":
    launch(main, PRESETS)
