"""VOGUE (arXiv 2510.01444, later DUPL): explore where the picture is ambiguous.

on a laptop CPU, minutes:             python -m recipes.vogue
Qwen2.5-VL-7B, the released code:     python -m recipes.vogue 7b
Qwen2.5-VL-7B, as printed:            python -m recipes.vogue printed-7b
your own model and data:              python -m recipes.vogue --model my/folder --dataset my.jsonl

As released, answers are sampled from clean pictures, one coin per batch decides whether the noisy view gives a bonus,
and both bonuses come from the sampled token; the form of an answer is not paid. As printed, uncertainty and entropy are
sums over the vocabulary, and a prompt is answered under the noisy view with the annealed probability. The embedded
preset is the printed form, without flips and rotations: they would change the answers of its questions.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer, VisualBranch
from mmrl.losses.advantages import group_normalized
from mmrl.objectives.vogue import VOGUE
from mmrl.perception.noise import GaussianNoise
from mmrl.perception.perturb import ColourJitter, Flip, RandomRotation, ViewChain
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of
from mmrl.rollouts.groups import group_rollout
from mmrl.rollouts.noisy import NoisyPrompts

RELEASED = VOGUE(uncertainty="sampled", entropy="sampled", caps="sequential", draw="batch")
EXACT = {"uncertainty": "exact", "entropy": "exact", "caps": "simultaneous", "draw": "rollout"}
PRINTED = {"vogue": EXACT, "released_view": False, "noise": {"sigma": 0.4}}
SMALL = "Qwen/Qwen2.5-VL-3B-Instruct"
PRESETS = {
    EMBEDDED: miniature(**PRINTED, reward=OURS),
    "7b": Preset("Qwen2.5-VL-7B, released code", 7.0),
    "3b": Preset("Qwen2.5-VL-3B, released code", 3.0, model=SMALL),
    "qwen3-4b": Preset("Qwen3-VL-4B, released code", 4.0, model="Qwen/Qwen3-VL-4B-Instruct"),
    "qwen3-8b": Preset("Qwen3-VL-8B, released code", 8.0, model="Qwen/Qwen3-VL-8B-Instruct"),
    "printed-7b": Preset("Qwen2.5-VL-7B, as printed", **PRINTED),
    "printed-3b": Preset("Qwen2.5-VL-3B, as printed", model=SMALL, **PRINTED),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "XenoZLH/MMRL30k",
    data: Data = Data(split="train", style="box-inline"),
    vogue: VOGUE = RELEASED,
    noise: GaussianNoise = GaussianNoise(sigma=0.2),
    released_view: bool = True,
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0, grader="mathruler"),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.3),
    sampling: Sampling = Sampling(group_size=5, temperature=1.0, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2, decay_all=True),
    run: Run = Run(name="vogue", prompts_per_step=512, updates_per_step=4, steps=200),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=262_144, max_pixels=4_194_304, max_prompt_tokens=2048),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model with visual-uncertainty guided exploration.

    Args:
        noise: Gaussian noise of the noisy view.
        released_view: Flip, rotate and jitter the picture before the noise, as the released code does.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    turned = ViewChain((Flip(0.5, 0.5), RandomRotation(10.0), ColourJitter(0.15, 0.15), noise))
    # Noise lies on the pixels that the model reads: on the file's it would shrink with them.
    noisy = VisualBranch(turned if released_view else noise, stage="resized")
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        rollout=NoisyPrompts(policy, noisy, vogue.noisy, vogue.probability)
        if vogue.answer_kinds()
        else group_rollout,
        estimator=group_normalized,
        grpo=grpo,
        branches={vogue.noisy: noisy},
        objectives=[vogue],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("vogue/uncertainty", "vogue/bonus", "policy/surprise"))


if __name__ == "__main__":
    launch(main, PRESETS)
