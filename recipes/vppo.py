"""VPPO (arXiv 2510.09285): DAPO that learns from the tokens which depend on the picture.

on a laptop CPU, minutes:       python -m recipes.vppo
Qwen2.5-VL-7B:                  python -m recipes.vppo 7b
Qwen2.5-VL-32B:                 python -m recipes.vppo 32b
Qwen3-VL-8B:                    python -m recipes.vppo qwen3-8b
the DAPO baseline:              python -m recipes.vppo 7b --vppo.top-share 1 --vppo.beta-min 1
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer, VisualBranch
from mmrl.losses.advantages import group_normalized
from mmrl.objectives.vppo import VPPO
from mmrl.perception.masking import PatchMask
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.machines import TWO_LARGE_NODES
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.rollouts.groups import DynamicSampling, group_rollout

HUGE = "Qwen/Qwen2.5-VL-32B-Instruct"
PRESETS = {
    EMBEDDED: miniature(
        vppo={"eta": 0.002}, mask={"size": 16}, dynamic=False, reward={"grader": "ours"}
    ),
    "7b": Preset("Qwen2.5-VL-7B", 7.0),
    "32b": Preset("Qwen2.5-VL-32B", 32.0, machine=TWO_LARGE_NODES, model=HUGE),
    "qwen3-8b": Preset(
        "VPPO-8B: Qwen3-VL-8B, eta 0.12, 130 steps, answers of 8,192 tokens",
        8.0,
        model="Qwen/Qwen3-VL-8B-Instruct",
        vppo={"eta": 0.12},
        sampling={"max_tokens": 8192},
        run={"steps": 130},
    ),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "chamber111/VPPO_ViRL39K_train",
    data: Data = Data(),
    vppo: VPPO = VPPO(top_share=0.4, beta_min=0.9, beta_max=None, eta=0.06),
    mask: PatchMask = PatchMask(ratio=0.5, size=14),
    shared_mask: bool = False,
    dynamic: bool = True,
    # As many rounds as it takes: the released configuration sets no limit.
    groups: DynamicSampling = DynamicSampling(rounds=0),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0, grader="mathruler"),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.28),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, top_p=0.99, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2, decay_all=True),
    run: Run = Run(name="vppo", prompts_per_step=384, updates_per_step=3, epochs=2),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model with visually-perceptive policy optimisation.

    Args:
        mask: The masked view that measures how much a token depends on the picture.
        shared_mask: One mask per prompt instead of one per answer (cheaper; the paper draws one per answer).
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    # Patches of the picture that the model reads, after the resize to the pixel limits.
    masked = VisualBranch(mask, share_in_group=shared_mask, stage="resized")
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        rollout=groups if dynamic else group_rollout,
        estimator=group_normalized,
        grpo=grpo,
        branches={vppo.masked: masked},
        objectives=[vppo],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("vppo/dependency", "vppo/trained"))


if __name__ == "__main__":
    launch(main, PRESETS)
