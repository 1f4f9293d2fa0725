"""GRPO (arXiv 2402.03300): answers are compared within the group of their question; what all others build on.

on a laptop CPU, minutes:       python -m recipes.grpo     (your own: --model my/folder --dataset my.jsonl)
Qwen2.5-VL-7B:                  python -m recipes.grpo 7b
Qwen2.5-VL-3B:                  python -m recipes.grpo 3b

Departures from the paper: no reference KL, clip-higher, token-mean reduction (all are flags). The same step in plain
calls, to be read: recipes/grpo_step.py. The baseline of PAPO's tables is `python -m recipes.papo grpo-7b`.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of

LONG = {"steps": 100, "eval_prompts": 512, "save_every": 50}
PRESETS = {
    EMBEDDED: miniature(run=LONG, monitor=None),
    "7b": Preset("Qwen2.5-VL-7B", 7.0),
    "3b": Preset("Qwen2.5-VL-3B", 3.0, model="Qwen/Qwen2.5-VL-3B-Instruct"),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "PAPOGalaxy/PAPO_ViRL39K_train",
    data: Data = Data(),
    reward: RewardWeights = RewardWeights(accuracy=0.9, format=0.1),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.3),
    sampling: Sampling = Sampling(group_size=5, top_p=0.99, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2),
    run: Run = Run(name="grpo", prompts_per_step=128, epochs=1),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model with group-relative policy optimisation."""
    prompts, heldout = open_data(dataset, data, run.seed)
    trainer = Trainer(
        open_policy(model, load, lora, run),
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/accuracy",))


if __name__ == "__main__":
    launch(main, PRESETS)
