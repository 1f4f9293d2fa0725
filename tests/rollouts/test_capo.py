"""CAPO's steps on tokens: the penalty covers exactly what was decoded to a wrong step."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from mmrl.objectives.capo import CAPO
from mmrl.rollouts.capo import CAPORollout, valued_steps
from mmrl.types import Media, Now, Prompt, Rollout, Sampling

PIECES = [
    b"One",
    b" step",
    b".\n",
    b"\n",
    "tw\u00e4".encode()[:3],
    "\u00e4".encode()[1:],
    b".",
    b"\n\nx",
    b"<end>",
]


class Words:
    """Ids are places in PIECES; the last one ends an answer."""

    def spell(self, ids):
        return b"".join(PIECES[i] for i in ids).decode("utf-8", "replace")

    def decode(self, ids):
        ids = [int(i) for i in ids]
        return self.spell(ids[:-1] if ids and ids[-1] == len(PIECES) - 1 else ids)


def rollout(ids=range(len(PIECES)), ahead="", **changes):
    tokens = torch.tensor([*ids])
    text = changes.pop("text", ahead + Words().decode(tokens))
    empty = torch.zeros(0, dtype=torch.long)
    given = {"parts": {"critique": 0.5}} | changes
    prompt = Prompt("q", "q?")
    return Rollout(prompt, 0, empty, tokens, torch.zeros(len(tokens)), text, "eos", **given)


def on_tokens(valued):
    return [value for tokens, value in valued for _ in range(tokens)]


@pytest.mark.parametrize("ahead", ["", "<think>\n"])
def test_the_penalty_covers_exactly_the_tokens_of_a_step(ahead):
    answer = rollout(ahead=ahead)
    first = on_tokens(valued_steps(answer, (1.0, 0.0, 0.0), Words()))
    # ".\n" begins inside the step; "\n" and the end token belong to none.
    assert first == [-1, -1, -1, 0, 0, 0, 0, 0, 0]
    second = on_tokens(valued_steps(answer, (0.0, 0.5, 0.0), Words()))
    assert second == [0, 0, 0, 0, -0.5, -0.5, -0.5, 0, 0]
    third = on_tokens(valued_steps(answer, (0.0, 0.0, 1.0), Words()))
    assert third == [0] * 7 + [-1, 0]
    clean = valued_steps(answer, (0.0, 0.0, 0.0), Words())
    assert clean == ((9, 0.0),)


def test_what_does_not_fit_counts_as_not_read():
    assert valued_steps(rollout(), (1.0,), Words()) is None
    assert valued_steps(rollout(text="something else"), (1.0,), Words()) is None


def test_answers_carry_what_was_said_of_them():
    picture = Media(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    given = [
        rollout(),
        rollout(parts={"critique": None}),
        rollout(media=(picture,)),
        rollout(text="?"),
    ]
    wrong = {answer.text: (1.0, 0.0, 1.0) for answer in given[:1]}
    supply = SimpleNamespace(counters=Counter())

    def sampled(*_):
        return given

    made = CAPORollout(Words(), lambda one: wrong.get(one.text), inner=sampled)
    found = made(None, None, supply, Sampling(), Now(1, 0.1))  # type: ignore[arg-type]
    assert [bool(one.valued) for one in found] == [True, False, False, False]
    assert supply.counters == {
        "capo/answers": 1, "capo/steps": 3, "capo/wrong_steps": 2, "capo/unread": 3
    }  # fmt: skip
    off = CAPORollout(Words(), lambda one: None, capo=CAPO(process=0.0), inner=sampled)
    assert off(None, None, supply, Sampling(), Now(1, 0.1)) == given and off.brings() == ()  # type: ignore[arg-type]
