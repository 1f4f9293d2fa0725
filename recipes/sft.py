"""Supervised fine-tuning with the same trainer: the label is the only answer, every token has advantage 1.

    python -m recipes.sft                                                     tiny model, drawn pictures, CPU
    python -m recipes.sft 3b --dataset my.jsonl --data.columns answer=response

The target is column `target` of a row if it has one, else its answer. Written as REINFORCE with the label as rollout,
so the loss is the mean negative log-likelihood (token mean, or sequence mean by flag).
"""

from mmrl import GRPO, LoRA, Optim, Rewards, Run, Sampling, Trainer
from mmrl.losses.surrogates import reinforce
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED
from mmrl.recipes.shared.opening import DRAWN, Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import style_of
from mmrl.recipes.shared.supervised import label_rollout, likelihood

PRESETS = {
    EMBEDDED: Preset(
        "tiny model, drawn pictures, CPU, a minute",
        model=EMBEDDED,
        dataset=DRAWN,
        data={"style": "tag"},
        sampling={"max_tokens": 12},
        optim={"lr": 5e-4},
        run={"prompts_per_step": 48, "steps": 60},
        load={"min_pixels": None, "max_pixels": None},
    ),
    "3b": Preset("Qwen2.5-VL-3B", 3.0, model="Qwen/Qwen2.5-VL-3B-Instruct"),
    "7b": Preset("Qwen2.5-VL-7B", 7.0),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="plain"),
    grpo: GRPO = GRPO(),
    # For the evaluation: in training nothing is sampled.
    sampling: Sampling = Sampling(group_size=1, temperature=0.0, max_tokens=512),
    optim: Optim = Optim(lr=1e-5, weight_decay=0.0, warmup=10, schedule="cosine"),
    run: Run = Run(name="sft", prompts_per_step=64, epochs=1),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520),
    lora: LoRA = LoRA(),
) -> None:
    """Fine-tune a vision-language model on given answers."""
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=Rewards(accuracy=style_of(data.style).accuracy),
        rollout=label_rollout(policy),
        estimator=likelihood,
        surrogate=reinforce,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
    )
    sharpen = f"python -m recipes.papo --model {run.folder}/model"
    fit(trainer, watch=("loss/total",), advice=sharpen)


if __name__ == "__main__":
    launch(main, PRESETS)
