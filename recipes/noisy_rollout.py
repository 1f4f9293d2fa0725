"""NoisyRollout (arXiv 2504.13055): half of each group is sampled from a noisy picture and trained as if it were clean.

on a laptop CPU, minutes:            python -m recipes.noisy_rollout
Qwen2.5-VL-7B on Geometry3K:         python -m recipes.noisy_rollout 7b
Qwen2.5-VL-7B on K12:                python -m recipes.noisy_rollout 7b-k12 --dataset k12.jsonl
Qwen2.5-VL-32B on Geometry3K:        python -m recipes.noisy_rollout 32b

Only the sampler sees noise, and clean and noisy answers share one group. Not offered: the entropy bonus of 0.001 of the
code, which the paper does not mention.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Rewards, Run, Sampling, Trainer, VisualBranch
from mmrl.losses.advantages import group_normalized
from mmrl.losses.schedules import Sigmoid
from mmrl.perception.noise import DiffusionNoise
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy, style_of
from mmrl.rollouts.noisy import NoisyRollout

K12 = {
    "dataset": "train.jsonl",
    "noise": {"t": 450, "anneal": Sigmoid(1.0, 30.0, 40 / 120)},
    "run": {"steps": 120},
}
HUGE = "Qwen/Qwen2.5-VL-32B-Instruct"
BIG = {"model": HUGE, "sampling": {"group_size": 8}, "noise": {"t": 450}}
PRESETS = {
    EMBEDDED: miniature(noise={"t": 300}, load={"freeze": ()}),
    "7b": Preset("7B on Geometry3K: noise 500, 6 + 6 answers, 60 steps", 7.0),
    "7b-k12": Preset("7B on K12: noise 450, 120 steps", **K12),
    "32b": Preset("32B on Geometry3K: noise 450, 4 + 4 answers", 32.0, **BIG),
    "32b-k12": Preset("32B on K12", **{**BIG, **K12}),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "hiyouga/geometry3k",
    data: Data = Data(split="train"),
    share: float = 0.5,
    noise: DiffusionNoise = DiffusionNoise(
        t=500, anneal=Sigmoid(start=1.0, steepness=30.0, middle=40 / 60)
    ),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2),
    sampling: Sampling = Sampling(group_size=12, temperature=1.0, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2),
    run: Run = Run(name="noisy_rollout", prompts_per_step=512, updates_per_step=4, steps=60),
    monitor: Monitor = Monitor(),
    load: Load = Load(freeze=("vision",), max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model on answers to clean and to noisy pictures.

    Args:
        share: Share of each group that is sampled from the noisy picture.
        noise: First timestep of the diffusion noise and how it fades over the run.
        sampling: How answers are sampled; group_size counts clean and noisy ones.
    """
    policy = open_policy(model, load, lora, run)
    prompts, heldout = open_data(dataset, data, run.seed)
    style = style_of(data.style)
    # Noise lies on the pixels that the model reads: on the file's it would shrink with them.
    noisy = VisualBranch(noise, stage="resized")
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=Rewards(accuracy=(0.9, style.accuracy), format=(0.1, style.format)),
        rollout=NoisyRollout(policy, noisy, share=share),
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("rollout/noisy_answers", "policy/sampler_gap"))


if __name__ == "__main__":
    launch(main, PRESETS)
