"""Rubric anchors (Rubicon, arXiv 2508.12790): answers are paid by a rubric of several criteria, some of them vetoes.

on a laptop CPU, minutes:                python -m recipes.rubric_anchors
first stage, what rules can check:       python -m recipes.rubric_anchors first-7b --dataset tasks.jsonl
second stage, open questions, a judge:   python -m recipes.rubric_anchors 7b --dataset open.jsonl
                                         --model runs/FIRST/model --judge.url http://host:8000/v1
your own rubric:                         ... --rubric mine.yaml --veto seen_hacks.yaml

A rubric is a YAML file (`mmrl/rewards/rubric.py`; ours are in `mmrl/rewards/rubrics/`), and a row may bring its own in
the column `rubric`. Criteria with a rule are checked; the others are asked of a text model on an OpenAI-compatible
server, in one request for each answer. It does not see the picture, so rows need a reference. If it is down the run
stops with a checkpoint, or the part is left out of the group (--unavailable drop). A rubric of rules alone needs no
judge; its part is called `rubric_rule`.

Training on both kinds of rows at once makes them fight, says the paper: hence two runs. After the first, look at the
answers of highest reward (samples in its report), write what they do to please into a rubric with floors, and give it
to the second as --veto.

Departures: no code is public, and the paper names its mechanisms without equations: aggregation and all numbers are
ours. Its filter before a stage keeps rows in the middle of a critic's scores; here groups outside --groups.low and
--groups.high are left out while training. The published model reads text (Qwen3-30B-A3B).
"""

from typing import Any, Literal

from mmrl import GRPO, LoRA, Monitor, Optim, Rewards, Run, Sampling, Trainer
from mmrl.losses.advantages import group_normalized
from mmrl.recipes.shared.judge_server import JudgeServer
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, NOTE, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import style_of
from mmrl.rewards.rubric import read_rubric
from mmrl.rewards.rubric_reward import rubric_reward
from mmrl.rollouts.groups import DynamicSampling, group_rollout

PRESETS = {
    EMBEDDED: miniature(
        f"{NOTE}; rules in place of the judge",
        judge={"url": ""},
        rubric="look_up",
        dynamic=False,
    ),
    "first-7b": Preset(
        "first stage: what rules can check",
        rubric="look_up",
        data={"style": "answer"},
        judge={"url": ""},
    ),
    "7b": Preset("second stage: open questions, a judge and a veto", 7.0, veto="hacks"),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="plain"),
    rubric: str = "describe",
    veto: str = "",
    judge: JudgeServer = JudgeServer(model="Qwen/Qwen2.5-72B-Instruct"),
    unavailable: Literal["stop", "drop"] = "stop",
    dynamic: bool = True,
    groups: DynamicSampling = DynamicSampling(part="total", low=0.05, high=0.95),
    grpo: GRPO = GRPO(),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6),
    run: Run = Run(name="rubric_anchors", prompts_per_step=64, epochs=1),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model by rubrics.

    Args:
        rubric: A file with a rubric, or one of ours: describe, look_up.
        veto: A second rubric, whose floors forbid: what fails one of them earns nothing. Empty: none.
        judge: Who scores criteria without a rule.
        unavailable: What an outage of the judge does: stop the run, or drop the part for the whole group.
        dynamic: Leave out groups outside the middle band of --groups, and take further questions.
    """
    used = read_rubric(rubric)
    if veto:
        used = used.guarded(read_rubric(veto))
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    style = style_of(data.style)
    asked = judge.judge() if judge.url else None
    graders = {"accuracy": style.accuracy, "format": style.format}
    paid = rubric_reward(used, asked, graders)
    # Under another name where rules alone score, so that no curve of them passes for a judge's.
    part = "rubric" if asked and used.judged else "rubric_rule"
    paying: dict[str, Any] = {part: (1.0, paid)}
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=Rewards(
            **paying,
            accuracy=(0.0, style.accuracy),
            correct="accuracy",
            on_unavailable=unavailable,
        ),
        rollout=groups if dynamic else group_rollout,
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
        settings={"rubric": used},
    )
    fit(trainer, watch=("reward/accuracy", f"reward/{part}"))


if __name__ == "__main__":
    launch(main, PRESETS)
