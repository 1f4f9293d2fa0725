"""AMPO (arXiv 2510.02227): several teachers, asked only where all answers of a group are wrong.

on a laptop CPU, minutes:               python -m recipes.ampo
8 answers, 2 of up to 4 teachers:       python -m recipes.ampo 7b --dataset my.jsonl
teachers drawn at random:               python -m recipes.ampo random-7b --dataset my.jsonl
your own column of teachers' answers:   python -m recipes.ampo 7b --dataset my.jsonl --teachers solutions_of_four

Rows need the teachers' answers in the column `solutions`, best with their names (`mmrl.rollouts.teachers` says in which
forms); rows without, and groups with a right answer, are Dr. GRPO. The paper trains Qwen2.5-7B-Instruct on long chains
of four teachers; here it is a vision-language model on your rows, whose teachers see the same pictures. On drawn
look-ups three teachers work the answer out in different ways, one of them wrongly.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_centered
from mmrl.objectives.ampo import AMPO
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of
from mmrl.recipes.shared.teacher_data import WORKED, Worked
from mmrl.rollouts.ampo import AMPORollout, Comprehension

TOKEN_MEAN = {"reduction": "token", "length_constant": 0, "entropy": 0.0, "kl": 0.0}
PRESETS = {
    # Small groups, of which many fail, and one place for three teachers: there is something to choose.
    EMBEDDED: miniature(
        teachers=WORKED,
        ampo={"most": 1},
        reward=OURS,
        grpo={**TOKEN_MEAN, "clip_high": 0.28},
        sampling={"group_size": 4, "max_tokens": 10},
    ),
    "7b": Preset("8 answers; where all fail, 2 teachers that the policy can follow", 7.0),
    "2b": Preset(
        "Qwen3-VL-2B in place of Qwen2.5-1.5B", 2.0, model="Qwen/Qwen3-VL-2B-Instruct"
    ),
    "random-7b": Preset("teachers drawn at random", ampo={"choice": "random"}),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(),
    ampo: AMPO = AMPO(most=2, choice="probability", shaping="saturating", floor=0.1),
    teachers: str = "solutions",
    reward: RewardWeights = RewardWeights(accuracy=0.9, format=0.1, grader="math-verify"),
    grpo: GRPO = GRPO(
        clip_low=0.2,
        clip_high=0.2,
        dual_clip=10.0,
        entropy=1e-3,
        reduction="constant",
        length_constant=8192,
    ),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=8192),
    optim: Optim = Optim(lr=1e-6, weight_decay=0.1, decay_all=True),
    run: Run = Run(name="ampo", prompts_per_step=128, updates_per_step=2, steps=510, epochs=30),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model with the help of several teachers where it fails.

    Args:
        teachers: Column that holds the teachers' answers.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    if teachers == WORKED:  # drawn rows bring no teachers along
        prompts = Worked(prompts)
    policy = open_policy(model, load, lora, run)
    style = style_of(data.style)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style),
        rollout=AMPORollout(
            policy.processing.encode_answer,
            column=teachers,
            ampo=ampo,
            score=Comprehension(policy, style.read, ampo.choice, run.tokens_per_pass),
        ),
        estimator=group_centered,
        grpo=grpo,
        objectives=[ampo],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/accuracy", "teachers/asked", "teachers/answers"))


if __name__ == "__main__":
    launch(main, PRESETS)
