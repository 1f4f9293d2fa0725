"""DCPO (arXiv 2509.02333): clip bounds from each token's probability, advantages over all visits to a prompt.

on a laptop CPU, minutes:                            python -m recipes.dcpo
the 7B model, bounds of the paper's examples:        python -m recipes.dcpo 7b --dataset ROWS
bounds of the released script:                       python -m recipes.dcpo script-7b --dataset ROWS
dynamic bounds alone:                                python -m recipes.dcpo 7b --dataset ROWS --dcpo.no-smooth

What is remembered of a prompt is keyed by its id, and checkpoints keep it: rows need ids of their own, and it takes
several epochs to matter. No group is filtered, since those of one mind teach by what is remembered.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.surrogates import Bounded, clipped
from mmrl.objectives.dcpo import DCPO
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of

PRESETS = {
    # Few prompts, so that each is visited several times, and two updates, so that there is a ratio to bound.
    EMBEDDED: miniature(
        reward=OURS, data={"style": "tag", "limit": 128}, run={"updates_per_step": 2}
    ),
    "7b": Preset("DCPO with the bounds of the paper's examples", 7.0),
    "script-7b": Preset(
        "the bounds of the released script", dcpo={"eps_low": 0.2, "eps_high": 0.28}
    ),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(),
    dcpo: DCPO = DCPO(eps_low=0.16, eps_high=0.2, cap=10.0),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0, grader="math-verify"),
    grpo: GRPO = GRPO(dual_clip=10.0, reduction="sequence"),
    sampling: Sampling = Sampling(group_size=16, temperature=1.0, max_tokens=3072),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2),
    run: Run = Run(name="dcpo", prompts_per_step=512, updates_per_step=4, epochs=20),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=1024),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model with dynamic clipping and smooth advantages."""
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        surrogate=Bounded(clipped, dcpo.bounds),
        grpo=grpo,
        objectives=[dcpo],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("dcpo/visits", "dcpo/teaching", "policy/clip_high"))


if __name__ == "__main__":
    launch(main, PRESETS)
