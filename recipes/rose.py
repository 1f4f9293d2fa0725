"""ROSE: answers branch off each other where meanings part, and every segment has its own advantage.

on a laptop CPU, minutes:               python -m recipes.rose
8 answers, half of them branches:       python -m recipes.rose 7b --dataset my.jsonl
and shorter right answers earn more:    python -m recipes.rose length-7b --dataset my.jsonl

No arXiv number is known to us; the numbers are those of the released script (github.com/ZiqiZhao1/ROSE-rl). The
published models read text (Llama-3.2-3B and Qwen, on MATH); here it is a vision-language model on your rows. Needs an
engine that lets answers fork, which the one in this process does.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_centered
from mmrl.objectives.rose import ROSE
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.rollouts.groups import DynamicSampling, group_rollout
from mmrl.rollouts.rose import ROSERollout

PRESETS = {
    EMBEDDED: miniature(rose={"length": 0.5}, dynamic=False, grpo={"length_constant": 10}),
    "7b": Preset("the script: half of 8 answers branch off another, length is free", 7.0),
    "length-7b": Preset(
        "longer right answers lose what the shortest saves", rose={"length": 0.5}
    ),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="answer-open"),
    rose: ROSE = ROSE(restart=0.5, candidates=20, length=0.0),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0),
    dynamic: bool = True,
    groups: DynamicSampling = DynamicSampling(spread=True, rounds=20),
    grpo: GRPO = GRPO(kl=1e-3, reduction="constant", length_constant=2048),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2, decay_all=True),
    run: Run = Run(name="rose", prompts_per_step=512, updates_per_step=64, epochs=5),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model on trees of answers with segment advantages.

    Args:
        dynamic: Sample on until a step has enough groups that differ in reward.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        rollout=ROSERollout(
            inner=groups if dynamic else group_rollout, policy=policy, rose=rose
        ),
        # What ROSE is without branches and without the length term.
        estimator=group_centered,
        grpo=grpo,
        objectives=[rose],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/accuracy", "rose/branched", "answer/length"))


if __name__ == "__main__":
    launch(main, PRESETS)
