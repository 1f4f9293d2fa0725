"""One row never ends a run: whatever stands in it, it is skipped, counted and named, and the next one is read."""

import json
import os
import time
from pathlib import Path

import pytest
from PIL import Image

from mmrl.data.rows.row_prompts import UNFORESEEN
from mmrl.data.rows.sources import load_prompts
from mmrl.data.rows.tables import read_csv
from mmrl.data.rows.templates import Template
from mmrl.ground.faults import BadRow, Fault
from mmrl.rollouts.prompt_order import Supply

HALF = "\ud83d"
GOOD = {"question": "<image>What?", "image": "good.png", "answer": "1"}


@pytest.fixture
def folder(tmp_path):
    """A picture, and beside it what only looks like one."""
    folder = tmp_path / "data"
    folder.mkdir()
    for path in (folder / "good.png", tmp_path / "outside.png"):
        Image.new("RGB", (32, 32), "red").save(path)
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "up").symlink_to(tmp_path)
    (folder / "inner.png").symlink_to("good.png")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "fifo.png")
    deep = "good.png"
    for _ in range(300):
        deep = {"image": deep}
    (tmp_path / "deep.json").write_text(json.dumps(deep))
    return folder


def supplied(folder, row, **options):
    """The good row's prompt, and how a run counts the other row."""
    path = folder / "rows.jsonl"
    path.write_text(f"{json.dumps(row)}\n{json.dumps(GOOD)}\n")
    began = time.monotonic()
    prompts = load_prompts(str(path), **options)
    supply = Supply(prompts, 2, 0)
    taken = supply.take()
    assert time.monotonic() - began < 10
    skipped = prompts.skipped
    assert UNFORESEEN not in skipped
    return taken, skipped, prompts


ODD_CELLS = [
    {"bytes": "text"},
    {"bytes": "\x00\x01"},
    {"bytes": [1, 2, 300]},
    {"bytes": [-1]},
    {"bytes": [1.5]},
    {"bytes": [[1]]},
    {"bytes": 3_000_000_000},
    {"bytes": 7},
    {"bytes": True},
    {"bytes": 1e300},
    {"bytes": {}},
    {"bytes": {"bytes": "x"}},
    {"bytes": []},
    {"bytes": ""},
    {"bytes": None, "path": 7},
    {"bytes": None, "path": {"path": {"path": "good.png"}}},
    {"bytes": list(b"not a picture")},
    {"bytes": "data:image/png;base64,@@@"},
    {"image": {"image": {"image": "good.png"}}},
    {"path": "good.png", "bytes": "nonsense"},
    {},
    [[]],
    [["good.png"]],
    7,
    True,
    1e300,
    "a\0b.png",
    "x" * 5000,
    "~nobody/x.png",
    "file://",
    "/9j/" + "A" * 80 + " " * 100_000 + "!",
    "fifo.png",
    "zero.png",
    "folder.png",
    "circle.png",
    ".",
    "",
    "/dev/zero",
    "https://example.org/a.png",
]


@pytest.mark.parametrize("cell", ODD_CELLS, ids=lambda cell: repr(cell)[:40])
def test_an_odd_cell_is_a_bad_row(folder, cell) -> None:
    taken, skipped, prompts = supplied(folder, {**GOOD, "image": cell})
    assert [prompt.answer for prompt in taken] == ["1", "1"]
    assert sum(skipped.values()) == 1
    assert "rows.jsonl, line 1" in str(prompts.faults[0])
    assert len(str(prompts.faults[0])) < 1500


def test_an_endlessly_nested_cell_is_a_bad_row(folder) -> None:
    row = {**GOOD, "image": json.loads((folder.parent / "deep.json").read_text())}
    _, skipped, _ = supplied(folder, row)
    assert sum(skipped.values()) == 1


@pytest.mark.parametrize(
    "row",
    [
        {**GOOD, "question": f"<image>What {HALF}?"},
        {**GOOD, "question": "<image>What \udc00\ud800?"},
        {**GOOD, "answer": HALF},
        {**GOOD, "answer": {"a": [1, HALF]}},
        {**GOOD, "answer": {HALF: 1}},
        {**GOOD, "image": f"{HALF}.png"},
        {**GOOD, "id": HALF},
        {**GOOD, "more": HALF},
        {**GOOD, HALF: "more"},
        {**GOOD, "question": [{"role": "user", "content": f"<image>{HALF}"}]},
        {
            **GOOD,
            "question": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": HALF}]}
            ],
        },
    ],
    ids=lambda row: json.dumps(row)[:60],
)
def test_half_a_character_in_any_text_is_a_bad_row(folder, row) -> None:
    taken, skipped, prompts = supplied(folder, row)
    assert [prompt.answer for prompt in taken] == ["1", "1"]
    assert skipped == {"broken text": 1}
    # It can be printed and logged.
    assert "half of a surrogate pair" in str(prompts.faults[0]).encode().decode()


def test_a_whole_emoji_is_fine(folder) -> None:
    taken, skipped, _ = supplied(folder, {**GOOD, "question": "<image>What \ud83d\ude00?"})
    assert not skipped and len(taken) == 2


OUTSIDE = ["{up}/outside.png", "../outside.png", "link.png", "up/outside.png", "file://{up}/outside.png"]  # fmt: skip


@pytest.mark.parametrize("cell", OUTSIDE)
@pytest.mark.parametrize("shape", ["text", "record", "list", "chat"])
def test_a_path_outside_the_data_is_refused_unless_asked_for(folder, cell, shape) -> None:
    cell = cell.replace("{up}", str(folder.parent))
    row = {**GOOD, "image": cell}
    if shape == "record":
        row["image"] = {"bytes": None, "path": cell}
    elif shape == "list":
        row["image"] = [cell]
    elif shape == "chat":
        part = {"type": "image", "image": cell}
        row = {"question": [{"role": "user", "content": [part]}], "answer": "1"}
    _, skipped, prompts = supplied(folder, row)
    assert skipped == {"media outside the data": 1}
    for flag in ("--data.allow-outside", "--data.image-root"):
        assert flag in str(prompts.faults[0])
    for allowed in ({"allow_outside": True}, {"image_root": folder.parent}):
        if "image_root" in allowed and not cell.startswith(("/", "file:")):
            continue  # relative paths then start elsewhere
        (folder.parent / "good.png").write_bytes((folder / "good.png").read_bytes())
        _, skipped, _ = supplied(folder, row, **allowed)
        assert not skipped


INSIDE = ["good.png", "inner.png", "./good.png", "up/data/good.png", "{here}/good.png"]


@pytest.mark.parametrize("cell", INSIDE)
def test_paths_that_stay_inside_are_read(folder, cell) -> None:
    row = {**GOOD, "image": cell.replace("{here}", str(folder))}
    _, skipped, _ = supplied(folder, row)
    assert not skipped


def test_the_hub_cache_is_one_folder(tmp_path) -> None:
    """In it files are links to `blobs`, which lies beside the snapshot."""
    repository = tmp_path / "datasets--me--photos"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    Image.new("RGB", (32, 32)).save(blobs / "123.png")
    (snapshot / "good.png").symlink_to("../../blobs/123.png")
    _, skipped, _ = supplied(snapshot, GOOD)
    assert not skipped


def test_frames_and_clips_stay_inside_too(folder) -> None:
    frames = {"question": "<video>?", "frames": ["../outside.png"], "fps": 1, "answer": "1"}
    clip = {"question": "<video>?", "video": "../outside.mp4", "answer": "1"}
    for row in (frames, clip):
        _, skipped, _ = supplied(folder, row)
        assert skipped == {"media outside the data": 1}


@pytest.mark.parametrize(
    "odd",
    [
        {"frames": ["good.png", "good.png"], "fps": 1e-320},
        {"frames": ["good.png", "good.png"], "times": [0, 10**400]},
        {"frames": ["good.png", "good.png"], "times": [0, None]},
        {"frames": {"a": 1}, "fps": 1},
        {"frames": [None], "fps": 1},
    ],
    ids=lambda odd: repr(odd)[:50],
)
def test_odd_frames_are_bad_rows(folder, odd) -> None:
    _, skipped, _ = supplied(folder, {"question": "<video>?", "answer": "1", **odd})
    assert sum(skipped.values()) == 1


@pytest.mark.parametrize(
    "chat",
    [
        7,
        True,
        {"a": 1},
        [7],
        [None],
        [{"role": [], "content": "a"}],
        [{"role": {}, "content": "a"}],
        [{"from": 1, "value": "a"}],
        [{"role": "user", "content": 7}],
        [{"role": "user", "content": [7]}],
        [{"role": "user", "content": [{"type": [], "text": "a"}]}],
        [{"role": "user", "content": [{"type": "image", "image": 7}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 7}}]}],
    ],
    ids=lambda chat: repr(chat)[:60],
)
def test_odd_chats_are_bad_rows(folder, chat) -> None:
    for column in ("messages", "question"):
        row = {"answer": "1", "image": "good.png", column: chat}
        _, skipped, _ = supplied(folder, row)
        assert sum(skipped.values()) == 1, column


def test_what_nobody_thought_of_is_a_bad_row_too(folder, monkeypatch) -> None:
    from mmrl.data.rows import row_prompts

    def fail(cell, base):
        raise RecursionError if cell == "bad" else KeyError("secret")

    monkeypatch.setattr(row_prompts, "check_image", fail)
    path = folder / "rows.jsonl"
    text_row = {"question": "What?", "image": [], "answer": "1"}
    path.write_text("\n".join(map(json.dumps, [GOOD, {**GOOD, "image": "bad"}, text_row])))
    prompts = load_prompts(str(path))
    assert len(prompts) == 1 and prompts.skipped == {UNFORESEEN: 2}
    assert "secret" not in str(prompts.faults[0]) and "line 1" in str(prompts.faults[0])
    with pytest.raises(Fault, match="KeyError while it was read"):
        load_prompts(str(path), on_bad="stop")


def parquet_of(folder, **columns):
    import pyarrow
    import pyarrow.parquet as parquet

    path = folder / "rows.parquet"
    parquet.write_table(pyarrow.table(columns), path, row_group_size=10)
    return path


def test_text_that_is_no_utf8_costs_its_row_only(folder) -> None:
    import pyarrow

    raw = pyarrow.array([b"What?", b"\xff\xfe", b"Why?"], pyarrow.binary())
    texts = pyarrow.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    prompts = load_prompts(str(parquet_of(folder, question=texts, answer=["1", "2", "3"])))
    assert [prompt.answer for prompt in prompts] == ["1", "3"]
    assert prompts.skipped == {"bad row": 1} and "row 1" in str(prompts.faults[0])


def test_a_damaged_row_group_costs_its_rows_only(folder) -> None:
    import pyarrow.parquet as parquet

    numbers = [str(number) for number in range(40)]
    path = parquet_of(folder, question=[f"{n}?" for n in numbers], answer=numbers)
    content = bytearray(path.read_bytes())
    with parquet.ParquetFile(path) as file:
        start = file.metadata.row_group(1).column(0).data_page_offset
    content[start : start + 30] = bytes(30)
    path.write_bytes(content)
    prompts = load_prompts(str(path))
    assert [prompt.answer for prompt in prompts] == numbers[:10] + numbers[20:]
    assert prompts.skipped == {"broken file": 10}


def test_a_run_of_nothing_but_bad_rows_says_why(folder) -> None:
    (folder / "rows.jsonl").write_text(json.dumps({**GOOD, "image": "/etc/hostname"}))
    with pytest.raises(ValueError, match=r"--data\.allow-outside"):
        load_prompts(str(folder / "rows.jsonl"))
    with pytest.raises(BadRow, match="does not lie in"):
        load_prompts(str(folder / "rows.jsonl"), on_bad="stop")


def test_a_source_that_is_no_file_is_refused_at_once(folder) -> None:
    for path in ("/dev/zero", folder / "fifo.png"):
        with pytest.raises(ValueError, match="neither a file nor a folder"):
            load_prompts(str(path))


def test_a_folder_of_pictures_names_what_is_none(folder) -> None:
    prompts = load_prompts(str(folder), columns={"question": None}, template=Template("What?"))
    assert len(prompts) == 2  # the picture, and a link to it
    assert prompts.skipped == {"missing media": 2, "media outside the data": 2}
    said = " ".join(map(str, prompts.faults))
    for name in ("fifo.png", "circle.png", "zero.png", "link.png"):
        assert name in said


@pytest.mark.parametrize("content", ["hunter2 {", '["hunter2"]', '{"a": hunter2}', '"hunter2"'])
def test_messages_quote_no_line_of_a_file(folder, content) -> None:
    path = folder / "rows.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{content}\n")
    prompts = load_prompts(str(path))
    assert prompts.skipped == {"bad JSON": 1}
    assert "line 2" in str(prompts.faults[0]) and "hunter2" not in str(prompts.faults[0])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"question,answer\nWhat?,1\nWh\xff?,2\nWhy?,3\n"),
        ("a.tsv", b"question\tanswer\nWhat?\t1\nWhich?\t\xe9\nWhy?\t3\n"),
        ("a.jsonl", b'{"question": "What?", "answer": 1}\n{"question": "\xff"}\n{"question": "Why?", "answer": 3}'),
        ("a.json", b'[{"question": "What?", "answer": 1}, {"question": "\xff"}, {"question": "Why?", "answer": 3}]'),
    ],
)  # fmt: skip
def test_bytes_that_are_no_utf8_cost_their_row_only(tmp_path, name, content) -> None:
    (tmp_path / name).write_bytes(content)
    prompts = load_prompts(str(tmp_path / name))
    assert [str(prompt.answer) for prompt in prompts] == ["1", "3"]
    assert sum(prompts.skipped.values()) == 1


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_cell_longer_than_pythons_limit_is_read(tmp_path: Path, name: str) -> None:
    mark = "," if name == "a.csv" else "\t"
    long = "x" * 300_000
    (tmp_path / name).write_text(f"question{mark}answer\n{long}{mark}1\nWhy?{mark}2\n")
    rows = [row for row in read_csv(tmp_path / name).scan() if not isinstance(row, Fault)]
    assert [(len(row["question"]), row["answer"]) for row in rows] == [(300_000, "1"), (4, "2")]
