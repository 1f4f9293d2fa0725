"""EAD (arXiv 2510.05251): answers begin hot and end cold, in sampling and in every log-prob.

on a laptop CPU, minutes:           python -m recipes.ead
16 answers a prompt:                python -m recipes.ead 7b --dataset my.jsonl
8 and 4 answers, slower:            python -m recipes.ead 7b-n8 --dataset my.jsonl    (7b-n4)

The published models read text (Qwen2.5-Math and Llama on Numina-Math); here it is a vision-language model on your rows.
Evaluations are greedy or at `sampling.temperature`, not annealed.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_normalized
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.rollouts.ead import EAD, EADRollout

FEW = {"sampling": {"group_size": 8}, "optim": {"lr": 2e-6}}
FEWER = {"sampling": {"group_size": 4}, "optim": {"lr": 1e-6}}
PRESETS = {
    # Answers of ten tokens: what cools over thousands would not cool at all.
    EMBEDDED: miniature(ead={"tau_max": 1.2, "tau_min": 0.4, "d0": 0.5, "warmup": 1}),
    "7b": Preset("16 answers, from 1.2 to 0.1, learning rate 4e-6", 7.0),
    "7b-n8": Preset("8 answers, learning rate 2e-6", **FEW),
    "7b-n4": Preset("4 answers, learning rate 1e-6", **FEWER),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="answer-open"),
    ead: EAD = EAD(tau_max=1.2, tau_min=0.1, d0=25.0, kappa=20.0, warmup=10),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.28),
    sampling: Sampling = Sampling(group_size=16, temperature=1.0, max_tokens=3072),
    optim: Optim = Optim(lr=4e-6, weight_decay=1e-2, decay_all=True),
    run: Run = Run(name="ead", prompts_per_step=1024, updates_per_step=4, epochs=1),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model on answers that are sampled at annealed temperatures.

    Args:
        ead: The schedule of the temperature, in place of sampling.temperature.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    trainer = Trainer(
        open_policy(model, load, lora, run),
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        rollout=EADRollout(ead),
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/accuracy", "policy/mismatch", "policy/surprise"))


if __name__ == "__main__":
    launch(main, PRESETS)
