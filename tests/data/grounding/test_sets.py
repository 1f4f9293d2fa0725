"""Readers of grounding data sets, prompts that decode lazily, validation, and guarded rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrl.data.grounding.formats import (
    activitynet_captions,
    charades_sta,
    didemo,
    qvhighlights,
    read_rows,
    span_lines,
    time_r1,
    timelens_100k,
    timelens_bench,
    tvgbench,
    video_r1,
)
from mmrl.data.grounding.questions import STAMPED_TEMPLATE
from mmrl.data.grounding.rewards import SpanReward, span_iou
from mmrl.data.grounding.sets import GroundingPrompts, PackedRows, timelens_usable
from mmrl.data.grounding.spans import as_spans
from mmrl.data.video.time_text import interleaved_times
from mmrl.data.video.video import ClipReader, ClipSampling
from mmrl.ground.faults import BadRow, Fault
from mmrl.ground.quarantine import Guarded

Write = Callable[..., Path]


@pytest.fixture()
def write(tmp_path: Path) -> Write:
    """write(name, content): JSON lines for a list under a .jsonl name, text for a string, else JSON."""

    def make(name: str, content: Any) -> Path:
        path = tmp_path / name
        if isinstance(content, str):
            path.write_text(content)
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(entry) + "\n" for entry in content))
        else:
            path.write_text(json.dumps(content))
        return path

    return make


TIMELENS = [
    {"source": "didemo", "video_path": "d/a.mp4", "duration": 30.0,
     "events": [{"query": "A man  walks.", "span": [1, 2.5]}, {"query": "A dog", "span": [[3, 4], [5, 6]]}]},
]  # fmt: skip
BENCH = {"v1": {"duration": 20, "spans": [[1, 2], [3, 4]], "queries": ["a.", "b"]}}
CAPTIONS = {
    "v_1": {"duration": 82.73, "timestamps": [[0.83, 19.86]], "sentences": [" A woman sings."]}
}
CHARADES = "3MSZA 24.3 30.4##person turn a light on.\nAB12C 0.0 5.5##sits down.\n"
QVH = [{"qid": 7, "query": "Chef cooks.", "duration": 150, "vid": "x_60.0_210.0",
        "relevant_windows": [[2, 6], [10, 12]], "relevant_clip_ids": [1, 2, 5],
        "saliency_scores": [[4, 3, 2]] * 3}]  # fmt: skip
DIDEMO = [
    {
        "annotation_id": 9,
        "video": "u_1.mov",
        "description": "a cat stares",
        "times": [[1, 1], [0, 1], [0, 1]],
    }
]
TVG = [{"path": "a.mp4", "question": "Opens door.", "answer": "2.5-7.0", "start": 10.0, "end": 40.0, "duration": 30.0,
        "dataset_name": "tacos", "qsemtype": "human action"}]  # fmt: skip
TIME_R1 = [{"video": "a.mp4", "duration": 30, "timestamp": [12, 15], "sentence": "Runs.", "qid": "my|1",
            "video_start": None, "video_end": None, "difficulty": 42.0, "pred": [11, 15]}]  # fmt: skip
VIDEO_R1 = [
    {"problem_id": 1, "problem": "Which?", "data_type": "video", "problem_type": "multiple choice",
     "options": ["A. x", "B. y"], "solution": "<answer>B</answer>", "path": "./a.mp4", "data_source": "nextqa"},
    {"problem_id": 2, "problem": "How many?", "data_type": "image", "problem_type": "numerical", "options": [],
     "solution": "<answer>3</answer>", "path": "p.png", "data_source": "clevr"},
]  # fmt: skip
OURS = [{"video": "a.mp4", "query": "jumps", "span": [2, 4.5], "colour": "red"}]

FORMATS: list[tuple[str, Any, Any, str, list[Any], str]] = [
    ("timelens.jsonl", TIMELENS, timelens_100k, "A man walks", [[1, 2.5]], "d/a.mp4"),
    ("charades-timelens.json", BENCH, timelens_bench, "a", [[1, 2]], "v1.mp4"),
    ("val_2.json", CAPTIONS, activitynet_captions, "A woman sings", [[0.83, 19.86]], "v_1.mp4"),
    (
        "charades_sta_test.txt",
        CHARADES,
        charades_sta,
        "person turn a light on",
        [[24.3, 30.4]],
        "3MSZA.mp4",
    ),
    (
        "highlight_val.jsonl",
        QVH,
        qvhighlights,
        "Chef cooks",
        [[2, 6], [10, 12]],
        "x_60.0_210.0.mp4",
    ),
    ("didemo.json", DIDEMO, didemo, "a cat stares", [[0, 10], [5, 10]], "u_1.mp4"),
    ("tvgbench.json", TVG, tvgbench, "Opens door", [[2.5, 7.0]], "a.mp4"),
    ("train_2k5.json", TIME_R1, time_r1, "Runs", [[12, 15]], "a.mp4"),
    ("Video-R1-260k.json", VIDEO_R1, video_r1, "Which?\nOptions:\nA. x\nB. y", [], "a.mp4"),
    ("ours.jsonl", OURS, span_lines, "jumps", [[2, 4.5]], "a.mp4"),
]


@pytest.mark.parametrize(
    ("name", "content", "reader", "query", "spans", "video"), FORMATS, ids=lambda x: str(x)[:14]
)
def test_each_format_is_read_and_recognised(
    name: str,
    content: Any,
    reader: Any,
    query: str,
    spans: Any,
    video: str,
    write: Write,
    tmp_path: Path,
) -> None:
    path = write(name, content)
    rows = reader(path, "clips", check_files=False)
    assert not rows.faults and len(rows) >= 1
    first = rows[0]
    assert (first.query, first.spans) == (query, as_spans(spans) if spans else [])
    assert first.video == str(Path("clips") / video) and first.source
    assert read_rows(path, "clips", check_files=False).rows == rows.rows
    assert len({row.id for row in rows}) == len(rows)


def test_details_of_the_formats(write: Write) -> None:
    files = {name: write(name, content) for name, content, *_ in FORMATS}
    events = timelens_100k(files["timelens.jsonl"], check_files=False)
    assert (
        events[1].spans == [(3, 4), (5, 6)]
        and events[0].source == "didemo"
        and events[0].duration == 30
    )
    bench = timelens_bench(files["charades-timelens.json"], check_files=False)
    assert [row.source for row in bench] == ["charades-timelens"] * 2
    highlights = qvhighlights(files["highlight_val.jsonl"], check_files=False)[0]
    assert highlights.extra["qid"] == 7 and len(highlights.extra["saliency_scores"]) == 3
    assert didemo(files["didemo.json"], check_files=False)[0].extra["annotators"][0] == (
        5.0,
        10.0,
    )
    crop = tvgbench(files["tvgbench.json"], check_files=False)[0]
    assert (crop.start, crop.end, crop.source, crop.extra["qsemtype"]) == (
        10,
        40,
        "tacos",
        "human action",
    )
    assert time_r1(files["train_2k5.json"], check_files=False)[0].extra["difficulty"] == 42
    clip, picture = video_r1(files["Video-R1-260k.json"], check_files=False)
    assert (clip.answer, clip.image, picture.answer, picture.image) == ("B", False, "3", True)
    assert picture.query == "How many?" and picture.extra["problem_type"] == "numerical"
    assert span_lines(files["ours.jsonl"], check_files=False)[0].extra["colour"] == "red"


def test_spans_can_count_from_the_file(write: Write) -> None:
    path = write("tvgbench.json", [{**TVG[0], "answer": "12.5-17"}])
    assert tvgbench(path, check_files=False, spans_from="file")[0].spans == [(2.5, 7.0)]
    with pytest.raises(ValueError, match="'crop' and 'file'"):
        tvgbench(path, check_files=False, spans_from="clip")  # type: ignore[arg-type]


def test_charades_durations_cut_ends(write: Write, tmp_path: Path) -> None:
    (tmp_path / "charades.csv").write_text("id,length\n3MSZA,30.1\n")
    rows = charades_sta(
        write("c.txt", CHARADES), durations=tmp_path / "charades.csv", check_files=False
    )
    assert (
        rows[0].spans == [(24.3, 30.1)]
        and rows[0].duration == 30.1
        and rows[1].duration is None
    )


BAD_LINES = [
    ({"video": "a.mp4", "query": "x", "span": [5, 2]}, "unusable span"),
    ({"video": "a.mp4", "query": "x", "span": [5, 5]}, "unusable span"),
    ({"video": "a.mp4", "query": "x", "span": [5, 12], "duration": 10}, "unusable span"),
    ({"video": "a.mp4", "query": "x", "span": [-1, 2]}, "unusable span"),
    ({"video": "a.mp4", "query": "x", "span": "1-2"}, "no span"),
    ({"video": "a.mp4", "query": "x"}, "no span"),
    ({"video": "a.mp4", "query": " ", "span": [1, 2]}, "no query"),
    ({"video": "a.mp4", "query": 3, "span": [1, 2]}, "no query"),
    ({"video": "", "query": "x", "span": [1, 2]}, "no video"),
    ({"video": "b.mp4", "query": "x", "span": [1, 2]}, "missing video"),
    ({"video": "a.mp4", "query": "x", "span": [1, 2], "duration": -3}, "bad duration"),
    ([1, 2], "no object"),
]


def test_validation_says_what_is_wrong_with_which_line(write: Write, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    lines = [
        {"video": "a.mp4", "query": "good", "span": [1, 2]},
        *(line for line, _ in BAD_LINES),
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"video": "a.mp4", \n\n'
    text += '{"video": "a", "query": "no extension", "span": [9, 10.5], "duration": 10}\n'
    rows = span_lines(write("mine.jsonl", text))
    assert [row.query for row in rows] == ["good", "no extension"] and rows[1].spans == [
        (9, 10)
    ]
    assert [fault.reason for fault in rows.faults] == [
        *(reason for _, reason in BAD_LINES),
        "no JSON",
    ]
    for number, fault in enumerate(rows.faults, 2):
        assert fault.where == f"mine.jsonl, line {number}" and fault.fix
    report = rows.report(limit=3)
    assert (
        "2 questions about 1 clip" in report
        and "4 × unusable span" in report
        and "mine.jsonl, line 2" in report
    )
    assert f"and {len(rows.faults) - 3} more" in report


def test_true_spans_can_be_left_alone(write: Write) -> None:
    path = write("m.jsonl", [{"video": "a.mp4", "query": "x", "span": [5, 99], "duration": 10}])
    assert span_lines(path, check_files=False, clip_ends=False)[0].spans == [(5, 99)]


@pytest.mark.parametrize("content", [[{"a": 1}], []])
def test_unknown_formats_are_refused_with_an_example(content: Any, write: Write) -> None:
    with pytest.raises(ValueError, match="known formats" if content else "no entry"):
        read_rows(write("x.jsonl", content))


def test_unpaired_and_odd_entries_are_noted(write: Write) -> None:
    broken = {"v": {"duration": 5, "spans": [[1, 2]], "queries": ["a", "b"]}}
    assert [
        f.reason for f in timelens_bench(write("b.json", broken), check_files=False).faults
    ] == ["unpaired"]
    lines = "VID 1 2##ok\nVID 1##no\nVID 1.2.3 4##dots\n"
    assert [
        f.reason for f in charades_sta(write("c.txt", lines), check_files=False).faults
    ] == ["bad line", "no span"]
    events = [{"video_path": "a.mp4", "events": []}, {"video_path": "a.mp4", "events": [3]}]
    faults = timelens_100k(write("t.jsonl", events), check_files=False).faults
    assert [f.reason for f in faults] == ["no events", "no event"] and "event 1" in faults[
        1
    ].where
    times = [{"video": "a", "description": "x", "times": [[1.5, 2]]}]
    assert [f.reason for f in didemo(write("d.json", times), check_files=False).faults] == [
        "no span"
    ]
    mixed = [{**VIDEO_R1[0], "data_type": "sound"}]
    assert [f.reason for f in video_r1(write("v.json", mixed), check_files=False).faults] == [
        "bad entry"
    ]


def test_rows_can_be_filtered_and_picked(write: Write) -> None:
    lines = [
        {"video": "a.mp4", "query": q, "span": [1, 2], "duration": d}
        for q, d in [("x", 10), ("x", 3), ("a dog sounds", 10), ("x", 600), ("w " * 201, 10)]
    ]
    rows = span_lines(write("m.jsonl", lines), check_files=False)
    assert len(rows) == 5 and len(rows.keep(timelens_usable)) == 1
    assert [row.duration for row in rows.pick([3, 1])] == [600, 3]


def test_packed_rows_are_the_rows(write: Write) -> None:
    lines = [{"video": "a.mp4", "query": f"q{i}", "span": [i, i + 1]} for i in range(5)]
    rows = span_lines(write("m.jsonl", lines), check_files=False)
    packed = PackedRows(rows)
    assert (
        list(packed) == rows.rows
        and packed[-1] == rows[4]
        and packed[1:3] == rows[1:3]
        and len(packed) == 5
    )
    with pytest.raises(IndexError, match="outside 5 rows"):
        packed[5]
    assert list(PackedRows([])) == []


@pytest.fixture()
def clips(make_clip: Any, tmp_path: Path) -> Path:
    for name in ("a.mp4", "b.mp4"):
        source = make_clip(f"grounding_{name}", [i / 10 for i in range(100)], rate=10)
        (tmp_path / name).hardlink_to(source)
    (tmp_path / "broken.mp4").write_bytes(b"not a clip")
    return tmp_path


def ours(write: Write, *videos: str) -> Any:
    return span_lines(
        write(
            "g.jsonl",
            [{"video": v, "query": "jumps {high}", "span": [2.2, 4.4]} for v in videos],
        )
    )


def test_prompts_decode_when_read(write: Write, clips: Path) -> None:
    reader = ClipReader("pyav", isolate=False)
    prompts = GroundingPrompts(ours(write, "a.mp4", "b.mp4"), reader, ClipSampling(fps=2))
    assert len(prompts) == prompts.size == 2 and reader.counts["clips_decoded"] == 0
    prompt = prompts[1]
    assert reader.counts["clips_decoded"] == 1
    assert (
        prompt.answer == [(2.2, 4.4)]
        and prompt.source == "g"
        and prompt.extra["duration"] == pytest.approx(10)
    )
    parts = prompt.messages[0]["content"]
    assert [part["type"] for part in parts] == ["video", "text"] and "jumps {high}" in parts[1][
        "text"
    ]
    assert prompt.media[0].frames.shape[0] == 20
    assert torch.equal(prompts[1].media[0].frames, prompt.media[0].frames)
    with pytest.raises(IndexError, match="outside 2 rows"):
        prompts[2]


def test_targets_snap_to_the_stamps_that_are_shown(write: Write, clips: Path) -> None:
    rows, reader = ours(write, "a.mp4"), ClipReader("pyav", isolate=False)
    prompts = GroundingPrompts(
        rows,
        reader,
        ClipSampling(num_frames=10),
        encoding=interleaved_times,
        snap=True,
        template=STAMPED_TEMPLATE,
    )
    prompt = prompts[0]
    (start, end), (true_start, true_end) = prompt.answer[0], prompt.extra["spans"][0]
    assert (true_start, true_end) == (2.2, 4.4) and start <= true_start and end >= true_end
    texts = [part["text"] for part in prompt.messages[0]["content"] if part["type"] == "text"][
        :-1
    ]
    assert f"{start:.1f}s " in texts and f"{end:.1f}s " in texts
    assert len(prompt.media) == 5 and all(
        medium.frames.shape[0] == 2 for medium in prompt.media
    )


def test_text_may_come_first_and_a_template_needs_a_place(write: Write, clips: Path) -> None:
    rows, reader = ours(write, "a.mp4"), ClipReader("pyav", isolate=False)
    prompt = GroundingPrompts(rows, reader, ClipSampling(num_frames=4), video_first=False)[0]
    assert [part["type"] for part in prompt.messages[0]["content"]] == ["text", "video"]
    with pytest.raises(ValueError, match="no place for the question"):
        GroundingPrompts(rows, reader, template="When?")


def test_a_crop_shows_its_part_and_spans_count_from_it(write: Write, clips: Path) -> None:
    path = write(
        "t.json", [{**TVG[0], "start": 3.0, "end": 8.0, "duration": 5.0, "answer": "1-2"}]
    )
    prompt = GroundingPrompts(
        tvgbench(path), ClipReader("pyav", isolate=False), ClipSampling(fps=2)
    )[0]
    assert prompt.media[0].times is not None
    assert prompt.media[0].duration == pytest.approx(5) and float(
        prompt.media[0].times[-1]
    ) == pytest.approx(5)
    assert prompt.answer == [(1, 2)]


def test_pictures_of_video_r1_are_images(write: Write, clips: Path) -> None:
    from PIL import Image

    Image.new("RGB", (32, 24), (255, 0, 0)).save(clips / "p.png")
    prompts = GroundingPrompts(
        video_r1(write("v.json", VIDEO_R1)), ClipReader("pyav", isolate=False), ClipSampling(num_frames=4),
        template="{query}",
    )  # fmt: skip
    clip, picture = prompts[0], prompts[1]
    assert clip.media[0].is_video and not picture.media[0].is_video
    assert picture.messages[0]["content"][0] == {"type": "image"} and picture.media[
        0
    ].frames.shape == (1, 3, 24, 32)
    assert picture.answer == "3" and clip.extra["problem_type"] == "multiple choice"


def test_rewards_read_these_prompts(write: Write, clips: Path) -> None:
    prompt = GroundingPrompts(
        ours(write, "a.mp4"), ClipReader("pyav", isolate=False), ClipSampling(num_frames=4)
    )[0]
    from types import SimpleNamespace

    answer: Any = SimpleNamespace(text="The event happens in 2.2 - 4.4 seconds.", prompt=prompt)
    assert SpanReward(span_iou)(answer) == 1


def test_a_bad_clip_is_a_fault_with_its_line(write: Write, clips: Path) -> None:
    prompts = GroundingPrompts(
        ours(write, "a.mp4", "broken.mp4"), ClipReader("pyav", isolate=False)
    )
    with pytest.raises(Fault, match=r"g.jsonl, line 2: unreadable container") as caught:
        prompts[1]
    assert isinstance(caught.value, BadRow) and caught.value.__cause__ is not None


def test_guarded_rows_are_replaced_deterministically_and_counted(
    write: Write, clips: Path
) -> None:
    rows = ours(write, *["a.mp4", "broken.mp4", "b.mp4"] * 4)

    def make(seed=0):
        return Guarded(GroundingPrompts(rows, ClipReader("pyav", isolate=False)), seed=seed)

    guarded = make()
    ids = [guarded[i].id for i in range(12)]
    assert [guarded[i].id for i in range(12)] == ids == [make()[i].id for i in range(12)]
    assert ids != [make(seed=1)[i].id for i in range(12)]
    good = [row.id for row in rows if "broken" not in row.video]
    assert set(ids) <= set(good) and [ids[i] for i in (0, 2, 3)] == [
        rows[i].id for i in (0, 2, 3)
    ]
    assert (
        guarded.counts["substituted"] == 8 and guarded.counts["bad/unreadable container"] >= 8
    )


def test_guarded_rows_can_be_dropped_or_stop(write: Write, clips: Path) -> None:
    prompts = GroundingPrompts(
        ours(write, "a.mp4", "broken.mp4"), ClipReader("pyav", isolate=False)
    )
    dropping = Guarded(prompts, "drop")
    with pytest.raises(BadRow, match="Row 1 is dropped"):
        dropping[1]
    assert dropping.counts["dropped"] == 1 and dropping[0].id
    with pytest.raises(Fault):
        Guarded(prompts, "raise")[1]
    with pytest.raises(ValueError, match="'substitute', 'drop' and 'raise'"):
        Guarded(prompts, "skip")  # type: ignore[arg-type]


def test_guarded_gives_up_when_everything_is_bad(write: Write, clips: Path) -> None:
    prompts = GroundingPrompts(ours(write, "broken.mp4"), ClipReader("pyav", isolate=False))
    with pytest.raises(BadRow, match="3 substitutes for it are bad"):
        Guarded(prompts, attempts=3)[0]
