"""Clips told in other ways: parts and media, evidence, and what is recognised as temporal grounding."""

import json

import pytest

from mmrl.data.drawn.drawn import Drawn
from mmrl.data.grounding.formats import is_grounding
from mmrl.data.grounding.time_encodings import TimeEncoded, encoding_of, span_evidence

CLIPS = Drawn("clips", size=3, frames=6)


def test_native_changes_nothing_but_the_answer():
    told, plain = TimeEncoded(CLIPS)[0], CLIPS[0]
    assert told.media[0] is not None and told.messages == plain.messages
    start, end = (float(x) for x in plain.answer.split(" to "))
    assert (
        told.answer == [(start, end)]
        and TimeEncoded(CLIPS, spans=False)[0].answer == plain.answer
    )


def test_interleaved_times_stand_before_each_pair():
    prompt = TimeEncoded(CLIPS, "interleaved_times")[0]
    parts = prompt.messages[0]["content"]
    assert [part["type"] for part in parts] == ["text", "video"] * 3 + ["text"]
    assert [part["text"] for part in parts[:-1:2]] == ["0.0s ", "1.0s ", "2.0s "] and len(
        prompt.media
    ) == 3


def test_a_span_between_two_frames_marks_the_nearest():
    clip = CLIPS[0].media[0]
    assert span_evidence([(1.1, 1.2)], clip, [clip]) == [{"visual": 0, "frames": [2]}]


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no time encoding 'spoken'"):
        encoding_of("spoken")


def test_the_format_is_recognised(tmp_path):
    cases = {
        "spans.jsonl": ({"video": "a.mp4", "query": "x", "span": [0, 1]}, True),
        "captions.jsonl": ({"video": "a.mp4", "query": "x", "answer": "y"}, False),
        "pictures.jsonl": ({"image": "a.png", "question": "x", "answer": "y"}, False),
        "moments.jsonl": (
            {"qid": 1, "query": "x", "vid": "a", "duration": 9, "relevant_windows": [[0, 2]]},
            True,
        ),
    }
    for name, (row, expected) in cases.items():
        (tmp_path / name).write_text(json.dumps(row) + "\n")
        assert is_grounding(tmp_path / name) is expected, name
    (tmp_path / "charades.txt").write_text("AO8RW 0.0 6.9##a person opens a door.\n")
    assert is_grounding(tmp_path / "charades.txt") and not is_grounding(
        tmp_path / "nothing.jsonl"
    )
