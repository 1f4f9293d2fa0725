"""Causal reasoning (arXiv 2512.20760): exact answers about random causal models, at three levels.

on a laptop CPU, minutes:                    python -m recipes.causal_reasoning
what is seen, done, and would have been:     python -m recipes.causal_reasoning 7b   (3b)
one level:                                   … 7b --puzzles.mix causal-counterfactual
graphs as pictures (ours):                   python -m recipes.causal_reasoning picture-7b

Questions are drawn and answered exactly (data/pretext/tasks/causal_query.py, with what is the paper's and what is ours
of them). The paper trains models of language alone; here it is the vision-language model of its size.

Settings of the paper, by a detailed summary: GRPO or DAPO, 32 answers, batch 8, token means, lr 1e-6, 7,500 steps.
Lengths and everything else are ours. The embedded preset asks the tiny model about three variables: it learns the form
of an answer, which pays 0.2, and no arithmetic.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Rewards, Run, Sampling, Trainer
from mmrl.data.pretext.prompts import pretext_correct, pretext_part, pretext_reward
from mmrl.losses.advantages import group_normalized
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.opening import EMBEDDED, Load, open_policy
from mmrl.recipes.shared.pretext_data import Puzzles, miniature_pretext, open_pretext
from mmrl.recipes.shared.pretext_warmup import warmed_up_for

PICTURE = {"puzzles": {"mix": "causal-reasoning-picture"}}
PRESETS = {
    EMBEDDED: miniature_pretext(
        "miniature-causes", sampling={"max_tokens": 16}, run={"steps": 40}
    ),
    "7b": Preset("ten variables, three levels, in words, 7B", 7.0),
    "3b": Preset("the same, 3B", 3.0, model="Qwen/Qwen2.5-VL-3B-Instruct"),
    "picture-7b": Preset("graphs as pictures (ours), 7B", **PICTURE),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "drawn",
    puzzles: Puzzles = Puzzles("causal-reasoning"),
    grpo: GRPO = GRPO(kl=0.0, reduction="token"),
    sampling: Sampling = Sampling(group_size=32, temperature=1.0, max_tokens=4096),
    optim: Optim = Optim(lr=1e-6),
    run: Run = Run(name="causal_reasoning", prompts_per_step=8, steps=7_500),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_pixels=802_816, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model to reason about causes.

    Args:
        dataset: "drawn": questions are drawn and need no media.
    """
    data = open_pretext(dataset, puzzles, run)
    policy = open_policy(warmed_up_for(model, puzzles.mix), load, lora, run)
    trainer = Trainer(
        policy,
        prompts=data.train,
        heldout=data.heldout,
        rewards=Rewards(
            answer=pretext_reward,
            length=(0.0, pretext_part("length")),
            accuracy=(0.0, pretext_correct),
        ),
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
        settings={"puzzles": puzzles},
    )
    fit(trainer, watch=("reward/answer", "reward/accuracy", "reward/length"))


if __name__ == "__main__":
    launch(main, PRESETS)
