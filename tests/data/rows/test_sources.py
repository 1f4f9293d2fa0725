"""Prompts from files, folders and data sets: conventions, laziness, ids, and every kind of bad row."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import pickle
import string
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmrl.data.drawn.drawn import Drawn
from mmrl.data.rows.columns import CONVENTIONS, ColumnMap
from mmrl.data.rows.sources import load_prompts, split_prompts
from mmrl.data.rows.templates import (
    PLAIN,
    THINK_THEN_ANSWER,
    THINK_THEN_BOX,
    Template,
    Visuals,
    question_chat,
)
from mmrl.ground.faults import BadRow, Fault

PHOTOS = {
    "astronaut": skimage.data.astronaut,
    "coffee": skimage.data.coffee,
    "cat": skimage.data.chelsea,
    "rocket": skimage.data.rocket,
    "camera": skimage.data.camera,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Real photographs as files: PNG, JPEG, grey."""
    folder = tmp_path_factory.mktemp("photos")
    for name, load in PHOTOS.items():
        Image.fromarray(load()).save(folder / f"{name}.{'jpg' if name == 'rocket' else 'png'}")
    return folder


def jsonl(path: Path, rows) -> str:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return str(path)


def kinds(prompt) -> list[str]:
    """Types of the parts of the last turn; texts themselves."""
    content = prompt.messages[-1]["content"]
    return (
        [content]
        if isinstance(content, str)
        else [part.get("text", part["type"].upper()) for part in content]
    )


def rgb(name: str) -> np.ndarray:
    pixels = PHOTOS[name]()
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)


def hwc(media) -> np.ndarray:
    return media.frames[0].permute(1, 2, 0).numpy()


def test_jsonl_of_photographs_with_multi_image_and_clip_rows(photos):
    rows = [
        {"id": "a", "problem": "<image>What is this?", "answer": "coffee", "images": ["coffee.png"]},
        {"id": "b", "problem": "Is <image> older than <image>?", "answer": True, "images": ["cat.png", "rocket.jpg"]},
        {"id": "c", "problem": "2 + 2?", "answer": 4, "images": []},
        {"id": "d", "problem": "<video>When?", "answer": [0.5, 1.5], "frames": ["cat.png", "cat.png", "cat.png"],
         "times": [0.0, 0.5, 1.5]},
        {"id": "e", "problem": "Which?", "answer": {"box": [1, 2]}, "images": ["camera.png", "cat.png"],
         "level": "hard"},
    ]  # fmt: skip
    prompts = load_prompts(jsonl(photos / "mixed.jsonl", rows), on_bad="stop")
    assert prompts.size == 5 and prompts.skipped == {} and prompts.check() == []
    a, b, c, d, e = prompts
    assert [prompt.id for prompt in prompts] == list("abcde") and a.source == "mixed.jsonl"
    assert kinds(a) == ["IMAGE", "What is this?"] and np.array_equal(
        hwc(a.media[0]), rgb("coffee")
    )
    assert kinds(b) == ["Is ", "IMAGE", " older than ", "IMAGE", "?"] and b.answer is True
    assert np.array_equal(hwc(b.media[0]), rgb("cat")) and b.media[1].frames.shape == (
        1,
        3,
        *rgb("rocket").shape[:2],
    )
    assert kinds(c) == ["2 + 2?"] and c.media == () and c.answer == 4
    assert (
        kinds(d) == ["VIDEO", "When?"]
        and d.media[0].times.tolist() == [0.0, 0.5, 1.5]
        and d.media[0].duration == 2.5
    )
    assert d.media[0].frames.shape == (3, 3, 300, 451) and d.answer == [0.5, 1.5]
    assert kinds(e) == ["IMAGE", "IMAGE", "Which?"] and np.array_equal(
        hwc(e.media[0]), rgb("camera")
    )
    assert e.extra == {"level": "hard"} and e.answer == {"box": [1, 2]}


def test_trl_easyr1_plain_and_chat_conventions(photos, tmp_path):
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is it?"},
    ]
    parts = [
        {
            "role": "user",
            "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}],
        }
    ]
    inline = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "See"}, {"type": "image", "image": "cat.png"}],
        }
    ]
    llava = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    cases = [
        (
            {"prompt": chat, "image": "cat.png", "solution": "cat"},
            ["IMAGE", "What is it?"],
            "cat",
        ),
        (
            {"prompt": parts, "images": ["cat.png"], "solution": "cat"},
            ["IMAGE", "What?"],
            "cat",
        ),
        ({"messages": inline, "answer": "cat"}, ["See", "IMAGE"], "cat"),
        ({"conversations": llava, "image": "cat.png"}, ["IMAGE", "\nWhat?"], "A cat."),
        (
            {"prompt": "<image> what?", "images": ["cat.png"], "answer": "cat"},
            ["IMAGE", " what?"],
            "cat",
        ),
        ({"question": "What?", "image": "cat.png", "answer": "cat"}, ["IMAGE", "What?"], "cat"),
    ]
    for number, (row, expected, answer) in enumerate(cases):
        prompt = load_prompts(
            jsonl(tmp_path / f"{number}.jsonl", [row]), image_root=photos, on_bad="stop"
        )[0]
        assert kinds(prompt) == expected and prompt.answer == answer
        assert np.array_equal(hwc(prompt.media[0]), rgb("cat"))
        if "conversations" in row:
            assert prompt.extra["target"] == "A cat." and [
                turn["role"] for turn in prompt.messages
            ] == ["user"]
        if row.get("prompt") is chat:
            assert prompt.messages[0] == {"role": "system", "content": "Be brief."}


def test_parquet_with_image_bytes_as_published(photos, tmp_path):
    """PAPO_ViRL39K: problem, answer, images as {"bytes", "path"}; small row groups, random order."""
    import pyarrow
    import pyarrow.parquet as parquet

    names = [name for name in PHOTOS if name != "rocket"]
    rows = [
        {
            "problem": f"<image>Question {number}",
            "answer": f"\\boxed{{{number}}}",
            "images": [
                {"bytes": (photos / f"{names[number % 4]}.png").read_bytes(), "path": None}
            ],
            "thumb": b"12345",
            "category": "photo",
        }
        for number in range(10)
    ]
    parquet.write_table(
        pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet", row_group_size=3
    )
    prompts = load_prompts(
        str(tmp_path / "train.parquet"), template=THINK_THEN_BOX, on_bad="stop"
    )
    again = pickle.loads(pickle.dumps(prompts))
    for number in (9, 0, 4, 4, 7, 2):
        prompt = prompts[number]
        assert prompt.answer == f"\\boxed{{{number}}}" and prompt.extra == {"category": "photo"}
        assert np.array_equal(hwc(prompt.media[0]), rgb(names[number % 4]))
        assert (
            kinds(prompt)[1].startswith(f"Question {number}\n\n")
            and "\\boxed{}" in kinds(prompt)[1]
        )
        assert again[number].id == prompt.id
    assert len({prompts[number].id for number in range(10)}) == 10
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        load_prompts(str(tmp_path / "bad.parquet"))


def test_saved_data_set_is_read_without_decoding(photos, tmp_path):
    import datasets

    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "images": datasets.List(datasets.Image()),
            "label": datasets.ClassLabel(names=["dog", "cat"]),
        }
    )
    broken = {"bytes": b"no picture", "path": None}
    saved = {
        "question": ["What?", "Who?", "And?"],
        "images": [
            [str(photos / "cat.png")],
            [{"bytes": (photos / "astronaut.png").read_bytes(), "path": None}],
            [broken],
        ],
        "label": [1, 0, 0],
    }
    whole = datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict(saved, features=features)
            for name in ("train", "test")
        }
    )
    whole.save_to_disk(tmp_path / "both")
    prompts = load_prompts(str(tmp_path / "both"), split="test", allow_outside=True)
    assert prompts.size == 3 and prompts[0].answer == "cat" and prompts[1].answer == "dog"
    assert np.array_equal(hwc(prompts[0].media[0]), rgb("cat"))
    assert np.array_equal(hwc(prompts[1].media[0]), rgb("astronaut"))
    with pytest.raises(BadRow, match=r"row 2: broken image: .*\(text of 10 bytes\)"):
        prompts[2]
    assert prompts.skipped == {"broken image": 1} and len(list(prompts)) == 2
    assert load_prompts(str(tmp_path / "both")).size == 3
    with pytest.raises(ValueError, match=r"no split 'val'; choose one of \['train', 'test'\]"):
        load_prompts(str(tmp_path / "both"), split="val")


def test_image_folders_bare_labelled_and_with_metadata(photos, tmp_path):
    bare = (
        load_prompts(str(photos), template=Template("What is shown?"))
        if not list(photos.glob("*.jsonl"))
        else None
    )
    for name, kind in (("cat", "animal"), ("rocket", "machine")):
        (tmp_path / "train" / kind).mkdir(parents=True)
        Image.fromarray(PHOTOS[name]()).save(tmp_path / "train" / kind / f"{name}.png")
    (tmp_path / "train" / "animal" / "._cat.png").write_bytes(b"junk of another system")
    labelled = load_prompts(str(tmp_path), template=Template("What is shown?"), on_bad="stop")
    assert [prompt.answer for prompt in labelled] == ["animal", "machine"]
    assert kinds(labelled[0]) == ["IMAGE", "What is shown?"] and kinds(
        load_prompts(str(tmp_path))[0]
    ) == ["IMAGE"]
    assert bare is None or bare.size == len(PHOTOS)
    lines = [
        "file_name,question,answer",
        "animal/cat.png,Who?,cat",
        "machine/rocket.png,What?,rocket",
        "x.png,?,!",
    ]
    (tmp_path / "train" / "metadata.csv").write_text("\n".join(lines))
    described = load_prompts(str(tmp_path), split="train")
    assert [prompt.answer for prompt in described] == ["cat", "rocket"]
    assert described.skipped == {"missing media": 1} and "metadata.csv, line 4" in str(
        described.faults[0]
    )
    several = {
        "file_names": ["animal/cat.png", "machine/rocket.png"],
        "question": "Same?",
        "answer": "no",
    }
    (tmp_path / "train" / "metadata.csv").unlink()
    jsonl(tmp_path / "train" / "metadata.jsonl", [several])
    assert len(load_prompts(str(tmp_path / "train"))[0].media) == 2


def test_json_list_csv_and_shards(tmp_path):
    row = {"question": "1 + 1?", "answer": 2}
    (tmp_path / "list.json").write_text(
        "[\n" + json.dumps(row) + ",\n\n 3,\n" + json.dumps({**row, "answer": ""}) + "]"
    )
    prompts = load_prompts(str(tmp_path / "list.json"))
    assert prompts.size == 1 and prompts.skipped == {"bad JSON": 1, "answer without text": 1}
    assert "list.json, line 4" in str(prompts.faults[0]) and "list.json, line 5" in str(
        prompts.faults[1]
    )
    jsonl(tmp_path / "lines.json", [row, row])
    assert load_prompts(str(tmp_path / "lines.json")).size == 2
    (tmp_path / "a.tsv").write_text("question\tanswer\n1 + 1?\t2\n2 + 2?\t\n")
    assert [prompt.answer for prompt in load_prompts(str(tmp_path / "a.tsv"))] == ["2"]
    (tmp_path / "shards").mkdir()
    for number in range(3):
        jsonl(
            tmp_path / "shards" / f"train-{number:05}-of-00003.jsonl",
            [{"question": f"{number}?", "answer": number}],
        )
    jsonl(tmp_path / "shards" / "test.jsonl", [{"question": "t?", "answer": "t"}])
    assert [prompt.answer for prompt in load_prompts(str(tmp_path / "shards"))] == [0, 1, 2]
    assert [
        prompt.answer for prompt in load_prompts(str(tmp_path / "shards"), split="test")
    ] == ["t"]
    with pytest.raises(ValueError, match="no split 'val'"):
        load_prompts(str(tmp_path / "shards"), split="val")
    with pytest.raises(ValueError, match="one file and has no split"):
        load_prompts(str(tmp_path / "a.tsv"), split="train")


BAD = [
    ('{"question": "x", "answer": ', "bad JSON"),
    ("[1, 2]", "bad JSON"),
    ({"question": "x", "answer": ""}, "answer without text"),
    ({"question": "x", "answer": None}, "answer without text"),
    ({"question": "x", "answer": []}, "answer without text"),
    ('{"question": "x", "answer": NaN}', "answer without text"),
    ({"answer": "x"}, "missing question"),
    ({"question": "  ", "answer": "x"}, "missing question"),
    ({"question": 5, "answer": "x"}, "missing question"),
    ({"question": "x", "answer": "y", "image": "gone.png"}, "missing media"),
    ({"question": "<image>x", "answer": "y", "image": None}, "missing media"),
    ({"question": "x", "answer": "y", "image": [None]}, "missing media"),
    ({"question": "x", "answer": "y", "image": "https://a.b/c.png"}, "remote media"),
    ({"question": "<image> x", "answer": "y"}, "missing media"),
    ({"question": "<image><image>", "answer": "y", "image": "cat.png"}, "placeholder count"),
    (
        {"question": "<image> x", "answer": "y", "image": ["cat.png", "cat.png"]},
        "placeholder count",
    ),
    ({"question": "x <|image_pad|>", "answer": "y"}, "control token in the text"),
    ({"question": [{"role": "assistant", "content": "hi"}], "answer": "y"}, "bad chat"),
    ({"question": [{"role": "robot", "content": "hi"}], "answer": "y"}, "bad chat"),
    ({"question": ["hi"], "answer": "y"}, "bad chat"),
    ({"question": "x", "answer": "y", "frames": ["cat.png"], "times": [1, 2]}, "bad clip"),
    (
        {"question": "x", "answer": "y", "frames": ["cat.png", "cat.png"], "times": [1, 1]},
        "bad clip",
    ),
    ({"question": "x", "answer": "y", "video": "gone.mp4"}, "missing media"),
    ({"question": "x", "answer": "y", "image": "empty.png"}, "broken image"),
]
LATE = [
    ({"question": "x", "answer": "y", "image": "text.jpg"}, "broken image"),
    ({"question": "x", "answer": "y", "image": "cut.png"}, "broken image"),
    (
        {"question": "x", "answer": "y", "frames": ["cat.png", "coffee.png"], "times": [0, 1]},
        "bad clip",
    ),
]


@pytest.fixture(scope="module")
def wreckage(photos) -> Path:
    (photos / "empty.png").write_bytes(b"")
    (photos / "text.jpg").write_text("not a picture")
    (photos / "cut.png").write_bytes((photos / "cat.png").read_bytes()[:5000])
    return photos


def test_bad_rows_are_skipped_counted_and_named(wreckage):
    good = {"question": "x", "answer": "y", "image": "cat.png"}
    rows = [good, *(row for row, _ in BAD), good]
    prompts = load_prompts(jsonl(wreckage / "bad.jsonl", rows))
    assert prompts.size == 2 and sum(prompts.skipped.values()) == len(BAD)
    for reason in {reason for _, reason in BAD}:
        assert prompts.skipped[reason] == sum(other == reason for _, other in BAD)
    for number, fault in enumerate(prompts.faults):
        assert f"bad.jsonl, line {number + 2}: {BAD[number][1]}: " in str(fault)
        assert str(fault).rstrip().endswith((".", "…")), "each message ends with a remedy"
    assert f"{len(BAD)}" not in prompts.summary() and "answer without text" in prompts.summary()
    assert np.array_equal(hwc(prompts[1].media[0]), rgb("cat"))


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_each_bad_row_is_fatal_by_choice(wreckage, row, reason):
    extra = {
        "question": "x",
        "answer": "y",
        "image": "cat.png",
        "video": None,
        "frames": None,
        "times": None,
    }
    name = jsonl(wreckage / "fatal.jsonl", ["", extra, row])
    with pytest.raises(BadRow, match=f"fatal.jsonl, line 3: {reason}: "):
        load_prompts(name, on_bad="stop")


def test_what_only_decoding_shows(wreckage):
    good = {"question": "x", "answer": "y", "image": "cat.png"}
    name = jsonl(wreckage / "late.jsonl", [good, *(row for row, _ in LATE), good])
    prompts = load_prompts(name)
    assert prompts.size == 5 and prompts.skipped == {}
    faults = prompts.check()
    assert [fault.reason for fault in faults] == [reason for _, reason in LATE]
    assert all(f"late.jsonl, line {n + 2}" in str(fault) for n, fault in enumerate(faults))
    prompts.check(), list(prompts)
    assert prompts.skipped == {"broken image": 2, "bad clip": 1}, "each row is counted once"
    assert len(list(prompts)) == 2 and len(prompts.check(limit=2)) == 1
    with pytest.raises(BadRow, match=r"late\.jsonl, line 2"):
        list(load_prompts(name, on_bad="stop"))
    with pytest.raises(IndexError):
        prompts[5]


def test_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"empty\.jsonl is empty"):
        load_prompts(jsonl(tmp_path / "empty.jsonl", ["", "  "]))
    with pytest.raises(ValueError, match=r"no usable row.*2 answer without text.*line 1"):
        load_prompts(jsonl(tmp_path / "a.jsonl", [{"question": "x", "answer": ""}] * 2))
    with pytest.raises(ValueError, match="nothing to read"):
        (tmp_path / "void").mkdir()
        load_prompts(str(tmp_path / "void"))
    with pytest.raises(ValueError, match=r"does not exist.*did you mean 'empty\.jsonl'"):
        load_prompts(str(tmp_path / "emptty.jsonl"))
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"suffix '\.xlsx'; read are \.jsonl"):
        load_prompts(str(tmp_path / "a.xlsx"))


def test_unknown_columns_are_named_with_the_nearest(tmp_path):
    name = jsonl(tmp_path / "a.jsonl", [{"quesiton": "x?", "reply": "y"}])
    with pytest.raises(
        ValueError,
        match=r"no column for the question: it has \['quesiton', 'reply'\].*'quesiton'",
    ):
        load_prompts(name)
    with pytest.raises(
        ValueError, match=r"no column 'replay' \(asked for as answer\); did you mean 'reply'"
    ):
        load_prompts(name, columns={"question": "quesiton", "answer": "replay"})
    with pytest.raises(ValueError, match="'anser', which is no field; did you mean 'answer'"):
        load_prompts(name, columns={"anser": "reply"})
    with pytest.raises(ValueError, match="no column for the answer"):
        load_prompts(name, columns={"question": "quesiton"})
    with pytest.raises(ValueError, match="must be a column name"):
        load_prompts(name, columns={"question": ["a", "b"]})
    assert (
        load_prompts(name, columns={"question": "quesiton", "answer": None})[0].answer is None
    )
    assert (
        load_prompts(name, columns={"question": "quesiton", "answer": "reply"})[0].answer == "y"
    )


def test_explicit_columns_win_and_several_image_columns_keep_their_order(photos):
    row = {
        "question": "wrong",
        "ask": "<image>or<image>",
        "answer": 1,
        "truth": 2,
        "left": "cat.png",
        "right": None,
    }
    rows = [row | {"right": "coffee.png"}, row]
    columns = {"question": "ask", "answer": "truth", "images": ["right", "left"]}
    prompts = load_prompts(jsonl(photos / "cols.jsonl", rows), columns=columns)
    assert prompts.size == 1 and prompts.skipped == {"placeholder count": 1}
    assert prompts[0].answer == 2 and np.array_equal(hwc(prompts[0].media[0]), rgb("coffee"))
    assert dict(prompts[0].extra) == {"question": "wrong", "answer": 1}
    one = ColumnMap(question="ask", answer="truth", images=("left",))
    with pytest.raises(ValueError, match="2 placeholder count"):
        load_prompts(str(photos / "cols.jsonl"), columns=one)


def test_placeholder_words_are_text_where_the_user_says_so(photos, tmp_path):
    asked = {"question": "What does <image> mean in HTML?", "answer": "x"}
    name = jsonl(tmp_path / "t.jsonl", [asked])
    text = load_prompts(name, columns={"images": None})
    assert kinds(text[0]) == ["What does <image> mean in HTML?"] and text[0].media == ()
    rows = [{"question": "<image> and <video>?", "answer": "x", "image": "cat.png"}]
    name = jsonl(photos / "v.jsonl", rows)
    assert kinds(load_prompts(name, columns={"videos": ""})[0]) == ["IMAGE", " and <video>?"]
    with pytest.raises(ValueError, match="more <video> placeholders"):
        load_prompts(name)


def test_ids_are_stable_and_unique(tmp_path):
    rows = [{"question": f"{number}?", "answer": number} for number in range(30)]
    (tmp_path / "x").mkdir()
    first = load_prompts(jsonl(tmp_path / "a.jsonl", rows))
    moved = load_prompts(jsonl(tmp_path / "x" / "a.jsonl", rows), limit=7)
    assert moved.size == 7 and [moved[i].id for i in range(7)] == [
        first[i].id for i in range(7)
    ]
    assert len({prompt.id for prompt in first}) == 30
    repeated = [{"question": "x", "answer": 1, "id": value} for value in (5, 5, None, 6)]
    ids = [prompt.id for prompt in load_prompts(jsonl(tmp_path / "r.jsonl", repeated))]
    assert ids[0] == "5" and ids[1] == "5#1" and ids[2].startswith("r.jsonl:") and ids[3] == "6"


def test_odd_files_are_read(tmp_path):
    row = json.dumps({"question": "où \u2028?", "answer": "là"}, ensure_ascii=False)
    (tmp_path / "bom.jsonl").write_bytes(
        b"\xef\xbb\xbf" + row.encode() + b"\r\n\r\n" + row.encode()
    )
    assert [
        prompt.answer for prompt in load_prompts(str(tmp_path / "bom.jsonl"), on_bad="stop")
    ] == ["là", "là"]
    (tmp_path / "latin.jsonl").write_bytes(
        row.encode() + b"\n" + '{"question": "où"}'.encode("latin-1")
    )
    prompts = load_prompts(str(tmp_path / "latin.jsonl"))
    assert prompts.skipped == {"bad JSON": 1} and "line 2" in str(prompts.faults[0])


def test_loading_decodes_nothing(photos, tmp_path):
    """Five thousand rows load fast and hold no pixels: files are looked at only when an index is read."""
    (tmp_path / "p").mkdir()
    for number in range(50):
        (tmp_path / "p" / f"{number}.png").write_bytes(b"never decoded")
    (tmp_path / "p" / "7.png").write_bytes((photos / "cat.png").read_bytes())
    rows = [
        {"problem": "<image>?", "answer": 1, "images": [f"p/{number % 50}.png"]}
        for number in range(5_000)
    ]
    name = jsonl(tmp_path / "many.jsonl", rows)
    start = time.process_time()
    prompts = load_prompts(name)
    assert prompts.size == 5_000 and time.process_time() - start < 2
    assert np.array_equal(hwc(prompts[4_957].media[0]), rgb("cat"))
    assert len(pickle.dumps(prompts)) < 500_000


def test_embedded_base64_and_bytes_rows(photos, tmp_path):
    text = base64.b64encode((photos / "cat.png").read_bytes()).decode()
    rows = [
        {"question": "x", "answer": "y", "image": cell}
        for cell in (text, f"data:image/png;base64,{text}")
    ]
    for prompt in load_prompts(jsonl(tmp_path / "b.jsonl", rows), on_bad="stop"):
        assert np.array_equal(hwc(prompt.media[0]), rgb("cat"))


@pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="needs av to write a clip")
def test_video_rows(photos, tmp_path):
    import av

    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(16):
            frame = av.VideoFrame.from_ndarray(
                np.full((48, 64, 3), 15 * number, dtype=np.uint8), format="rgb24"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (tmp_path / "fake.mp4").write_text("no clip")
    rows = [
        {
            "problem": "<video>What <image>?",
            "answer": "x",
            "videos": ["clip.mp4"],
            "images": [str(photos / "cat.png")],
        },
        {"problem": "When?", "answer": "x", "videos": [{"path": "clip.mp4", "bytes": None}]},
        {"problem": "When?", "answer": "x", "videos": ["fake.mp4"]},
    ]
    prompts = load_prompts(
        jsonl(tmp_path / "v.jsonl", rows), clip={"fps": 2.0}, allow_outside=True
    )
    assert kinds(prompts[0]) == ["VIDEO", "What ", "IMAGE", "?"]
    media = prompts[0].media
    assert media[0].is_video and media[0].frames.shape[0] == 8 and not media[1].is_video
    assert torch.all(media[0].times[1:] > media[0].times[:-1]) and kinds(prompts[1]) == [
        "VIDEO",
        "When?",
    ]
    with pytest.raises(BadRow, match=r"v\.jsonl, line 3: broken video"):
        prompts[2]


def test_templates_fill_and_refuse():
    assert (
        THINK_THEN_BOX.fill("Why {x}?", {}).startswith("Why {x}?\n\n")
        and "\\boxed{}" in THINK_THEN_BOX.prompt
    )
    assert (
        "<answer> </answer>" in THINK_THEN_ANSWER.prompt
        and PLAIN.fill("{question}", {}) == "{question}"
    )
    easyr1 = Template(
        "{{ content | trim }} Options: {% for o in row.options %}({{ o }}){% endfor %}"
    )
    assert easyr1.fill(" Which? ", {"options": ["a", "b"]}) == "Which? Options: (a)(b)"
    with pytest.raises(Fault, match="template cannot be filled"):
        Template("{{ nope }}{{ question }}").fill("x", {})
    with pytest.raises(ValueError, match="not valid jinja2"):
        Template("{{ question")
    messages = question_chat("Hi", Template("{question}!", system="Be kind."), {}, Visuals())
    assert messages == (
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi!"},
    )


WORDS = st.text(string.ascii_letters + " <>{}%|\n", max_size=8).filter(
    lambda t: "<image>" not in t and "<video>" not in t
)


@given(
    texts=st.lists(WORDS, min_size=1, max_size=7),
    marks=st.lists(st.sampled_from(["image", "video"]), max_size=6),
    surplus=st.integers(-2, 2),
)
@settings(max_examples=150, deadline=None)
def test_placeholders_take_media_in_order_or_refuse(texts, marks, surplus):
    texts = (texts + [""] * 7)[: len(marks) + 1]
    question = texts[0] + "".join(
        f"<{mark}>{text}" for mark, text in zip(marks, texts[1:], strict=True)
    )
    images = [("i", n) for n in range(max(0, marks.count("image") + surplus))]
    videos = [("v", n) for n in range(marks.count("video"))]
    visuals = Visuals(images, videos, has_images=True, has_videos=True)
    if marks and len(images) != marks.count("image"):
        with pytest.raises(Fault):
            question_chat(question, PLAIN, {}, visuals)
        return
    (turn,) = question_chat(question, PLAIN, {}, visuals)
    if not marks:
        expected = images
        assert [cell for _, cell in visuals.used] == expected
    else:
        counts = {"image": iter(images), "video": iter(videos)}
        assert visuals.used == [(mark, next(counts[mark])) for mark in marks]
    content = turn["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    assert (
        "".join(p.get("text", f"<{p['type']}>") for p in parts)
        == "<image>" * (0 if marks else len(images)) + question
    )
    assert [p["type"] for p in parts if p["type"] != "text"] == [
        kind for kind, _ in visuals.used
    ]


@given(
    names=st.lists(
        st.text(string.ascii_lowercase + "_", min_size=1, max_size=10),
        unique=True,
        min_size=1,
        max_size=8,
    ),
    field=st.sampled_from(sorted(CONVENTIONS)),
    pick=st.integers(0, 100),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_columns_resolve_to_existing_names_only(names, field, pick):
    explicit = names[pick % len(names)]
    found = ColumnMap.of({field: explicit}).resolve(names, "t")
    assert found[field] == (explicit,)
    assert all(name in names for chosen in found.values() for name in chosen)
    for other, candidates in CONVENTIONS.items():
        if other != field:
            assert found[other] == tuple(name for name in candidates if name in names)[:1]
    with pytest.raises(ValueError, match="it has"):
        ColumnMap.of({field: "NOT_THERE"}).resolve(names, "t")


def test_drawn_names_and_split(tmp_path):
    prompts = load_prompts("drawn:lookup", split="heldout", limit=9, seed=4)
    assert isinstance(prompts, Drawn) and prompts == Drawn("lookup", "heldout", 4, 9)
    assert load_prompts("drawn:counting").size is None
    with pytest.raises(ValueError, match="'lookups'; it must be one of lookup, describe"):
        load_prompts("drawn:lookups")
    with pytest.raises(ValueError, match="'train' and 'heldout'"):
        load_prompts("drawn:lookup", split="test")
    train, held = split_prompts(prompts, 1 / 3, seed=1)
    assert train.size == 6 and held.size == 3
    assert {train[i].id for i in range(6)} | {held[i].id for i in range(3)} == {
        prompt.id for prompt in prompts
    }
    assert split_prompts(prompts, 3, seed=1)[1].indices == held.indices
    assert len({split_prompts(prompts, 3, seed=n)[1].indices for n in range(8)}) > 1
    with pytest.raises(IndexError):
        held[3]
    for share in (0, 9, 1.0):
        with pytest.raises(ValueError, match="at least one"):
            split_prompts(prompts, share)
    with pytest.raises(ValueError, match="Endless"):
        split_prompts(load_prompts("drawn:lookup"))


def test_settings_are_checked(tmp_path):
    name = jsonl(tmp_path / "a.jsonl", [{"question": "x", "answer": 1}])
    with pytest.raises(ValueError, match="'skip' or 'stop'"):
        load_prompts(name, on_bad="ignore")
    with pytest.raises(ValueError, match="limit is 0"):
        load_prompts(name, limit=0)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A new interpreter imports the loader, says what else that imported, and asks for a set that is not there."""
    heavy = ("datasets", "pyarrow", "av", "decord", "jinja2", "transformers")
    code = (
        f"import sys, mmrl.data.rows.sources as rows; print([m for m in {heavy} if m in sys.modules]); "
        "rows.load_prompts('someone/not_there')"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path_factory.mktemp("hub"))}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )


def test_hub_failure_is_explained(fresh):
    last = fresh.stderr.strip().splitlines()[-1]
    assert (
        last.startswith("ValueError: someone/not_there is neither a local path")
        and "pass a local file" in last
    )


def test_import_is_light(fresh):
    assert fresh.stdout.strip() == "[]", fresh.stderr


def test_the_summary_says_what_rows_show_and_what_was_left_out(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.mp4").write_bytes(b"x")  # not decoded at loading
    rows = [
        {"question": "<image><image>?", "images": ["a.png", "a.png"], "answer": "1"},
        {"question": "When?", "video": "a.mp4", "answer": "1"},
        {"question": "Why?", "answer": "1"},
        {"question": "Why?", "image": None, "answer": "1"},
        {"question": "<image>?", "images": ["absent.png"], "answer": "1"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prompts = load_prompts(str(tmp_path / "rows.jsonl"))
    assert prompts.summary() == (
        f"{prompts.source}: 4 prompts (2 pictures, 1 clip, 2 asked as text alone); "
        "bad rows before any picture is decoded: 1 missing media"
    )
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[2]))
    assert (
        load_prompts(str(tmp_path / "rows.jsonl"))
        .summary()
        .endswith("1 prompts (1 asked as text alone)")
    )
