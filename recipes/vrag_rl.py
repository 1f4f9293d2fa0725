"""VRAG-RL (arXiv 2505.22019): answers search for pages and look closer at them, and are paid for both.

on a laptop CPU, minutes:      python -m recipes.vrag_rl
Qwen2.5-VL-7B and a judge:     python -m recipes.vrag_rl 7b --dataset my.jsonl --pages.file pages.jsonl \\
                                   --judge.url http://host:8000/v1
from a cold start, no KL:      python -m recipes.vrag_rl cold-7b --dataset my.jsonl --pages.file pages.jsonl
search alone is paid as usual: python -m recipes.vrag_rl 7b --pay.retrieval 0 ...

r = 0.7·answer + 0.1·pattern + 0.2·retrieval, and 0 without <search> and <answer> (mmrl/rewards/vrag.py says what is
repaired). Rows need `reference_pages`, the ids of the pages that hold the answer, or VRAG-RL's `meta_info`; pages are a
table of id, image and caption. The published retriever embeds pages; here captions are searched by their words (or a
retriever of yours: mmrl/tools/search.py). With an empty --judge.url a rule compares answers: the part is then called
`answer_rule`, and such a run is no reproduction. The published model was first taught, supervised; that stage is yours.
"""

from dataclasses import dataclass
from typing import Any, Literal

from mmrl import GRPO, LoRA, Monitor, Optim, Rewards, Run, Sampling, Trainer
from mmrl.ground.require import require
from mmrl.losses.advantages import group_normalized
from mmrl.recipes.shared.closer_data import PAGES, USE, closer_model
from mmrl.recipes.shared.judge_server import JudgeServer
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, NOTE, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.tool_boxes import Pages, told
from mmrl.rewards.vrag import JudgedPage, NearAnswer, Retrieval, answer_pattern
from mmrl.rollouts.tool_use import ToolRollout
from mmrl.tools.toolbox import ToolUse

PRESETS = {
    EMBEDDED: miniature(
        f"{NOTE}; a rule in place of the judge",
        dataset="drawn:pages",
        pages=PAGES,
        judge={"url": ""},
        # "red circle" is near "blue circle", and wrong.
        pay={"near": 1.0},
        use=USE,
        sampling={"max_tokens": 64},
    ),
    "7b": Preset("Qwen2.5-VL-7B after a supervised stage", 7.0),
    "cold-7b": Preset("the same from a cold start", grpo={"kl": 0.0}),
    "3b": Preset("the same numbers, the 3 B model", 3.0, model="Qwen/Qwen2.5-VL-3B-Instruct"),
}


@dataclass(frozen=True)
class Pay:
    """What the parts weigh."""

    answer: float = 0.7
    """The right answer."""
    pattern: float = 0.1
    """A search and an answer in their tags; without them nothing is paid."""
    retrieval: float = 0.2
    """The reference pages, early among those that were found (NDCG)."""
    column: str = "reference_pages"
    """Column with the ids of the reference pages."""
    repeats: bool = False
    """Let a page that is found again pay again, as in the official code."""
    near: float = 0.5
    """Without a judge: smallest likeness (ANLS) of an answer that is right; 1: equal up to case and spaces."""

    def __post_init__(self) -> None:
        weights = {"answer": self.answer, "pattern": self.pattern, "retrieval": self.retrieval}
        near = (0 < self.near <= 1, "in (0, 1]")
        allowed = {name: (0 <= weight <= 100, "0 to 100") for name, weight in weights.items()}
        require(
            self,
            **allowed,
            near=near,
            column=(bool(self.column.strip()), "the name of a column"),
        )


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="tag"),
    pages: Pages = Pages(),
    use: ToolUse = ToolUse(max_turns=4, max_observation=512),
    pay: Pay = Pay(answer=0.7, pattern=0.1, retrieval=0.2),
    judge: JudgeServer = JudgeServer(),
    unavailable: Literal["stop", "drop"] = "stop",
    grpo: GRPO = GRPO(kl=0.01, clip_low=0.2, clip_high=0.2),
    sampling: Sampling = Sampling(group_size=5, temperature=1.0, max_tokens=10_240),
    optim: Optim = Optim(lr=1e-6),
    run: Run = Run(name="vrag_rl", prompts_per_step=32, epochs=1),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=401_408, max_prompt_tokens=8192),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model that searches pages and looks closer.

    Args:
        unavailable: What an outage of the judge does: stop the run, or drop the part for the whole group.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(closer_model(model), load, lora, run)
    toolbox = pages.toolbox(policy.processing, use, prompts)
    # Under another name when a rule stands in, so that no curve of it passes for the paper's.
    answer: dict[str, Any] = {"answer_rule": (pay.answer, NearAnswer(pay.near))}
    if judge.url:
        answer = {"answer": (pay.answer, JudgedPage(judge.judge()))}
    trainer = Trainer(
        policy,
        prompts=told(prompts, toolbox, pages.told),
        heldout=told(heldout, toolbox, pages.told),
        rewards=Rewards(
            **answer,
            pattern=(pay.pattern, answer_pattern),
            retrieval=(pay.retrieval, Retrieval(pay.column, pay.repeats)),
            gate="pattern",
            correct=next(iter(answer)),
            on_unavailable=unavailable,
        ),
        rollout=ToolRollout(policy=policy, toolbox=toolbox),
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(
        trainer, watch=("reward/answer_rule", "reward/answer", "reward/retrieval", "tool/calls")
    )


if __name__ == "__main__":
    launch(main, PRESETS)
