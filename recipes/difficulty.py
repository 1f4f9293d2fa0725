"""How hard each question about a clip is for a model: one greedy answer, its IoU, one line of JSON each.

    python -m recipes.difficulty --model MODEL --dataset spans.jsonl --video-root clips/ --output difficulty.jsonl
    python -m recipes.timelens timelens-7b --dataset spans.jsonl --video-root clips/ --select.file difficulty.jsonl …

The pass goes on after the last line that is there; its settings, on the first line, must be the same. A line holds
index, id, iou, pred, answer and duration, or index and bad for a row that cannot be used; indices are those of the
training rows that recipes.timelens sees with the same data, clips and seed, so keep these the same.
"""

from pathlib import Path

from mmrl import Sampling
from mmrl.ground.printable import show, tell
from mmrl.recipes.shared.clip_asking import Asking
from mmrl.recipes.shared.clip_data import DRAWN_CLIPS, ClipQuestions, Clips
from mmrl.recipes.shared.clip_stages import (
    answered,
    measure_difficulty,
    refuse_foreign_difficulties,
)
from mmrl.recipes.shared.launch import Preset, launch
from mmrl.recipes.shared.machines import ONE_LARGE, ONE_LARGEST
from mmrl.recipes.shared.opening import EMBEDDED, Data, Load
from mmrl.rollouts.engine import check_rows

NATIVE = {"time": "native", "snap": False}
PRESETS = {
    EMBEDDED: Preset(
        "tiny model, 64 drawn clips",
        model=EMBEDDED,
        dataset=DRAWN_CLIPS,
        data={"limit": 64},
        clips={"cache_gb": 0.0},
        asking=NATIVE,
        sampling={"max_tokens": 10},
        seed=0,
    ),
    "timelens-7b": Preset("Qwen2.5-VL-7B as recipes.timelens asks it", 7.0, machine=ONE_LARGE),
    "timelens-8b": Preset(
        "Qwen3-VL-8B",
        8.0,
        machine=ONE_LARGEST,
        model="Qwen/Qwen3-VL-8B-Instruct",
        asking=NATIVE,
    ),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "timelens-100k.jsonl",
    video_root: Path | None = None,
    data: Data = Data(),
    clips: Clips = Clips(seconds=(5.0, 500.0), max_words=200, sound=False),
    asking: Asking = Asking(style="timelens", time="interleaved_times", snap=True),
    sampling: Sampling = Sampling(max_tokens=512),
    rows_at_once: int = 256,
    seed: int = 42,
    output: Path = Path("difficulty.jsonl"),
    load: Load = Load(),
) -> None:
    """Measure how hard each row is for a model.

    Args:
        model: The model that shall be trained: a folder, a hub name, or "embedded".
        dataset: Annotations of spans, or drawn:clips with a limit.
        sampling: Only max_tokens is used.
        rows_at_once: Most answers that are sampled side by side; fewer take less memory and more time.
        seed: The seed of the run that will use the file: it decides which rows are held out.
        output: The file; an unfinished one is continued.
    """
    refuse_foreign_difficulties(output)
    check_rows(rows_at_once)
    questions = ClipQuestions(dataset, video_root, data, clips, asking)
    policy = questions.open_policy(model, load)
    prompts, _ = questions.open_prompts(policy, seed, output.parent)
    settings = {**questions.settings(), "data": data, "model": model, "seed": seed}
    measure_difficulty(policy, prompts, output, sampling, seed, settings, rows_at_once)
    rows = answered(output)
    ious = [row["iou"] for row in rows if "iou" in row]
    mean = sum(ious) / max(1, len(ious))
    bad = len(rows) - len(ious)
    show(f"{output}: {len(ious)} rows answered, mean IoU {mean:.3f}; {bad} cannot be used.")
    tell(f"Next: python -m recipes.timelens --select.file {output} …")


if __name__ == "__main__":
    launch(main, PRESETS)
