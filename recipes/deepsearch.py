"""DeepSearch (arXiv 2509.25454): a tree search answers each prompt, and its values are what tokens are paid.

on a laptop CPU, minutes:               python -m recipes.deepsearch
8 ways on, 8 answers, 64 runs deep:     python -m recipes.deepsearch 7b --dataset my.jsonl
open leaves by their entropy as well:   python -m recipes.deepsearch entropy-7b --dataset my.jsonl

Right answers to hard prompts are kept, and take a place of the group when the prompt comes again; what is kept is a
part of the run and goes on with it. The published model reads text (1.5 billion parameters, mathematics); here it is a
vision-language model on your rows. Needs an engine that lets answers fork, which the one in this process does.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_centered
from mmrl.objectives.deepsearch import DeepSearch
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.rollouts.deepsearch import DeepSearchRollout

PRESETS = {
    # Runs of two tokens, of which a short answer has three; the last is always the same, so that each answer is found
    # three times. Few rows, so that prompts come again.
    EMBEDDED: miniature(
        data={"limit": 32},
        deepsearch={"chunks": 5, "width": 3, "answers": 24, "nodes": 64},
        grpo={"overlong_buffer": 0},
        run={"prompts_per_step": 8},
    ),
    "7b": Preset("8 ways on, 8 answers, 64 runs deep", 7.0),
    "entropy-7b": Preset("open leaves by entropy as well", deepsearch={"by_entropy": 0.4}),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="answer-open"),
    deepsearch: DeepSearch = DeepSearch(chunks=64, width=8, answers=8, by_depth=0.01),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0),
    grpo: GRPO = GRPO(
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=10.0,
        overlong_buffer=4096,
        overlong_factor=1.0,
    ),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=16384),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2, decay_all=True),
    run: Run = Run(name="deepsearch", prompts_per_step=256, updates_per_step=8, epochs=5),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model on answers that a tree search finds.

    Args:
        sampling: How tokens are drawn; group_size is that of prompts that are not searched.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    trainer = Trainer(
        open_policy(model, load, lora, run),
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        rollout=DeepSearchRollout(deepsearch=deepsearch),
        # What DeepSearch is without a search, up to the factor between 0, 1 and -1, 1.
        estimator=group_centered,
        grpo=grpo,
        objectives=[deepsearch],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/accuracy", "deepsearch/searched", "deepsearch/nodes"))


if __name__ == "__main__":
    launch(main, PRESETS)
