"""Which frames of a row's clip are shown, whatever file the rows stand in, and rows that show nothing."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from PIL import Image

from mmrl.data.rows.sources import load_prompts

TEXT = {"question": "What is 1+1?", "answer": "2"}
READERS = ("jsonl", "json", "csv", "parquet", "saved", "folder")


def saved(folder, rows, reader):
    """The same rows as a file or a folder of one kind; its name."""
    if reader == "jsonl":
        name = folder / "rows.jsonl"
        name.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif reader == "json":
        name = folder / "rows.json"
        name.write_text(json.dumps(rows))
    elif reader == "csv":
        name = folder / "rows.csv"
        with name.open("w", newline="") as file:
            # As a table writes None: an empty cell.
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        import datasets

        table = datasets.Dataset.from_list(rows)
        if reader == "saved":
            name = folder / "saved"
            table.save_to_disk(str(name))
        elif reader == "folder":
            # As data sets lie on the hub: shards of parquet below data/.
            name = folder / "hub"
            (name / "data").mkdir(parents=True)
            table.to_parquet(str(name / "data" / "train-00000-of-00001.parquet"))
        else:
            name = folder / "rows.parquet"
            table.to_parquet(str(name))
    return str(name)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("empty", [None, ""], ids=["null", "empty"])
def test_rows_with_an_image_of_null_are_text(tmp_path, reader, empty):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    rows = [{"image": str(tmp_path / "a.png"), "question": "Colour?", "answer": "black"}]
    rows += [{"image": empty, **TEXT}]
    prompts = load_prompts(saved(tmp_path, rows, reader), allow_outside=True, on_bad="stop")
    shown, text = prompts
    assert len(shown.media) == 1 and text.media == () and prompts.skipped == {}
    assert text.messages[-1]["content"] == TEXT["question"]


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """A row of ten single frames, half a second apart; frame i is grey i."""
    folder = tmp_path_factory.mktemp("frames")
    for number in range(10):
        Image.new("RGB", (32, 32), (number, number, number)).save(folder / f"{number}.png")
    names = [f"{number}.png" for number in range(10)]
    return folder, [
        {
            "question": "When?",
            "answer": "x",
            "frames": names,
            "times": [i / 2 for i in range(10)],
        }
    ]


@pytest.mark.parametrize(
    ("clip", "frames"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({"num_frames": 4}, [0, 3, 6, 9]),
        ({"num_frames": 1}, [0]),
        ({"num_frames": 99}, list(range(10))),
        # 4.5 seconds: five frames a second apart, by half a second each more than the clip has.
        ({"fps": 1.0}, [0, 2, 4, 7, 9]),
        ({"fps": 50.0}, list(range(10))),
        ({"fps": 50.0, "max_frames": 4}, [0, 3, 6, 9]),
        ({"max_frames": 4}, [0, 3, 6, 9]),
        ({"max_frames": 400}, list(range(10))),
    ],
)
def test_listed_frames_obey(listed, clip, frames):
    folder, rows = listed
    (prompt,) = load_prompts(saved(folder, rows, "jsonl"), clip=clip, on_bad="stop")
    (media,) = prompt.media
    assert media.frames[:, 0, 0, 0].tolist() == frames
    torch.testing.assert_close(media.times, torch.tensor(frames, dtype=torch.float64) / 2)
    assert media.duration == 5.0, "the clip lasts as long as it did"


@pytest.mark.parametrize(
    ("clip", "count"),
    [({}, 12), ({"num_frames": 4}, 4), ({"fps": 1.0}, 6), ({"max_frames": 8}, 8)],
)
def test_files_obey(make_clip, clip, count, tmp_path):
    # Six seconds: twelve frames at the two a second that nobody asked for.
    file = make_clip("six.mp4", [i / 10 for i in range(60)], rate=10)
    rows = [{"question": "When?", "answer": "x", "video": str(file)}]
    prompts = load_prompts(
        saved(tmp_path, rows, "jsonl"), clip=clip, allow_outside=True, on_bad="stop"
    )
    assert prompts[0].media[0].frames.shape[0] == count


def test_other_frames_are_other_media_and_text_is_not_touched(listed):
    folder, rows = listed
    name = saved(folder, [*rows, TEXT], "jsonl")
    plain, fewer = (load_prompts(name, clip=clip) for clip in ({}, {"num_frames": 4}))
    (text, media), (same_text, other) = plain.content(0), fewer.content(0)
    assert text == same_text and media != other
    assert plain.content(1) == fewer.content(1)
