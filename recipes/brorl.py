"""BroRL (arXiv 2510.01180): hundreds of answers to each prompt, in place of more steps.

on a laptop CPU, minutes:       python -m recipes.brorl
512 answers a prompt:           python -m recipes.brorl 7b --dataset my.jsonl
256 answers a prompt:           python -m recipes.brorl 7b-256 --dataset my.jsonl

Nothing of GRPO changes but the size of the groups. The more answers a prompt has, the less of the probability of right
ones is left unsampled, and the term by which unsampled answers can lower it goes to 0. A prompt and its pictures are
read once, however many answers it has, and a pass holds only as many answers as fit (`run.tokens_per_pass`).

Departures: there is no official code. 512 answers against 16 are the numbers generally quoted; the learning rate grows
with the root of the answers in a step (2e-6 at 128 prompts x 16 answers is ours), and prompts are fewer, both ours. The
published run continues a model of 1.5 billion parameters after 3,000 steps; here it is a vision-language model.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_normalized
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of

MANY = {"sampling": {"group_size": 256}, "optim": {"lr": 2.8e-6}}
PRESETS = {
    # As many answers a step as other recipes have in two.
    EMBEDDED: miniature(sampling={"group_size": 64}, run={"prompts_per_step": 4}),
    "7b": Preset("512 answers to each of 16 prompts", 7.0),
    "7b-256": Preset("256 answers to each of 16 prompts", **MANY),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="answer-open"),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.28),
    sampling: Sampling = Sampling(group_size=512, temperature=1.0, max_tokens=2048),
    optim: Optim = Optim(lr=4e-6, weight_decay=1e-2, decay_all=True),
    run: Run = Run(name="brorl", prompts_per_step=16, updates_per_step=1, epochs=1),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model on hundreds of answers to each prompt."""
    prompts, heldout = open_data(dataset, data, run.seed)
    trainer = Trainer(
        open_policy(model, load, lora, run),
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/accuracy", "reward/group_std"))


if __name__ == "__main__":
    launch(main, PRESETS)
