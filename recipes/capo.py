"""CAPO (arXiv 2508.02298): a language model names the wrong steps of an answer, and their tokens are paid less.

on a laptop CPU, minutes:      python -m recipes.capo
7B, votes of the majority:     python -m recipes.capo 7b --dataset my.jsonl --judge.url http://host:8000/v1
3B, all readings must agree:   python -m recipes.capo 3b --dataset my.jsonl --judge.url http://host:8000/v1
one reading, the likeliest:    python -m recipes.capo greedy-7b --dataset my.jsonl --judge.url http://host:8000/v1

Steps are what stands between blank lines. A text model on an OpenAI-compatible server reads every answer
--capo.critiques times; it sees the reference, not the picture. If it is down the run stops with a checkpoint, or the
group keeps GRPO's advantage (--unavailable drop). With an empty --judge.url a rule stands in, which knows arithmetic
only: its part is called `critique_rule`, and such a run is no reproduction. On drawn look-ups every word is a step,
and a colour or shape that the answer does not have is wrong. The published models read text.
"""

from typing import Literal

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.data.drawn.scenes import COLOURS, SHAPES
from mmrl.ground.steps import BLANK_LINES
from mmrl.losses.advantages import group_normalized
from mmrl.objectives.capo import CAPO
from mmrl.recipes.shared.critics import critic
from mmrl.recipes.shared.judge_server import JudgeServer
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, NOTE, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.rollouts.capo import CAPORollout

PRESETS = {
    EMBEDDED: miniature(f"{NOTE}; a rule in place of the judge", judge={"url": ""}),
    "7b": Preset("votes of the majority", 7.0),
    "3b": Preset(
        "all readings must agree",
        3.0,
        model="Qwen/Qwen2.5-VL-3B-Instruct",
        capo={"vote": "intersection"},
    ),
    "greedy-7b": Preset("ablation: one reading", capo={"critiques": 1, "temperature": 0.0}),
    "equal-7b": Preset("ablation: steps weigh as much as the answer", capo={"process": 2.0}),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="box"),
    capo: CAPO = CAPO(whole=2.0, process=1.0, critiques=4, vote="majority"),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0),
    judge: JudgeServer = JudgeServer(model="Qwen/Qwen2.5-72B-Instruct"),
    unavailable: Literal["stop", "drop"] = "stop",
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2),
    sampling: Sampling = Sampling(group_size=16, temperature=1.0, max_tokens=4096),
    optim: Optim = Optim(lr=1e-6),
    run: Run = Run(name="capo", prompts_per_step=128, epochs=1),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model whose wrong steps are named by a language model.

    Args:
        unavailable: What an outage of the judge does: stop the run, or leave the group to GRPO.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    # A drawn answer is two words on one line, which the rule knows by name.
    drawn = dataset.startswith("drawn:")
    between = r"\s+" if drawn else BLANK_LINES
    words = (*COLOURS, *SHAPES) if drawn else ()
    part, critique = critic(capo, judge, between, words)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(
            style_of(data.style), **{part: (0.0, critique)}, on_unavailable=unavailable
        ),
        rollout=CAPORollout(policy.processing, critique.wrong, part, capo, between),
        estimator=group_normalized,
        grpo=grpo,
        objectives=[capo],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/accuracy", "capo/wrong", f"reward/{part}"))


if __name__ == "__main__":
    launch(main, PRESETS)
