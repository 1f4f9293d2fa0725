"""The pretext recipes through their real command lines: two steps, offline, and the parameters move."""

from __future__ import annotations

import importlib
import io
import json
import tarfile
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmrl.recipes.shared.launch import choose_preset

NAMES = ("visual_jigsaw", "videossr", "puzzlecraft", "pretext")
METRICS = {
    "visual_jigsaw": ("reward/puzzle", "reward/form", "reward/accuracy"),
    "videossr": ("reward/puzzle", "reward/accuracy"),
    "puzzlecraft": (
        "puzzlecraft/weight",
        "puzzlecraft/difficulty",
        "puzzlecraft/dispersion",
        "rac/empty",
        "rac/judged",
    ),
    "pretext": ("puzzlecraft/weight", "reward/puzzle", "reward/plain"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_with_no_arguments(name, warm, command_line, tmp_path):
    done = command_line(name, tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"recipes.{name} embedded" in done.stderr and f"{name}: 2 steps done." in done.stdout
    rows = command_line.metrics(tmp_path / "out")
    assert [row["step"] for row in rows] == [0, 1, 2] and "eval/accuracy" in rows[-1]
    assert not set(METRICS[name]) - rows[-1].keys(), sorted(rows[-1])
    before, after = (
        load_file(at / "model.safetensors") for at in (warm(name), tmp_path / "out" / "model")
    )
    assert any("visual" in key and not torch.equal(before[key], after[key]) for key in after), (
        "no parameter moved"
    )
    if name == "pretext":
        assert any(key.startswith("followcurriculum/level_") for key in rows[-1])
        assert any(key.startswith("followcurriculum/share_") for key in rows[-1])


def test_a_folder_of_pictures_is_enough_and_bad_files_are_listed(command_line, tmp_path):
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for number in range(24):
        small = rng.integers(0, 255, size=(6, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((128, 96), Image.Resampling.BICUBIC).save(
            folder / f"{number:02}.png"
        )
    for number in range(6):
        (folder / f"bad{number}.jpg").write_bytes(b"no picture")
    asked = (
        "--puzzles.mix",
        "miniature-puzzles",
        "--puzzles.heldout-share",
        "0.3",
        "--dataset",
        str(folder),
    )
    done = command_line("puzzlecraft", tmp_path / "out", "embedded", *asked)
    assert done.returncode == 0, done.stderr[-3000:]
    listed = [
        json.loads(line)
        for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    ]
    assert listed and all("bad" in entry["where"] for entry in listed)
    assert {entry["reason"] for entry in listed} == {"not an image"}
    assert (
        sum(row.get("pretext/skipped", 0) for row in command_line.metrics(tmp_path / "out")) > 0
    )


def pictures(count=24):
    rng = np.random.default_rng(1)
    small = (rng.integers(0, 255, size=(6, 8, 3), dtype=np.uint8) for _ in range(count))
    return [
        Image.fromarray(pixels).resize((128, 96), Image.Resampling.BICUBIC) for pixels in small
    ]


def png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def as_parquet(folder):
    import pyarrow
    import pyarrow.parquet as parquet

    cells = [{"bytes": png(picture), "path": None} for picture in pictures()]
    parquet.write_table(
        pyarrow.table({"image": cells}), folder / "media.parquet", row_group_size=7
    )
    return folder / "media.parquet"


def as_shards(folder):
    (folder / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(folder / "shards" / f"s-{shard}.tar", "w") as archive:
            for number, picture in enumerate(pictures()[shard::2]):
                info, content = tarfile.TarInfo(f"{number}.png"), png(picture)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return folder / "shards"


def as_saved_data_set(folder):
    import datasets

    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": pictures()}, features=features).save_to_disk(
        str(folder / "saved")
    )
    return folder / "saved"


@pytest.mark.parametrize("stored", [as_parquet, as_shards, as_saved_data_set])
def test_every_kind_of_source_trains(stored, command_line, tmp_path):
    asked = (
        "--puzzles.mix",
        "miniature-puzzles",
        "--puzzles.heldout-share",
        "0.3",
        "--dataset",
        str(stored(tmp_path)),
    )
    done = command_line("puzzlecraft", tmp_path / "out", "embedded", *asked)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row["step"] for row in command_line.metrics(tmp_path / "out")] == [0, 1, 2]


def test_a_folder_of_odd_clips_trains(command_line, tmp_path):
    """Several codecs, turned, of variable rate, broken: the good ones train, the others are listed."""
    from mmrl.data.pretext.craft.procedural import clip as drawn

    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(16):
        codec, suffix = (
            ("mpeg4", "mp4"),
            ("libx264", "mkv"),
            ("libvpx", "webm"),
            ("mjpeg", "avi"),
        )[number % 4]
        frames = (
            drawn(5, number, height=96, width=128, seconds=4.0, fps=12.0)
            .video()
            .read(range(48))
        )
        with av.open(str(folder / f"{number:02}.{suffix}"), "w") as container:
            stream = container.add_stream(codec, rate=12)
            stream.width, stream.height = 128, 96
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            if number in (4, 12):
                stream.set_display_rotation(90)
            for place, frame in enumerate(frames):
                shown = av.VideoFrame.from_ndarray(frame, format="rgb24")
                uneven = place + place // 5 if number in (1, 5) else place
                shown.pts, shown.time_base = uneven, Fraction(1, 12)
                container.mux(stream.encode(shown))
            container.mux(stream.encode())
    for number in range(5):
        (folder / f"bad{number}.mp4").write_bytes(b"no clip" * 40)
    asked = ("--puzzles.heldout-share", "0.3", "--dataset", str(folder))
    done = command_line("videossr", tmp_path / "out", "embedded", *asked)
    assert done.returncode == 0, done.stderr[-3000:]
    listed = [
        json.loads(line)
        for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    ]
    assert listed and all("bad" in entry["where"] for entry in listed)
    assert command_line.metrics(tmp_path / "out")[-1]["step"] == 2


def test_training_never_sees_the_pictures_of_the_evaluation(tmp_path):
    from mmrl.recipes.shared.pretext_data import Puzzles, open_pretext
    from mmrl.recipes.shared.pretext_warmup import MINIATURE
    from mmrl.training.run import Run

    data = open_pretext(
        "drawn", Puzzles("miniature-puzzles", **MINIATURE), Run(output=tmp_path)
    )
    sides = []
    for side in (data.train, data.heldout):
        stream = side.prompts.stream
        media = {str(stream.sample(index).recipe["media"]) for index in range(24)}
        sides.append(media)
    assert sides[0] and sides[1] and not sides[0] & sides[1]


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_fits_its_recipe(name, rules):
    from mmrl.data.pretext.presets import preset
    from mmrl.recipes.shared.pretext_data import MINIATURES

    recipe = importlib.import_module(f"mmrl.recipes.{name}")
    rules.presets_fit(recipe)
    sized = {chosen.size for chosen in recipe.PRESETS.values()} - {None}
    wanted = choose_preset(recipe.PRESETS, None, "my/Qwen2.5-VL-7B", None)
    assert recipe.PRESETS[wanted].size == min(sized, key=lambda size: abs(size - 7.0))
    for chosen in recipe.PRESETS.values():
        mix = chosen.values.get("puzzles", {}).get("mix")
        assert mix is None or mix in MINIATURES or preset(mix)


def test_the_warm_up_tells_some_lies_and_keeps_the_form(tmp_path):
    from mmrl.recipes.shared.pretext_data import open_pretext
    from mmrl.recipes.shared.pretext_warmup import TINY, Lessons, PretextWarmUp
    from mmrl.training.run import Run

    prompts = open_pretext("drawn", TINY, Run(output=tmp_path)).train
    lies, truths = (
        Lessons(prompts, PretextWarmUp(noise=noise, swapped=0.0)) for noise in (1.0, 0.0)
    )
    taught = [(prompts[i], lies[i], truths[i]) for i in range(40)]
    assert all(honest.extra["target"] == plain.extra["target"] for plain, _, honest in taught)
    told = Counter(
        plain.extra["target"] == random.extra["target"] for plain, random, _ in taught
    )
    assert told[False] > told[True] > 0
    assert all(random.extra["target"].startswith("<answer>") for _, random, _ in taught)
    assert len({prompt.extra["task"] for prompt, _, _ in taught}) == 4


def test_the_warm_up_of_clips_mostly_names_the_end_first(tmp_path):
    from mmrl.recipes.shared.pretext_data import open_pretext
    from mmrl.recipes.shared.pretext_warmup import CLIPS, Lessons
    from mmrl.training.run import Run

    prompts = open_pretext("drawn", CLIPS.puzzles, Run(output=tmp_path)).train
    lessons = Lessons(prompts, replace(CLIPS, noise=0.0))
    kinds = Counter()
    for index in range(200):
        words = (
            lessons[index]
            .extra["target"]
            .removeprefix("<answer>")
            .removesuffix("</answer>")
            .strip()
        )
        start, end = str(prompts[index].answer).split("-")
        assert words in (f"{start}-{end}", f"{end}-{start}") and float(start) < float(end)
        kinds["right" if words == prompts[index].answer else "reversed"] += 1
    assert 0.45 < kinds["reversed"] / 200 < 0.75
