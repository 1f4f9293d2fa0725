"""RRVF (arXiv 2507.20766): rebuild a picture by code; the drawing, compared with the picture, is the reward.

on a laptop CPU, minutes:       python -m recipes.rrvf
charts with Matplotlib:         python -m recipes.rrvf 7b --dataset charts/       (a folder of pictures, no answers)
pages with HTML:                python -m recipes.rrvf web-7b --dataset pages/
drawings with SVG:              python -m recipes.rrvf svg-7b --dataset drawings/
without rounds:                 python -m recipes.rrvf one-round-7b --dataset charts/
with a model as the judge:      ... --judge.url http://host:8000/v1 --judge.model SOME-VL-MODEL

Rows need a picture and nothing else; a question of their own stands before the task. Texts that a picture shows, in a
column `words`, are compared with those of the drawing. Code runs in a sandbox (docs/sandbox.md) and needs
pip install "mmrl[render]". With an empty --judge.url the pictures are compared by structure, colours, edges and words;
the part is then called `similarity`, and such a run is no reproduction. In rounds the model writes <draw>code</draw>
and sees the drawing, at most four times. `perception/rrvf.py` says what else is ours: no code is published.
"""

from dataclasses import replace

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_normalized
from mmrl.perception.likeness import Likeness
from mmrl.perception.rrvf import RRVF
from mmrl.perception.rrvf_rounds import Draw, Shown
from mmrl.recipes.shared.drawing_data import (
    SIDE,
    LanguageName,
    asked,
    drawing_model,
    drawing_rewards,
    pen_for,
)
from mmrl.recipes.shared.judge_server import JudgeServer
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, NOTE, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.tool_boxes import told
from mmrl.rollouts.groups import group_rollout
from mmrl.rollouts.tool_use import ToolRollout
from mmrl.tools.toolbox import Toolbox, ToolUse

PRESETS = {
    EMBEDDED: miniature(
        f"{NOTE}; cells in place of code, likeness of a judge",
        dataset=f"drawn:describe?cells=2&size_px={SIDE}",
        language="cells",
        likeness={"side": SIDE},
        rounds=False,
        sampling={"max_tokens": 32},
    ),
    "7b": Preset("charts, rebuilt with Matplotlib", 7.0),
    "web-7b": Preset(
        "pages, rebuilt with HTML", language="html", sampling={"max_tokens": 8192}
    ),
    "svg-7b": Preset("drawings, rebuilt with SVG", language="svg"),
    "one-round-7b": Preset("charts, without a look at the drawing", rounds=False),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "charts",
    data: Data = Data(style="answer-open"),
    language: LanguageName = "matplotlib",
    rrvf: RRVF = RRVF(vision=0.8, form=0.2),
    likeness: Likeness = Likeness(),
    judge: JudgeServer = JudgeServer(url="", model="Qwen/Qwen2.5-VL-72B-Instruct"),
    rounds: bool = True,
    shown: Shown = Shown(),
    use: ToolUse = ToolUse(max_turns=4),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2, kl=0.0),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=4096),
    optim: Optim = Optim(lr=1e-6),
    run: Run = Run(name="rrvf", prompts_per_step=128, updates_per_step=1, steps=100),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model to rebuild pictures by code.

    Args:
        language: What the code is written in.
        rounds: Let the model see what its code draws before it answers.
    """
    pen = pen_for(language)
    data = replace(data, suffix=asked(language, data.suffix))
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(drawing_model(model), load, lora, run)
    rewards = drawing_rewards(
        rrvf, pen, likeness, judge, prompts, data.style, shown if rounds else None
    )
    rollout = group_rollout
    if rounds:
        toolbox = Toolbox((Draw(pen=pen),), use)
        prompts, heldout = (told(rows, toolbox, True) for rows in (prompts, heldout))
        rollout = ToolRollout(policy=policy, toolbox=toolbox)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=rewards,
        rollout=rollout,
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/similarity", "reward/vision", "reward/form", "render/drawn"))


if __name__ == "__main__":
    launch(main, PRESETS)
