"""One entry of an annotation file never ends a run, whatever stands in it, and names no clip outside its folder."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mmrl.data.grounding.formats import span_lines, video_r1
from mmrl.ground.faults import Fault

HALF = "\ud83d"
DEEP: Any = "x"
for _ in range(300):
    DEEP = [DEEP]
ODD: list[Any] = [
    None,
    True,
    -1,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "\0",
    "x" * 5000,
    HALF,
    "../a.mp4",
    "/dev/zero",
    "fifo.mp4",
    [],
    {},
    [None],
    [[]],
    [[1]],
    [[1, 2, 3]],
    [[None, "a"]],
    [[10**400, 1]],
    [[float("nan"), 1]],
    {"a": [HALF]},
    [{}],
    [{"query": 7, "span": {}}],
    DEEP,
]


def formats() -> list[Any]:
    """The examples of the neighbouring test."""
    file = Path(__file__).with_name("test_sets.py")
    spec = importlib.util.spec_from_file_location("neighbour", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [form for form in module.FORMATS if not isinstance(form[1], str)]


def places(entry: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a value stands in an entry, at any depth."""
    found = [path] if path else []
    if isinstance(entry, dict):
        for key, value in entry.items():
            found += places(value, (*path, key))
    elif isinstance(entry, list):
        for number, value in enumerate(entry):
            found += places(value, (*path, number))
    return found


def put(entry: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(entry)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


@pytest.mark.parametrize("form", formats(), ids=lambda form: form[0])
def test_odd_values_cost_their_entry_only(form, tmp_path) -> None:
    name, content, reader, *_ = form
    os.mkfifo(tmp_path / "fifo.mp4")
    path = tmp_path / Path(name).with_suffix(".json").name
    for place in places(content):
        for odd in ODD:
            path.write_text(json.dumps(put(content, place, odd)))
            found = reader(path, tmp_path, check_files=False)
            assert all(isinstance(fault, Fault) for fault in found.faults)
            for row in found.rows:
                row.query.encode()
                assert Path(row.video).resolve().is_relative_to(tmp_path)


def test_an_entry_beside_odd_ones_is_read(tmp_path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"clip")
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path.parent / "outside.mp4").write_bytes(b"clip")
    (tmp_path / "link.mp4").symlink_to(tmp_path.parent / "outside.mp4")
    good = {"video": "a.mp4", "query": "jumps", "span": [1, 2]}
    bad = [
        "fifo.mp4",
        "folder.mp4",
        "link.mp4",
        "../outside.mp4",
        "/dev/zero",
        "x" * 5000,
        "\0",
        HALF,
    ]
    entries = [{**good, "video": name} for name in bad]
    entries.append({**good, "query": f"jumps {HALF}"})
    entries.append({**good, "more": {"a": [HALF]}})
    lines = [json.dumps(entry) for entry in (*entries, good)]
    lines.insert(3, "[" * 50_000)
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    found = span_lines(tmp_path / "rows.jsonl")
    assert [Path(row.video).name for row in found.rows] == ["a.mp4"]
    assert len(found.faults) == len(lines) - 1
    outside = [str(fault) for fault in found.faults if "outside the data" in fault.reason]
    assert len(outside) == 3
    for message in outside:
        assert "--data.allow-outside" in message and "--video-root" in message
    found = span_lines(tmp_path / "rows.jsonl", allow_outside=True)
    assert len(found.rows) == 3  # the link and what lies one folder up


def test_pictures_of_video_r1_stay_inside_too(tmp_path) -> None:
    entry = {"problem": "?", "data_type": "image", "problem_type": "free", "path": "../x.png"}
    entry |= {"solution": "<answer>1</answer>"}
    (tmp_path / "rows.json").write_text(json.dumps([entry]))
    found = video_r1(tmp_path / "rows.json", check_files=False)
    assert not found.rows and found.faults[0].reason == "media outside the data"
