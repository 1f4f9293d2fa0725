"""The model sees what the row says: placeholders without media, media that nobody reads, and what is said of them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from mmrl.data.rows.sources import load_prompts
from mmrl.ground.faults import BadRow

UNKNOWN = (
    *("image_file", "img_path", "file_name", "path", "picture"),
    *("image_url", "file", "photo", "image_1"),
)
"""Columns that published sets use and that no convention names."""


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (255, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.mp4").write_bytes(b"never decoded")
    return tmp_path


def written(folder: Path, rows, name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("column", UNKNOWN)
def test_a_placeholder_without_a_column_is_refused_with_the_flag(folder, column):
    row = {"question": "<image>What colour?", column: "a.png", "answer": "red"}
    name = written(folder, [row] * 3)
    with pytest.raises(ValueError, match=rf"--data\.columns images={column} ") as caught:
        load_prompts(name)
    assert "a.png" in str(caught.value) and "3 missing media" in str(caught.value)
    mapped = load_prompts(name, columns={"images": column})
    assert len(mapped) == 3 and len(mapped[0].media) == 1


@pytest.mark.parametrize("column", UNKNOWN)
def test_an_unread_column_is_named_where_nothing_asks_for_it(folder, column, capsys):
    row = {"question": "What colour is it?", column: "a.png", "answer": "red"}
    prompts = load_prompts(written(folder, [row]))
    said = capsys.readouterr().err
    assert prompts[0].media == () and repr(column) in said
    assert f"--data.columns images={column} " in said


ASKED = (
    "<image>What?",
    "<video>What?",
    "What is <image 1>?",
    "<|image_1|> What?",
    [{"role": "user", "content": "<image>What?"}],
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}],
    [{"from": "human", "value": "<video>\nWhat?"}],
    json.dumps([{"role": "user", "content": "<image>What?"}]),
)


@pytest.mark.parametrize("question", ASKED, ids=str)
@pytest.mark.parametrize("column", ["question", "messages"])
def test_placeholders_of_every_spelling_need_a_medium(folder, question, column):
    if column == "messages" and isinstance(question, str) and question[0] != "[":
        pytest.skip("a text is no chat")
    good = {column: [{"role": "user", "content": "2 + 2?"}], "answer": "4"}
    prompts = load_prompts(written(folder, [good, {column: question, "answer": "x"}]))
    assert prompts.skipped == {"missing media": 1} and len(prompts) == 1
    assert "line 2" in str(prompts.faults[0]) and "--data.columns" in str(prompts.faults[0])
    with pytest.raises(BadRow, match=r"--data\.columns"):
        load_prompts(str(folder / "rows.jsonl"), on_bad="stop")


def test_words_in_system_and_assistant_turns_stay_words(folder):
    chat = [
        {"role": "system", "content": "An <image> may come."},
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "<image> or <video>"},
    ]
    prompts = load_prompts(written(folder, [{"messages": chat}]), on_bad="stop")
    assert prompts[0].answer == "<image> or <video>" and prompts[0].media == ()


def test_empty_cells_are_text_rows_and_counted(folder, capsys):
    rows = [
        {"image": "a.png", "video": None, "question": "<image>What?", "answer": "x"},
        {"image": None, "video": "a.mp4", "question": "<video>What?", "answer": "x"},
        {"image": None, "video": None, "question": "What is 0+1?", "answer": "1"},
        {"image": "", "video": "", "question": "What is 1+1?", "answer": "2"},
        {"image": "", "video": None, "question": "<image>What?", "answer": "x"},
    ]
    prompts = load_prompts(written(folder, rows))
    assert len(prompts) == 4 and prompts.skipped == {"missing media": 1}
    assert "2 of 4 rows show no picture or clip" in capsys.readouterr().err


def test_rows_that_show_nothing_are_said_unless_the_user_said_so(folder, capsys):
    name = written(folder, [{"question": "2 + 2?", "answer": "4"}])
    load_prompts(name)
    assert "no row shows a picture or a clip" in capsys.readouterr().err
    load_prompts(name, columns={"images": None})
    assert capsys.readouterr().err == ""


def embedded(kind: str):
    data = png()
    return {
        "bytes": data,
        "record": {"bytes": data, "path": None},
        "list": [{"bytes": data, "path": "a.png"}],
        "uri": f"data:image/png;base64,{base64.b64encode(data).decode()}",
        "nested": {"image": [{"bytes": data, "path": None}]},
    }[kind]


@pytest.mark.parametrize("kind", ["bytes", "record", "list", "uri", "nested"])
def test_embedded_media_in_unknown_columns_are_named_and_mapped(folder, kind, capsys):
    import pyarrow
    import pyarrow.parquet as parquet

    row = {"question": "What colour?", "answer": "red", "shot": embedded(kind)}
    parquet.write_table(pyarrow.Table.from_pylist([row] * 2), folder / "rows.parquet")
    load_prompts(str(folder / "rows.parquet"))
    column = "shot.image" if kind == "nested" else "shot"
    assert f"--data.columns images={column} " in capsys.readouterr().err
    prompts = load_prompts(str(folder / "rows.parquet"), columns={"images": column})
    assert [len(prompt.media) for prompt in prompts] == [1, 1]
    assert capsys.readouterr().err == ""


def test_names_beside_embedded_media_are_not_taken_for_media(folder, capsys):
    row = {"question": "What?", "answer": "x", "image": "a.png", "origin": "coco/train/7.jpg"}
    load_prompts(written(folder, [row]))
    assert capsys.readouterr().err == ""
    row = {"question": "What?", "answer": "x", "shot": "gone/7.jpg"}
    load_prompts(written(folder, [row]))
    said = capsys.readouterr().err
    assert "images=shot" in said and "--data.image-root" in said


@pytest.mark.parametrize("denied", [{"images": None}, {"images": ""}])
def test_who_says_that_there_are_none_is_believed(folder, denied, capsys):
    row = {"question": "What is <image>?", "answer": "a tag", "shot": "a.png"}
    prompts = load_prompts(written(folder, [row]), columns=denied, on_bad="stop")
    assert prompts[0].messages[-1]["content"] == "What is <image>?"
    assert capsys.readouterr().err == ""
