"""DRESS (arXiv 2311.10081): answers are learned together with feedback in words, and refined by advice.

on a laptop CPU, minutes:            python -m recipes.dress
a judge that writes feedback:        python -m recipes.dress 7b --dataset my.jsonl --judge.url http://host:8000/v1
critiques alone, no refinement:      python -m recipes.dress critique-7b --dataset my.jsonl
one that sees the pictures:          ... --pictures;  or one that reads what a column says of them: --known COLUMN

No policy gradient: a likelihood of each answer behind its score and critique, mixed with plain instructions. Evaluation
asks with the best score and a fixed critique in place. Reconstructed: mmrl/rollouts/dress.py says what. With an empty
--judge.url templates for right, wrong and the form stand in for the judge; the score is then called `score_rule`, and
such a run is no reproduction. A judge that has not seen the picture rewards fluent inventions.
"""

from typing import Any, Literal

from mmrl import GRPO, LoRA, Monitor, Optim, Rewards, Run, Sampling, Trainer
from mmrl.losses.advantages import uncentred
from mmrl.losses.surrogates import reinforce
from mmrl.recipes.shared.judge_server import JudgeServer
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, NOTE, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.recipes.shared.supervised import label_rollout
from mmrl.rewards.feedback import JudgedFeedback, RuleFeedback, Unpaid
from mmrl.rollouts.dress import DRESS, Conditioned, DRESSRollout

PRESETS = {
    # Without instructions: the rows' own answers would teach the tiny model more than any feedback.
    EMBEDDED: miniature(
        f"{NOTE}; a rule in place of the judge",
        judge={"url": ""},
        sampling={"group_size": 4},
        run={"prompts_per_step": 8},
        dress={"rounds": 2, "instruct": 0.0, "praise": "Right."},
    ),
    "7b": Preset("three rounds of feedback", 7.0),
    "critique-7b": Preset("critiques alone", dress={"rounds": 1, "refine": 0.0}),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="plain"),
    dress: DRESS = DRESS(rounds=3, refine=1.0, instruct=0.5, plain=0.1),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0),
    judge: JudgeServer = JudgeServer(),
    known: str = "",
    pictures: bool = False,
    unavailable: Literal["stop", "drop"] = "stop",
    grpo: GRPO = GRPO(reduction="token"),
    sampling: Sampling = Sampling(group_size=2, temperature=1.0, max_tokens=1024),
    optim: Optim = Optim(lr=1e-5, weight_decay=0.0, warmup_share=0.03, schedule="cosine"),
    run: Run = Run(name="dress", prompts_per_step=64, epochs=1),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=8192),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model on its answers and what is said of them.

    Args:
        known: Column that tells the judge what is known of the picture; empty: the row's answer.
        pictures: Show the pictures to the judge.
        unavailable: What an outage of the judge does: stop the run, or leave the answers out.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    style = style_of(data.style)
    parts: dict[str, Any] = {}
    if judge.url:
        feedback = JudgedFeedback(
            judge.judge(), known=known, pictures=pictures, on_unavailable=unavailable
        )
        parts["unpaid"] = (0.0, Unpaid(feedback))
    else:
        feedback = RuleFeedback()
    # Looked at only: what a row weighs in the loss is the method's.
    has_answers = "answer=" not in data.columns
    rewards = reward.rewards(style, **parts) if has_answers else Rewards(**parts)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=Conditioned(heldout, dress),
        rewards=rewards,
        rollout=DRESSRollout(
            feedback,
            policy.encode,
            label_rollout(policy),
            dress,
            part="score" if judge.url else "score_rule",
        ),
        estimator=uncentred,
        surrogate=reinforce,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    watched = ("loss/total", "reward/accuracy", "reward/score", "reward/score_rule")
    fit(trainer, watch=watched)


if __name__ == "__main__":
    launch(main, PRESETS)
