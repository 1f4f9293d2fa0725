"""Rows as others publish them, without a flag: layouts, chats in every container, class labels, our own export."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrl.data.pretext.presets import preset
from mmrl.data.pretext.stream.export import export
from mmrl.data.pretext.stream.sources import DrawnSource
from mmrl.data.pretext.stream.stream import SampleStream
from mmrl.data.rows.sources import load_prompts


def png(side: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (255, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


URI = f"data:image/png;base64,{base64.b64encode(png()).decode()}"


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.mp4").write_bytes(b"never decoded")
    return tmp_path


def saved(folder: Path, rows, kind: str) -> str:
    path = folder / f"rows.{kind}"
    if kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            texts = [
                {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
                for row in rows
            ]
            writer.writerows(texts)
    else:
        import pyarrow
        import pyarrow.parquet as parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def kinds(prompt) -> list[str]:
    content = prompt.messages[-1]["content"]
    if isinstance(content, str):
        return [content]
    return [part.get("text", part["type"].upper()) for part in content]


LLAVA = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
VERL = {
    "data_source": "x", "ability": "math", "prompt": [{"role": "user", "content": "<image>What?"}],
    "images": ["a.png"], "reward_model": {"style": "rule", "ground_truth": "red"},
    "extra_info": {"split": "train", "index": 0, "answer": "wrong", "question": "wrong"},
}  # fmt: skip
BOX = '{"bbox": [1, 2, 3, 4]}'
LAYOUTS = {
    "video-r1 picture": (
        {"problem_id": 1, "problem": "What?", "data_type": "image", "problem_type": "free-form", "options": [],
         "solution": "<answer>red</answer>", "path": "./a.png"},
        ["IMAGE", "What?"], "red",
    ),
    "video-r1 choice": (
        {"problem_id": 1, "problem": "What?", "data_type": "image", "problem_type": "multiple choice", "process": "",
         "options": ["A. red", "B. blue"], "solution": "<answer>A</answer>", "path": "./a.png"},
        ["IMAGE", "What?\nOptions:\nA. red\nB. blue"], "A",
    ),
    "verl": (VERL, ["IMAGE", "What?"], "red"),
    "verl, image records": ({**VERL, "images": [{"image": "a.png"}]}, ["IMAGE", "What?"], "red"),
    "llava": ({"id": "1", "image": "a.png", "conversations": LLAVA}, ["IMAGE", "\nWhat?"], "red"),
    "llava, text row": (
        {"id": "1", "image": None, "conversations": [
            {"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
        ["2 + 2?"], "4",
    ),
    "vlm-r1 chat": (
        {"id": 1, "image": ["a.png", "a.png"], "accu_reward_method": "default", "conversations": [
            {"from": "human", "value": "<image><image>Same?"}, {"from": "gpt", "value": "yes"}]},
        ["IMAGE", "IMAGE", "Same?"], "yes",
    ),
    "vlm-r1 chat, tagged": (
        {"id": 1, "image": "a.png", "conversations": [
            {"from": "human", "value": "<image>Where?"}, {"from": "gpt", "value": f"<answer>{BOX}</answer>"}]},
        ["IMAGE", "Where?"], BOX,
    ),
    "vlm-r1 table": (
        {"image": "a.png", "problem": "Where?", "solution": f"<think>so</think> <answer> {BOX} </answer>"},
        ["IMAGE", "Where?"], BOX,
    ),
    "choices": (
        {"question": "What?", "image": "a.png", "choices": ["red", "blue"], "answer": "A"},
        ["IMAGE", "What?\nOptions:\nA. red\nB. blue"], "A",
    ),
    "choices in the text": (
        {"question": "red (1) or blue (2)?", "image": "a.png", "options": ["red", "blue"], "answer": "1"},
        ["IMAGE", "red (1) or blue (2)?"], "1",
    ),
    "choices as python": (
        {"question": "What is it?", "image": "a.png", "options": "['red', 'blue']", "answer": "A"},
        ["IMAGE", "What is it?\nOptions:\nA. red\nB. blue"], "A",
    ),
    "choices by letter": (
        {"question": "What is it?", "image": "a.png", "options": {"A": "red", "B": "blue"}, "answer": "A"},
        ["IMAGE", "What is it?\nOptions:\nA. red\nB. blue"], "A",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts_load_without_a_flag(folder, layout, kind, capsys):
    row, expected, answer = LAYOUTS[layout]
    if kind == "csv" and row.get("image", "") is None:
        row = {**row, "image": ""}
    prompts = load_prompts(saved(folder, [row, row], kind), on_bad="stop")
    assert kinds(prompts[0]) == expected
    assert len(prompts[0].media) == sum(part == "IMAGE" for part in expected)
    assert str(prompts[0].answer) == answer
    assert "not shown" not in capsys.readouterr().err


CLIPS = {
    "video-r1": {"problem": "What?", "data_type": "video", "path": "./a.mp4", "solution": "<answer>x</answer>"},
    "llava-video": {"video": "a.mp4", "conversations": LLAVA},
    "llava, own mark": {
        "video": "a.mp4", "conversations": [{"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "x"}]},
    "verl": {**VERL, "prompt": [{"role": "user", "content": "<video>What?"}], "images": [],
             "videos": [{"type": "video", "video": "a.mp4"}]},
}  # fmt: skip


@pytest.mark.parametrize("layout", CLIPS)
def test_clips_of_published_layouts_are_clips(folder, layout):
    prompts = load_prompts(saved(folder, [CLIPS[layout]], "jsonl"), on_bad="stop")
    _, visuals, _ = prompts._chat(prompts._table.row(0, prompts._wanted))
    assert [kind for kind, _ in visuals.used] == ["video"]
    with pytest.raises(ValueError, match=r"a\.mp4 cannot be decoded"):
        prompts[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data_type": "sound"}, "bad row"),
        ({"data_type": None}, "bad row"),
        ({"path": ""}, "missing media"),
        ({"path": None}, "missing media"),
        ({"path": "gone.png"}, "missing media"),
    ],
)
def test_bad_rows_of_video_r1_are_counted(folder, change, reason):
    good = LAYOUTS["video-r1 picture"][0]
    prompts = load_prompts(saved(folder, [good, {**good, **change}], "json"))
    assert len(prompts) == 1 and prompts.skipped == {reason: 1}


ASKED = {"type": "text", "text": "What?"}
PARTS = {
    "record": {"type": "image", "image": {"bytes": png(), "path": None}},
    "record beside an empty text": {"type": "image", "image": {"bytes": png(), "path": None}, "text": None},
    "bytes": {"type": "image", "image": png()},
    "bytes key": {"type": "image", "bytes": png()},
    "path": {"type": "image", "path": "a.png"},
    "uri": {"type": "image_url", "image_url": {"url": URI}},
    "uri as text": {"type": "image_url", "image_url": URI},
    "responses": {"type": "input_image", "image_url": URI},
    "base64": {"type": "image", "base64": URI.partition(",")[2]},
    "source": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": URI.partition(",")[2]}},
    "without a type": {"image": URI},
}  # fmt: skip
REPLY = {"role": "assistant", "content": [{"type": "text", "text": "red"}]}
HOLDERS = {
    "messages": lambda chat: {"messages": chat, "answer": "red"},
    "prompt": lambda chat: {"prompt": chat, "answer": "red"},
    "with reply": lambda chat: {"messages": [*chat, REPLY]},
}  # fmt: skip


def has_bytes(value) -> bool:
    if isinstance(value, dict):
        return any(map(has_bytes, value.values()))
    return isinstance(value, bytes)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "saved"])
@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("part", PARTS)
def test_chats_with_inline_pictures(folder, part, holder, kind):
    if has_bytes(PARTS[part]) and kind in ("jsonl", "csv"):
        pytest.skip("JSON has no bytes")
    row = HOLDERS[holder]([{"role": "user", "content": [PARTS[part], ASKED]}])
    if kind == "saved":
        import datasets

        datasets.Dataset.from_list([row]).save_to_disk(str(folder / "saved"))
        name = str(folder / "saved")
    else:
        name = saved(folder, [row], kind)
    prompt = load_prompts(name, on_bad="stop", image_root=folder)[0]
    assert kinds(prompt) == ["IMAGE", "What?"] and prompt.answer == "red"
    assert tuple(prompt.media[0].frames.shape) == (1, 3, 32, 32)


def test_pictures_that_datasets_encodes_itself(folder):
    import datasets

    picture = Image.new("RGB", (32, 32))
    chat = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": picture, "text": None},
                {"image": None, **ASKED},
            ],
        }
    ]
    made = datasets.Dataset.from_list([{"messages": chat, "answer": "red"}])
    made.save_to_disk(str(folder / "saved"))
    made.to_parquet(str(folder / "rows.parquet"))
    for name in ("saved", "rows.parquet"):
        assert kinds(load_prompts(str(folder / name))[0]) == ["IMAGE", "What?"]


def test_chats_stored_by_column_and_as_arrow_maps(folder):
    import pyarrow
    import pyarrow.parquet as parquet

    by_column = {"from": ["human", "gpt"], "value": ["<image>What?", "red"]}
    name = saved(folder, [{"conversations": by_column, "image": "a.png"}], "parquet")
    prompt = load_prompts(name, on_bad="stop")[0]
    assert kinds(prompt) == ["IMAGE", "What?"] and prompt.answer == "red"
    turn = pyarrow.map_(pyarrow.string(), pyarrow.string())
    turns = [[("role", "user"), ("content", "<image>What?")]]
    columns = {
        "messages": pyarrow.array([turns], pyarrow.list_(turn)),
        "image": ["a.png"],
        "answer": ["red"],
    }
    parquet.write_table(pyarrow.table(columns), folder / "maps.parquet")
    assert kinds(load_prompts(str(folder / "maps.parquet"))[0]) == ["IMAGE", "What?"]


PIXELS = np.zeros((4, 6, 3), np.uint8).tolist()
CELLS = {
    "pixels": (PIXELS, 1),
    "several pixels": ([PIXELS, PIXELS], 2),
    "grey pixels": ([[0, 1], [2, 3]], 1),
    "json list": ('["a.png", "a.png"]', 2),
    "records by column": ({"bytes": [png(), png()], "path": [None, None]}, 2),
    "bytes as numbers": ({"bytes": list(png()), "path": None}, 1),
    "wrapped base64": ("\n".join([URI[:70], URI[70:]]), 1),
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_pictures_in_every_container(folder, cell, kind):
    value, count = CELLS[cell]
    if cell == "records by column" and kind == "jsonl":
        pytest.skip("JSON has no bytes")
    rows = [{"question": "What?", "images": value, "answer": "x"}]
    prompts = load_prompts(saved(folder, rows, kind), on_bad="stop")
    assert len(prompts[0].media) == count


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ([[[0, 0, 300]]], "numbers"),
        ([[[0.5, 0.5, 0.5]]], "numbers"),
        ([[[0, 0, 0]], [[0, 0, 0], [1, 1, 1]]], "numbers"),
    ],
)
def test_pixels_that_are_none_are_refused_with_the_reason(folder, cell, found):
    name = saved(folder, [{"question": "What?", "images": cell, "answer": "x"}], "jsonl")
    with pytest.raises(ValueError, match=f"broken image: .*{found}"):
        load_prompts(name)[0]


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        ({"bytes": b"\0\0\0\x20ftypisom", "path": None}, "embedded"),
        (b"\0\0\0\x20ftypisom", "embedded"),
        ("data:video/mp4;base64,AAAA", "embedded"),
        (["a.png", "a.png"], "times"),
    ],
)
def test_clips_that_cannot_be_read_are_refused_with_the_true_reason(folder, clip, reason):
    name = saved(folder, [{"question": "What?", "video": clip, "answer": "x"}], "parquet")
    with pytest.raises(ValueError, match=reason):
        load_prompts(name)[0]


def test_frames_of_several_clips_have_their_times(folder):
    frames = [{"bytes": png(), "path": None}] * 3
    row = {
        "question": "<video>, then <video>?", "videos": [frames, frames[:2]],
        "video_times": [[0.0, 1.0, 2.0], [0.5, 1.5]], "answer": "x",
    }  # fmt: skip
    media = load_prompts(saved(folder, [row], "parquet"), on_bad="stop")[0].media
    assert [list(map(float, medium.times)) for medium in media] == [[0, 1, 2], [0.5, 1.5]]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_clips_as_nested_numbers_and_in_parts_of_chats(folder, kind):
    rows = [
        {"question": "When?", "video": [PIXELS, PIXELS], "fps": 2.0, "answer": "x"},
        {"question": "When?", "video": ["a.png", "a.png"], "fps": 2.0, "answer": "x"},
    ]
    for row in rows:
        medium = load_prompts(saved(folder, [row], kind), on_bad="stop")[0].media[0]
        assert list(map(float, medium.times)) == [0.0, 0.5]
    clip = {"type": "video", "video": ["a.png", "a.png"], "sample_fps": 4.0}
    chat = [{"role": "user", "content": [clip, ASKED]}]
    prompt = load_prompts(saved(folder, [{"messages": chat, "answer": "x"}], kind))[0]
    assert list(map(float, prompt.media[0].times)) == [0.0, 0.25]


def test_embedded_pictures_beside_chats_and_rows_without_them(folder):
    picture = {"bytes": png(), "path": None}
    rows = [{"conversations": LLAVA, "image": picture}, {"conversations": LLAVA, "image": None}]
    rows.append({**rows[1], "conversations": [{"from": "human", "value": "2?"}, LLAVA[1]]})
    prompts = load_prompts(saved(folder, rows, "parquet"))
    assert [len(prompt.media) for prompt in prompts] == [1, 0]
    assert prompts.skipped == {"missing media": 1} and "row 1" in str(prompts.faults[0])


@pytest.mark.parametrize("store", ["saved", "parquet", "card"])
def test_class_labels_are_their_names(folder, store):
    from datasets import ClassLabel, Dataset, Features, List, Value

    label = ClassLabel(names=["cat", "dog"])
    features = Features(
        {
            "question": Value("string"),
            "label": label,
            "seen": List(label),
            "meta": {"kind": label},
        }
    )
    rows = {
        "question": ["What?"] * 3,
        "label": [0, 1, -1],
        "seen": [[1, 0]] * 3,
        "meta": [{"kind": 1}] * 3,
    }
    made = Dataset.from_dict(rows, features=features)
    place = folder / "set"
    place.mkdir()
    if store == "saved":
        made.save_to_disk(str(place))
    elif store == "parquet":
        made.to_parquet(str(place / "train.parquet"))
    else:
        from datasets.info import DatasetInfosDict

        # As another tool writes it: the names stand on the card alone.
        saved(place, made.with_format(None).to_list(), "parquet")
        DatasetInfosDict({"default": made.info}).write_to_directory(str(place))
        assert "class_label" in (place / "README.md").read_text()
    prompts = load_prompts(str(place))
    assert [prompt.answer for prompt in prompts] == ["cat", "dog"]
    assert prompts.skipped == {"answer without text": 1}
    assert prompts[0].extra["seen"] == ["dog", "cat"] and prompts[0].extra["meta"] == {
        "kind": "dog"
    }


def test_a_card_that_cannot_be_read_is_named(folder):
    saved(folder, [{"question": "What?", "answer": "x"}], "jsonl")
    (folder / "README.md").write_text("---\ndataset_info: {class_label: [\n---\n")
    with pytest.raises(ValueError, match=r"README\.md.*class labels"):
        load_prompts(str(folder))


EXPORTS = [
    ("rotation", False, "train", (240, 320)),
    ("temporal-jigsaw", True, "test", (96, 128)),
]


@pytest.mark.parametrize(("name", "video", "split", "size"), EXPORTS)
def test_our_own_export_loads_back(tmp_path, name, video, split, size):
    out = tmp_path / name
    stream = SampleStream(DrawnSource(0, size), preset(name))
    export(lambda: stream, out, 3, split=split)
    # What skipped media leave beside the shards.
    (out / "quarantine.jsonl").write_text('{"where": "x"}\n')
    for place in (out, out / "data"):
        prompts = load_prompts(str(place), on_bad="stop")
        assert len(prompts) == 3 and prompts.check() == []
        assert all(prompt.media for prompt in prompts)
        assert {medium.is_video for prompt in prompts for medium in prompt.media} == {video}
    assert len(load_prompts(str(out), split=split)) == 3
