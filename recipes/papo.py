"""PAPO (arXiv 2507.06448): GRPO that is also paid for looking.

on a laptop CPU, minutes:       python -m recipes.papo
Qwen2.5-VL-3B, Table 6:         python -m recipes.papo 3b
Qwen2.5-VL-7B, Table 6:         python -m recipes.papo 7b
on the DAPO base:               python -m recipes.papo d-7b
your own model and data:        python -m recipes.papo --model my/folder --dataset my.jsonl
"""

from __future__ import annotations

from mmrl.grpo import GRPO
from mmrl.losses.advantages import group_normalized
from mmrl.model.load import LoRA
from mmrl.objectives.papo import PAPO
from mmrl.perception.masking import PatchMask
from mmrl.recipes.shared.launch import (
    DRAWN,
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
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.groups import DynamicSampling, group_rollout
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.trainer import Trainer
from mmrl.types import Sampling, VisualBranch

NO_REF = {"gamma": 0.01, "eta_orig": 0.03, "eta_masked": 0.03}
SINGLE = {"eta_orig": 0.0, "eta_masked": 0.0}
DAPO = {"kl": 0.0, "clip_high": 0.28}
SMALL, LARGE = "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"
PRESETS = {
    EMBEDDED: Preset(
        {
            "model": EMBEDDED,
            "dataset": DRAWN,
            "data": {"style": "tag"},
            "papo": {"gamma": 0.002, "eta_orig": 0.0, "eta_masked": 0.0, "k3_max": 1.0},
            "mask": {"size": 16},
            "masked_grad": True,
            "grpo": {"kl": 0.0, "clip_high": 0.28},
            "sampling": {"group_size": 8, "top_p": 1.0, "max_tokens": 10},
            "optim": {"lr": 2e-4, "weight_decay": 0.0},
            "load": {"min_pixels": None, "max_pixels": None, "max_prompt_tokens": None},
            "run": {
                "prompts_per_step": 16,
                "updates_per_step": 1,
                "steps": 100,
                "eval_prompts": 512,
                "save_every": 20,
            },
        },
        note="tiny model, drawn pictures, CPU, minutes",
    ),
    "7b": Preset({"model": LARGE}, 7.0, "PAPO_G 7B: gamma 0.02, both etas 0.05, KL 0.01"),
    "3b": Preset(
        {"model": SMALL, "papo": SINGLE},
        3.0,
        "PAPO_G 3B: gamma 0.02, no entropy terms, KL 0.01",
    ),
    "qwen3-2b": Preset(
        {"model": "Qwen/Qwen3-VL-2B-Thinking", "papo": {"gamma": 0.01, **SINGLE}},
        2.0,
        "PAPO_G Qwen3-VL-2B: gamma 0.01",
    ),
    "3b-no-ref": Preset(
        {"model": SMALL, "papo": NO_REF, "grpo": {"kl": 0.0}},
        note="PAPO_G 3B without reference KL",
    ),
    "7b-no-ref": Preset(
        {"model": LARGE, "papo": NO_REF, "grpo": {"kl": 0.0}},
        note="PAPO_G 7B without reference KL",
    ),
    "d-3b": Preset(
        {"model": SMALL, "papo": NO_REF, "grpo": DAPO, "dynamic": True},
        note="PAPO_D 3B: on DAPO",
    ),
    "d-7b": Preset(
        {"model": LARGE, "papo": NO_REF, "grpo": DAPO, "dynamic": True},
        note="PAPO_D 7B: on DAPO",
    ),
}


def main(
    model: str = LARGE,
    dataset: str = "PAPOGalaxy/PAPO_ViRL39K_train",
    data: Data = Data(),
    papo: PAPO = PAPO(gamma=0.02, eta_orig=0.05, eta_masked=0.05),
    mask: PatchMask = PatchMask(ratio=0.6, size=14),
    masked_grad: bool = False,
    refresh_masked: bool = False,
    dynamic: bool = False,
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.3, kl=0.01),
    sampling: Sampling = Sampling(group_size=5, temperature=1.0, top_p=0.99, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2),
    run: Run = Run(name="papo", prompts_per_step=384, updates_per_step=3, epochs=2),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model with perception-aware policy optimisation.

    Args:
        model: Folder or hub name of a Qwen2.5-VL or Qwen3-VL model, or "embedded".
        dataset: JSONL, JSON, parquet or CSV file, folder, hub name, or drawn:lookup.
        data: Which rows, and how questions are put.
        papo: The paper's numbers.
        mask: The masked view.
        masked_grad: Let gradient flow through the masked branch (the paper's formula; the released code does not).
        refresh_masked: Score the masked branch again at each update instead of once per rollout.
        dynamic: Dynamic sampling: drop groups that are all right or all wrong (PAPO_D).
        grpo: The GRPO core.
        sampling: How answers are sampled.
        optim: The optimizer.
        run: Length, output, seed.
        load: Device, precision, frozen parts, pixel budget.
        lora: Adapters instead of full fine-tuning.
    """
    policy = open_policy(model, load, lora, run)
    prompts, heldout = open_data(dataset, data, run.seed)
    style = style_of(data.style)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=Rewards(accuracy=(0.9, style.accuracy), format=(0.1, style.format)),
        rollout=DynamicSampling(part="accuracy", low=0.01, high=0.99, rounds=20)
        if dynamic
        else group_rollout,
        estimator=group_normalized,
        grpo=grpo,
        branches={"masked": VisualBranch(mask, grad=masked_grad, refresh=refresh_masked)},
        objectives=[papo],
        sampling=sampling,
        optim=optim,
        run=run,
    )
    trainer.fit()
    summarise(
        run,
        trainer.steps,
        watch=("branch/masked/kl", "loss/perception"),
        advice="python -m recipes.papo --help, or your own data: python -m recipes.papo --model MODEL --dataset FILE",
    )


if __name__ == "__main__":
    launch(main, PRESETS)
