"""MSRL (arXiv 2603.25108): a model that judges pairs of responses learns it on text, then captions, then pictures.

on a laptop CPU, minutes:        python -m recipes.msrl
the paper's weights:             python -m recipes.msrl 7b --dataset pairs.jsonl --text text.jsonl --rationales r.jsonl
those of the official script:    python -m recipes.msrl script-7b --dataset ...
without the text stages:         python -m recipes.msrl no-text-7b --dataset pairs.jsonl
pictures alone:                  python -m recipes.msrl visual-7b --dataset pairs.jsonl

A row is a question with the better response as its answer and the worse one in the column `rejected`; rows with
pictures or clips also hold a `caption` and a `task_type`, those of --rationales a `target`: a thought and an answer in
tags. Which response stands first is drawn for each row; held-out pairs are asked in both orders, and how often the same
response is preferred both times is told at the end. What the stages do is in `recipes/shared/preference_stages.py`.
The model that comes out can be served, and be the judge of other recipes (--judge.url).

Departures: the published model is InternVL3.5-8B; it is trained by other software, whose rewards are followed to the
letter (`mmrl/rewards/preference.py`); how sure a rationale is, is ours. On drawn look-ups rationales say what the cell
holds, questions are short, and no tag names the task or the caption.
"""

from dataclasses import replace

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling
from mmrl.data.drawn.drawn import Drawn
from mmrl.ground.printable import show
from mmrl.recipes.shared.clip_stages import stage_run
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data
from mmrl.recipes.shared.preference_data import DrawnPairs, order_consistency
from mmrl.recipes.shared.preference_stages import MSRL, PairRows, Stages, stage_folder
from mmrl.training.going_on import refuse_branching
from mmrl.training.run import planned_steps

PRESETS = {
    EMBEDDED: miniature(
        data={"style": "plain"},
        msrl={
            "shares": (0.5, 0.05, 0.05, 0.1),
            "rows": 48,
            "learn_lr": 2e-3,
            "distil_lr": 5e-4,
            "rationales": 4,
            "bare": True,
        },
        sampling={"max_tokens": 24},
        run={"steps": 200},
    ),
    "7b": Preset("all stages, the paper's weights", 7.0),
    "script-7b": Preset("the weights of the official script", msrl={"form": 0.2, "task": 0.04}),
    "no-text-7b": Preset(
        "ablation: without the text stages", msrl={"stages": ("caption", "distil", "visual")}
    ),
    "no-caption-7b": Preset(
        "ablation: without RL on captions",
        msrl={"stages": ("learn", "text", "distil", "visual")},
    ),
    "no-distil-7b": Preset(
        "ablation: without distillation",
        msrl={"stages": ("learn", "text", "caption", "visual")},
    ),
    "visual-7b": Preset("ablation: pictures alone", msrl={"stages": ("visual",)}),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "pairs.jsonl",
    text: str = "text_pairs.jsonl",
    rationales: str = "rationales.jsonl",
    data: Data = Data(style="plain"),
    msrl: MSRL = MSRL(accuracy=1.0, form=1.0, task=0.2, replay=5),
    grpo: GRPO = GRPO(kl=0.0, clip_low=0.2, clip_high=0.28),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=1024),
    optim: Optim = Optim(lr=1e-6),
    run: Run = Run(name="msrl", prompts_per_step=16, steps=28_800),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model to judge which of two responses is better.

    Args:
        dataset: Pairs with pictures or clips, and captions.
        text: Pairs of text, for the text stage and its replay.
        rationales: Pairs of text with what a good judge wrote about them.
        data: How the rows of all three files are read.
    """
    # Old output goes now: the first stages write into the folder before the last looks at it.
    run = stage_run(run)
    refuse_branching(run, "its stages begin with models in the run's own folder")
    rows = _rows(dataset, text, rationales, data, msrl, run.seed)
    stages = Stages(msrl, rows, grpo, sampling, optim, run, monitor, load, lora)
    *before, last = msrl.steps(planned_steps(run, rows.visual)).items()
    for stage, steps in before:
        if steps:
            own = replace(run, output=stage_folder(run, stage), steps=steps)
            stages.trainer(stage, model, own).fit()
            # Read again from its folder, so that a resumed run goes on from the same bytes.
            model = str(own.folder / "model")
    stage, steps = last
    trainer = stages.trainer(stage, model, replace(run, steps=steps))
    fit(trainer, watch=("reward/accuracy", "reward/form"))
    told = run.folder / "eval.jsonl"
    same = order_consistency(told) if told.is_file() else None
    if same is not None:
        show(f"  the same response preferred in both orders: {same:.3f} of the held-out pairs")


def _rows(
    dataset: str, text: str, rationales: str, data: Data, msrl: MSRL, seed: int
) -> PairRows:
    """The rows of the stages that there are. Drawn look-ups make pairs of all kinds."""
    visual, heldout = open_data(dataset, data, seed)
    if isinstance(visual, Drawn) and isinstance(heldout, Drawn):
        told, kept = (DrawnPairs(replace(one, pictures=0)) for one in (visual, heldout))
        return PairRows(told, told, DrawnPairs(visual), DrawnPairs(heldout), kept)
    # Files of stages that there are not need not exist.
    pairs = (visual, heldout)
    if {"text", "caption"} & {*msrl.stages}:
        pairs = open_data(text, data, seed)
    learned = open_data(rationales, data, seed)[0] if "learn" in msrl.stages else visual
    return PairRows(pairs[0], learned, visual, heldout, pairs[1])


if __name__ == "__main__":
    launch(main, PRESETS)
