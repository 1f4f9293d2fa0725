"""Chain-of-Symbol (arXiv 2305.10276): stacks of bricks, with symbols in the place of sentences.

on a laptop CPU, minutes:                    python -m recipes.chain_of_symbol
in words and pictures, symbols first:        python -m recipes.chain_of_symbol 7b   (3b)
the same without symbols, to compare with:   python -m recipes.chain_of_symbol words-7b

The paper prompts: relations are written as short symbols, B//A for "A is on top of B", before the answer. Here the same
form is asked for in the thinking, and the answer is paid (data/pretext/tasks/brick_stack.py): 1 if exact, a little for
a right beginning. Its Brick World and its symbols are the paper's; training on it, pictures, pay and all numbers are
ours: inspired by it. The embedded preset asks for two or three bricks in words, without symbols.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Rewards, Run, Sampling, Trainer
from mmrl.data.pretext.prompts import pretext_correct, pretext_part, pretext_reward
from mmrl.losses.advantages import group_normalized
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.opening import EMBEDDED, Load, open_policy
from mmrl.recipes.shared.pretext_data import Puzzles, miniature_pretext, open_pretext
from mmrl.recipes.shared.pretext_warmup import warmed_up_for

WORDS = {"puzzles": {"mix": "brick-world"}}
PRESETS = {
    EMBEDDED: miniature_pretext("miniature-bricks", run={"steps": 40}),
    "7b": Preset("three to eight bricks, symbols first, 7B", 7.0),
    "3b": Preset("the same, 3B", 3.0, model="Qwen/Qwen2.5-VL-3B-Instruct"),
    "words-7b": Preset("the same without symbols, 7B", **WORDS),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "drawn",
    puzzles: Puzzles = Puzzles("chain-of-symbol"),
    grpo: GRPO = GRPO(kl=0.0),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6),
    run: Run = Run(name="chain_of_symbol", prompts_per_step=64, steps=200),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_pixels=802_816, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model to plan with symbols.

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
            prefix=(0.0, pretext_part("prefix")),
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
    fit(trainer, watch=("reward/answer", "reward/accuracy", "reward/prefix"))


if __name__ == "__main__":
    launch(main, PRESETS)
