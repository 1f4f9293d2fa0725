"""Steps of an answer on its tokens: exactly the characters that the tokens were decoded to."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.ground.steps import BROKEN, LONGEST, step_spans, steps_of_tokens, token_spans


def spelled(pieces):
    """A tokenizer whose ids are places in `pieces` of bytes."""
    return lambda ids: b"".join(pieces[i] for i in ids).decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", []),
        (" \n\n ", []),
        ("one", ["one"]),
        ("one\ntwo", ["one\ntwo"]),
        ("one \n\n two\n \t\n\n\nthree\n", ["one", "two", "three"]),
        ("\n\none", ["one"]),
    ],
)
def test_steps_stand_between_blank_lines(text, steps):
    assert [text[a:b] for a, b in step_spans(text)] == steps


def test_a_separator_of_ones_own():
    spans = step_spans("<a> b  c", r"\s+")
    assert ["<a> b  c"[a:b] for a, b in spans] == ["<a>", "b", "c"]


@settings(max_examples=150, deadline=None)
@given(st.text("ab \n\u00e4\u20ac\U0001f600", max_size=24), st.randoms())
def test_tokens_have_exactly_the_characters_that_they_are_made_of(text, random):
    data = text.encode()
    cuts = sorted(random.sample(range(1, len(data)), min(len(data) // 2, 9))) if data else []
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    spans = token_spans(range(len(pieces)), spelled(pieces))
    # Of each byte, the character that it is a part of.
    owners = [place for place, letter in enumerate(text) for _ in letter.encode()]
    at = 0
    for piece, (start, end) in zip(pieces, spans, strict=True):
        own = owners[at : at + len(piece)]
        at += len(piece)
        if own:
            assert end == own[-1] + 1 or text[own[-1]].encode()[-1:] != piece[-1:]
            assert start <= own[0] < end and set(own) <= set(range(start, end)) | {own[-1]}
    assert spans[-1][1] == len(text) if text else spans == [(0, 0)]


def test_separators_belong_to_no_step_and_shared_tokens_to_the_first():
    pieces = [b"a", b" b.", b"\n\n", b"c", b".\n\nd", b"\n", "ä".encode()[:1], "ä".encode()[1:]]
    text = spelled(pieces)(range(len(pieces)))
    steps = step_spans(text)
    assert [text[a:b] for a, b in steps] == ["a b.", "c.", "d\nä"]
    spans = token_spans(range(len(pieces)), spelled(pieces))
    assert spans[-2:] == [(len(text) - 1, len(text))] * 2
    assert steps_of_tokens(spans, steps) == [0, 0, None, 1, 1, 2, 2, 2]


def test_bytes_that_never_become_a_character_end_too():
    pieces = [b"\xff"] * 30 + [b"x"]
    spans = token_spans(range(31), spelled(pieces))
    assert spans[-1][1] == 31 and all(end - start <= LONGEST for start, end in spans)
    assert spelled(pieces)(range(31)) == BROKEN * 30 + "x"
