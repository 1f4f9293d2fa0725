"""The video recipes through their real command lines, on a small data set of real files."""

from __future__ import annotations

import importlib
import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmrl import Sampling
from mmrl.recipes import evaluate
from mmrl.recipes.shared.clip_asking import Asking
from mmrl.recipes.shared.clip_data import Clips
from mmrl.recipes.shared.clip_stages import answered
from mmrl.recipes.shared.launch import choose_preset
from mmrl.recipes.shared.opening import Load
from mmrl.recipes.timelens import OTHERS, PRESETS
from mmrl.training.evaluate import heldout_prompts

SMALL = (
    "--run.steps",
    "2",
    "--run.eval-prompts",
    "2",
    "--run.prompts-per-step",
    "2",
    "--sampling.group-size",
    "2",
)
TINY = (
    "--sampling.max-tokens",
    "6",
    "--data.heldout-rows",
    "2",
    "--optim.lr",
    "1e-3",
    "--run.seed",
    "1",
)
FRAMES = (
    "--clips.min-tokens",
    "1",
    "--clips.total-tokens",
    "64",
    "--clips.seconds",
    "0",
    "100",
)
NAMES = ("timelens", "video_r1", "tempsamp_r1")


def write(path, seconds, event):
    """A grey clip that is red during the event, ten frames per second."""
    import av

    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = 64, 64, "yuv420p", 5
        for number in range(seconds * 10):
            image = np.full((64, 64, 3), 90, np.uint8)
            image[..., 0] = 220 if event[0] <= number / 10 < event[1] else 90
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Eight clips with a question each, one of them broken."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for number in range(8):
        event = [number % 3, number % 3 + 2]
        write(folder / f"{number}.mp4", 5 + number % 2, event)
        rows.append(
            {
                "video": f"{number}.mp4",
                "query": "the screen is red",
                "span": event,
                "duration": 5 + number % 2,
            }
        )
    (folder / "3.mp4").write_bytes(b"no clip" * 100)
    (folder / "spans.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = [
        {"problem": "Which colour?", "path": f"{n}.mp4", "data_type": "video", "problem_type": "free-form",
         "options": [], "solution": "<answer>red</answer>", "problem_id": n} for n in range(8)
    ]  # fmt: skip
    (folder / "questions.json").write_text(json.dumps(questions))
    return folder


def moved(model, out):
    before, after = (
        load_file(model / "model.safetensors"),
        load_file(out / "model" / "model.safetensors"),
    )
    return [name for name in after if not torch.equal(before[name], after[name])]


def test_the_embedded_preset_needs_no_arguments(command_line, tmp_path):
    done = command_line("timelens", tmp_path / "out", fresh=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        "recipes.timelens embedded" in done.stderr and "timelens: 2 steps done." in done.stdout
    )
    rows = command_line.metrics(tmp_path / "out")
    assert [row["step"] for row in rows] == [0, 1, 2] and rows[1]["reward/group_std"] > 0


def test_three_stages_on_real_files(command_line, clips, tiny3_folder, tmp_path):
    more = (
        *TINY,
        *FRAMES,
        "--dataset",
        str(clips / "spans.jsonl"),
        "--model",
        str(tiny3_folder),
    )
    stages = ("--tuning.rows", "4", "--tuning.rows-per-step", "2", "--select.target", "45")
    done = command_line(
        "timelens", tmp_path / "out", "timelens-8b", *more, *stages, small=SMALL
    )
    assert done.returncode == 0, done.stderr[-3000:]
    out = tmp_path / "out"
    assert (out / "sft" / "finished.json").is_file() and "rows selected by" in done.stderr
    rows = answered(out / "difficulty.jsonl")
    assert [row["index"] for row in rows] == list(range(len(rows))) and len(rows) >= 5
    bad = json.loads((out / "quarantine.jsonl").read_text().splitlines()[0])
    assert bad["path"].endswith("3.mp4") and sum("bad" in row for row in rows) <= 1
    steps = command_line.metrics(out)[1:]
    decoded = sum(
        row.get("data/clips_decoded", 0)
        for path in (out, out / "sft")
        for row in command_line.metrics(path)
    )
    assert decoded <= 8 and any(row.get("data/cache_hits", 0) for row in steps), (
        "each file is decoded once"
    )
    names = moved(tiny3_folder, out)
    assert names and not any(
        "visual.blocks" in name or "patch_embed" in name for name in names
    ), "frozen tower"


@pytest.mark.parametrize(
    "preset", ["timelens-7b", "time-r1", "videochat-r1", "timelens2", "tempsamp-r1", "video-r1"]
)
def test_published_presets_train_on_real_files(
    preset, command_line, clips, tiny_folder, tmp_path
):
    file = "questions.json" if preset == "video-r1" else "spans.jsonl"
    more = [
        *TINY,
        "--dataset",
        str(clips / file),
        "--model",
        str(tiny_folder),
        "--clips.num-frames",
        "4",
    ]
    more += [
        "--clips.min-tokens",
        "1",
        "--clips.total-tokens",
        "64",
        "--clips.on-bad",
        "substitute",
    ]
    more += [] if preset in OTHERS else ["--select.target", "0", "--clips.seconds", "0", "100"]
    done = command_line("timelens", tmp_path / "out", preset, *more, small=SMALL)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = command_line.metrics(tmp_path / "out")
    assert [row["step"] for row in rows][-2:] == [1, 2]
    if preset == "video-r1":
        assert rows[-1]["contrast/answers"] == 2
    if preset == "tempsamp-r1":
        assert (
            rows[-1]["label/count"] == 2 and rows[-1]["label/reward"] > rows[-1]["reward/total"]
        )


def test_evaluate_prints_the_table_of_a_data_set(command_line, clips, tiny_folder, tmp_path):
    command = [
        "-m",
        "recipes.evaluate",
        "--model",
        str(tiny_folder),
        "--clips.num-frames",
        "4",
    ]
    command += ["--dataset", str(clips / "spans.jsonl"), "--output", str(tmp_path / "out.json")]
    done = command_line.plain([*command, "--sampling.max-tokens", "6"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(name in done.stdout for name in ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU", "spans"))
    assert "1 of 8 questions could not be shown" in done.stderr
    table = json.loads((tmp_path / "out.json").read_text())["tables"]["spans"]
    assert table["n"] == 7 and table["mIoU_low"] <= table["mIoU"] <= table["mIoU_high"]


def test_evaluate_asks_video_r1_rows_as_they_are_trained(
    clips, tiny_folder, monkeypatch, tmp_path
):
    """Other questions about clips: frames of --clips, the style's words and its grader, not those of --data."""
    asked = []

    def kept(*given):
        asked.extend(found := heldout_prompts(*given))
        return found

    monkeypatch.setattr(evaluate, "heldout_prompts", kept)
    output = tmp_path / "out.json"
    evaluate.main(
        model=str(tiny_folder),
        dataset=str(clips / "questions.json"),
        clips=Clips(fps=None, num_frames=2, min_tokens=None, max_frame_tokens=4),
        asking=Asking(style="video-r1"),
        sampling=Sampling(max_tokens=2),
        samples=0,
        prompts=3,
        output=output,
        load=Load(min_pixels=None, max_pixels=None),
    )
    assert [len(prompt.media[0].frames) for prompt in asked] == [2] * 3
    assert all("Think first, inside <think>" in str(prompt.messages) for prompt in asked)
    found = json.loads(output.read_text())
    assert found["prompts"] == 3 and "accuracy" in found and "tables" not in found


def test_the_difficulty_pass_goes_on_where_it_stopped(
    command_line, clips, tiny_folder, tmp_path
):
    command = [
        "-m",
        "recipes.difficulty",
        "timelens-7b",
        "--model",
        str(tiny_folder),
    ]
    command += [
        "--dataset",
        str(clips / "spans.jsonl"),
        *FRAMES,
        "--data.heldout-rows",
        "0",
        "--sampling.max-tokens",
        "6",
    ]
    command += ["--output", str(tmp_path / "hard.jsonl")]
    assert command_line.plain(command, tmp_path).returncode == 0
    lines = (tmp_path / "hard.jsonl").read_text().splitlines()
    # Its settings, then eight rows.
    assert len(lines) == 9 and "bad" in json.loads(lines[4])
    (tmp_path / "hard.jsonl").write_text("\n".join(lines[:6]) + "\n" + lines[6][:9])
    done = command_line.plain(command, tmp_path)
    assert done.returncode == 0 and "7 rows answered" in done.stdout, done.stderr[-2000:]
    # Nothing is taken out of the file: the torn line stays where it was.
    after = (tmp_path / "hard.jsonl").read_text().splitlines()
    assert after == [*lines[:6], lines[6][:9], *lines[6:]]


def test_a_missing_file_is_said_plainly(command_line, tmp_path):
    done = command_line(
        "timelens",
        tmp_path / "out",
        "timelens-7b",
        "--dataset",
        "nowhere.jsonl",
        "--model",
        "x/y-7B",
    )
    assert done.returncode != 0 and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_fits_its_recipe(name, rules):
    rules.presets_fit(importlib.import_module(f"mmrl.recipes.{name}"))


def test_every_named_preset_is_reachable():
    reachable = {
        **PRESETS,
        **{name: importlib.import_module(OTHERS[name]).PRESETS[name] for name in OTHERS},
    }
    wanted = {
        "embedded",
        "timelens-7b",
        "timelens-8b",
        "time-r1",
        "videochat-r1",
        "timelens2",
        "video-r1",
        "tempsamp-r1",
    }
    assert set(reachable) == wanted
    assert choose_preset(PRESETS, None, "Qwen/Qwen2.5-VL-7B-Instruct", None) == "timelens-7b"
    assert choose_preset(PRESETS, None, "Qwen/Qwen3-VL-8B-Instruct", None) == "timelens-8b"
