"""VPPO (arXiv 2510.09285): DAPO that learns from the tokens which depend on the picture.

on a laptop CPU, minutes:       python -m recipes.vppo
Qwen2.5-VL-7B:                  python -m recipes.vppo 7b
Qwen2.5-VL-32B:                 python -m recipes.vppo 32b
the DAPO baseline:              python -m recipes.vppo 7b --vppo.top-share 1 --vppo.beta-min 1
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Rewards, Run, Sampling, Trainer, VisualBranch
from mmrl.losses.advantages import group_normalized
from mmrl.objectives.vppo import VPPO
from mmrl.perception.masking import PatchMask
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy, style_of
from mmrl.rollouts.groups import DynamicSampling, group_rollout

HUGE = "Qwen/Qwen2.5-VL-32B-Instruct"
PRESETS = {
    EMBEDDED: miniature(vppo={"eta": 0.002}, mask={"size": 16}, dynamic=False),
    "7b": Preset("Qwen2.5-VL-7B", 7.0),
    "32b": Preset("Qwen2.5-VL-32B", 32.0, model=HUGE),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "PAPOGalaxy/PAPO_ViRL39K_train",
    data: Data = Data(),
    vppo: VPPO = VPPO(top_share=0.4, beta_min=0.9, beta_max=None, eta=0.06),
    mask: PatchMask = PatchMask(ratio=0.5, size=14),
    shared_mask: bool = False,
    dynamic: bool = True,
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.28),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2),
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
    policy = open_policy(model, load, lora, run)
    prompts, heldout = open_data(dataset, data, run.seed)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=Rewards(accuracy=style_of(data.style).accuracy),
        rollout=DynamicSampling(part="accuracy") if dynamic else group_rollout,
        estimator=group_normalized,
        grpo=grpo,
        branches={vppo.masked: VisualBranch(mask, share_in_group=shared_mask)},
        objectives=[vppo],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("vppo/dependency", "vppo/trained"))


if __name__ == "__main__":
    launch(main, PRESETS)
