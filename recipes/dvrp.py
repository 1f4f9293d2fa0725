"""DVRP, Thinking with Deltas (arXiv 2601.06801): change when evidence goes, stay when only nuisance comes.

on a laptop CPU, minutes:       python -m recipes.dvrp
Qwen2.5-VL-7B, DVRP_G:          python -m recipes.dvrp 7b
Qwen2.5-VL-7B, DVRP_D:          python -m recipes.dvrp d-7b
medical questions:              python -m recipes.dvrp medical-7b --dataset my.jsonl
with entropy under the clean view as a guard:  python -m recipes.dvrp 7b --dvrp.lambda-orig 0.03

Gradient flows through both views, as the printed objective says; the public re-implementation has none (--no-grad).
"""

from __future__ import annotations

from mmrl.grpo import GRPO
from mmrl.losses.advantages import group_normalized
from mmrl.model.load import LoRA
from mmrl.objectives.dvrp import DVRP
from mmrl.perception.masking import PatchMask
from mmrl.perception.noise import DiffusionNoise
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

DAPO = {"dynamic": True, "grpo": {"clip_high": 0.28}}
MEDICAL = {"mask": {"ratio": 0.2}, "noise": {"t": 100}, "dataset": "train.jsonl"}
SMALL, LARGE = "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"
TINY = {"lambda_nec": 0.002, "lambda_rob": 0.01, "lambda_ent": 0.0, "lambda_orig": 0.0}
PRESETS = {
    EMBEDDED: Preset(miniature(dvrp=TINY, mask={"size": 16}, noise={"t": 300}), note=NOTE),
    "7b": Preset({}, 7.0, "DVRP_G 7B: both lambdas 0.01, entropy 0.05"),
    "3b": Preset({"model": SMALL}, 3.0, "DVRP_G 3B"),
    "d-7b": Preset(DAPO, note="DVRP_D 7B: on DAPO"),
    "d-3b": Preset({**DAPO, "model": SMALL}, note="DVRP_D 3B: on DAPO"),
    "medical-7b": Preset(MEDICAL, note="DVRP_G 7B for medical pictures: mask 0.2, noise 100"),
    "medical-3b": Preset({**MEDICAL, "model": SMALL}, note="DVRP_G 3B for medical pictures"),
}


def main(
    model: str = LARGE,
    dataset: str = "PAPOGalaxy/PAPO_ViRL39K_train",
    data: Data = Data(),
    dvrp: DVRP = DVRP(lambda_nec=0.01, lambda_rob=0.01, lambda_ent=0.05),
    mask: PatchMask = PatchMask(ratio=0.6, size=14),
    noise: DiffusionNoise = DiffusionNoise(t=500),
    grad: bool = True,
    dynamic: bool = False,
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.3),
    sampling: Sampling = Sampling(group_size=5, temperature=1.0, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2),
    run: Run = Run(name="dvrp", prompts_per_step=384, updates_per_step=3, epochs=3),
    monitor: Monitor = Monitor(probe_every=50),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model with the differential visual reasoning policy.

    Args:
        model: Folder or hub name of a Qwen2.5-VL or Qwen3-VL model, or "embedded".
        dataset: JSONL, JSON, parquet or CSV file, folder, hub name, or drawn:lookup.
        data: Which rows, and how questions are put.
        dvrp: The paper's numbers.
        mask: The view without evidence.
        noise: The view with nuisance; its strength fades over the run.
        grad: Let gradient flow through both views.
        dynamic: Dynamic sampling: drop groups that are all right or all wrong (DVRP_D).
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
        branches={
            dvrp.masked: VisualBranch(mask, grad=grad),
            dvrp.noisy: VisualBranch(noise, grad=grad),
        },
        objectives=[dvrp],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    trainer.fit()
    summarise(run, trainer.steps, watch=("dvrp/kl_masked", "dvrp/kl_noisy", "probe/gap"))


if __name__ == "__main__":
    launch(main, PRESETS)
