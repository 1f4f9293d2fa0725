"""Supervised fine-tuning with the same trainer: the label is the only answer, every token has advantage 1.

    python -m recipes.sft                                                     tiny model, drawn pictures, CPU
    python -m recipes.sft 3b --dataset my.jsonl --data.columns answer=response

The target is column `target` of a row if it has one, else its answer. Written as REINFORCE with the label as rollout,
so the loss is the mean negative log-likelihood (token mean, or sequence mean by flag).
"""

from __future__ import annotations

from mmrl.grpo import GRPO
from mmrl.losses.surrogates import reinforce
from mmrl.model.load import LoRA
from mmrl.recipes.shared.embedded import likelihood
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
from mmrl.rollouts.groups import LabelRollout
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.trainer import Trainer
from mmrl.types import Sampling

PRESETS = {
    EMBEDDED: Preset(
        {
            "model": EMBEDDED,
            "dataset": DRAWN,
            "data": {"style": "tag"},
            "optim": {"lr": 5e-4, "weight_decay": 0.0},
            "load": {"min_pixels": None, "max_pixels": None, "max_prompt_tokens": None},
            "sampling": {"max_tokens": 12},
            "run": {"prompts_per_step": 48, "steps": 60},
        },
        note="tiny model, drawn pictures, CPU, a minute",
    ),
    "3b": Preset({"model": "Qwen/Qwen2.5-VL-3B-Instruct"}, 3.0, "Qwen2.5-VL-3B"),
    "7b": Preset({}, 7.0, "Qwen2.5-VL-7B"),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="plain"),
    grpo: GRPO = GRPO(),
    sampling: Sampling = Sampling(group_size=1, temperature=0.0, max_tokens=512),
    optim: Optim = Optim(lr=1e-5, weight_decay=0.0, warmup=10, schedule="cosine"),
    run: Run = Run(name="sft", prompts_per_step=64, epochs=1),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520),
    lora: LoRA = LoRA(),
) -> None:
    """Fine-tune a vision-language model on given answers."""
    policy = open_policy(model, load, lora, run)
    prompts, heldout = open_data(dataset, data, run.seed)
    style = style_of(data.style)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=Rewards(accuracy=style.accuracy),
        rollout=LabelRollout(
            policy.processing.encode_answer, lambda prompt: policy.encode(prompt).ids
        ),
        estimator=likelihood,
        surrogate=reinforce,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
    )
    trainer.fit()
    summarise(
        run,
        trainer.steps,
        watch=("loss/total",),
        advice=f"python -m recipes.papo --model {run.folder}/model",
    )


if __name__ == "__main__":
    launch(main, PRESETS)
