"""VPPO (arXiv 2510.09285): DAPO that learns from the tokens which depend on the picture.

on a laptop CPU, minutes:       python -m recipes.vppo
Qwen2.5-VL-7B:                  python -m recipes.vppo 7b
Qwen2.5-VL-32B:                 python -m recipes.vppo 32b
the DAPO baseline:              python -m recipes.vppo 7b --vppo.top-share 1 --vppo.beta-min 1
"""

from __future__ import annotations

from mmrl.grpo import GRPO
from mmrl.losses.advantages import group_normalized
from mmrl.model.load import LoRA
from mmrl.objectives.vppo import VPPO
from mmrl.perception.masking import PatchMask
from mmrl.recipes.shared.launch import (
    EMBEDDED,
    Data,
    Load,
    Preset,
    launch,
    open_data,
    open_policy,
    style_of,
    summarise,
)
from mmrl.recipes.shared.miniature import NOTE, miniature
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.groups import DynamicSampling, group_rollout
from mmrl.training.monitor import Monitor
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.trainer import Trainer
from mmrl.types import Sampling, VisualBranch

LARGE, HUGE = "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-32B-Instruct"
PRESETS = {
    EMBEDDED: Preset(
        miniature(vppo={"eta": 0.002}, mask={"size": 16}, dynamic=False), note=NOTE
    ),
    "7b": Preset({}, 7.0, "Qwen2.5-VL-7B"),
    "32b": Preset({"model": HUGE}, 32.0, "Qwen2.5-VL-32B"),
}


def main(
    model: str = LARGE,
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
        model: Folder or hub name of a Qwen2.5-VL or Qwen3-VL model, or "embedded".
        dataset: JSONL, JSON, parquet or CSV file, folder, hub name, or drawn:lookup.
        data: Which rows, and how questions are put.
        vppo: The paper's numbers.
        mask: The masked view that measures how much a token depends on the picture.
        shared_mask: One mask per prompt instead of one per answer (cheaper; the paper draws one per answer).
        dynamic: Dynamic sampling: drop groups that are all right or all wrong (DAPO).
        grpo: The GRPO core.
        sampling: How answers are sampled.
        optim: The optimizer.
        run: Length, output, seed.
        monitor: Blind probe, alarms, gradient norms.
        load: Device, precision, frozen parts, pixel budget.
        lora: Adapters instead of full fine-tuning.
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
    trainer.fit()
    summarise(run, trainer.steps, watch=("vppo/dependency", "vppo/trained"))


if __name__ == "__main__":
    launch(main, PRESETS)
