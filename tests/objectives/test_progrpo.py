"""ProGRPO: values by hand, who is moved and who is spared, and when it is nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mmrl.objectives.base import shaped_in_turn
from mmrl.objectives.progrpo import ProGRPO, confidence
from mmrl.types import Now, Scores
from tests.objectives.test_rover import batch_of

NOW = Now(step=3, progress=0.1)
LENGTHS = torch.tensor([[5], [3], [1], [4], [0], [2]])


def drawn(correct=(1, 0, 0, 1, 1, 0), seed=0):
    rng = torch.Generator().manual_seed(seed)
    mask = torch.arange(5) < LENGTHS
    logp = torch.where(
        mask, -2 * torch.rand(6, 5, generator=rng, dtype=torch.float64), torch.nan
    )
    words = -3 * torch.rand(2, 4, generator=rng, dtype=torch.float64)
    words_mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    of_rows = {
        "words": torch.where(words_mask, words, torch.nan)[group],
        "words_mask": words_mask[group],
    }
    batch = batch_of(
        torch.zeros(6, dtype=torch.float64), group, mask, {"raw": Scores(logp, **of_rows)}
    )
    advantage = torch.randn(6, 1, generator=rng, dtype=torch.float64) * mask
    return replace(batch, correct=torch.tensor(correct).bool(), advantage=advantage)


def shaped(objective, batch):
    return shaped_in_turn([objective], [None], batch, NOW)


def test_the_least_likely_tokens_by_hand():
    logp = torch.log(
        torch.tensor([[0.9, 0.2, 0.5, 1.0, 0.4], [0.3, 0.9, 0.0, 0.0, 0.0], [0.0] * 5])
    )
    mask = torch.tensor([[1] * 5, [1, 1, 0, 0, 0], [0] * 5])
    found, there = confidence(logp, mask, 0.2)
    torch.testing.assert_close(found[:2], torch.tensor([0.2, 0.3]))
    found, _ = confidence(logp, mask, 0.4)
    torch.testing.assert_close(found[:2], torch.tensor([math.sqrt(0.2 * 0.4), 0.3]))
    assert there.tolist() == [True, True, False] and found[2] == 1


def test_the_shift_by_hand_and_the_same_on_every_token():
    batch = drawn()
    after = shaped(ProGRPO(alpha=0.5, share=0.2), batch).advantage
    raw = batch.scores["raw"]
    for row in (0, 1, 2, 3, 5):
        mask, said = batch.mask[row], raw.logp[row]
        question = raw.words[row][raw.words_mask[row]].min().exp()
        expected = batch.advantage[row][mask] + 0.5 * (question - said[mask].min().exp())
        torch.testing.assert_close(after[row][mask], expected)
        assert (after[row][~mask] == 0).all()
    assert torch.equal(after[4], batch.advantage[4]), "an empty answer"


def test_of_two_equal_answers_the_less_likely_one_gains():
    batch = drawn((1, 1, 1, 1, 1, 1))
    raw = batch.scores["raw"]
    logp = torch.where(batch.mask, raw.logp, 0.0)
    logp[0], logp[1] = -0.1, -1.0
    batch = replace(
        batch,
        advantage=torch.zeros_like(batch.advantage),
        scores={"raw": replace(raw, logp=logp)},
    )
    after = shaped(ProGRPO(), batch).advantage
    assert after[1, 0] > after[0, 0]
    assert after.abs().max() <= 0.5


@pytest.mark.parametrize(
    ("correct", "settings", "moved"),
    [
        ((0, 0, 0, 0, 0, 0), {}, []),
        ((0, 0, 0, 0, 0, 0), {"skip_all_wrong": False}, [0, 1, 2, 3, 5]),
        ((1, 1, 1, 0, 0, 0), {}, [0, 1, 2]),
        ((1, 1, 1, 0, 0, 1), {"skip_all_right": True}, [3, 5]),
        ((0, 1, 0, 0, 0, 0), {}, [0, 1, 2]),
    ],
)
def test_who_is_spared(correct, settings, moved):
    batch = drawn(correct)
    after = shaped(ProGRPO(**settings), batch).advantage
    assert (after != batch.advantage).any(1).nonzero().flatten().tolist() == moved


def test_a_prompt_without_words_keeps_its_advantage():
    batch = drawn()
    raw = batch.scores["raw"]
    silent = replace(raw, words_mask=torch.zeros_like(raw.words_mask))
    batch = replace(batch, scores={"raw": silent})
    assert torch.equal(shaped(ProGRPO(), batch).advantage, batch.advantage)


def test_off_it_asks_for_nothing():
    off = ProGRPO(**ProGRPO.off)
    assert off.score_requests() == () and off.traits() == ()
    batch = drawn()
    assert shaped(off, batch).advantage is batch.advantage


@pytest.mark.parametrize("wrong", [{"alpha": -1.0}, {"share": 0.0}, {"share": 1.5}])
def test_numbers_without_a_meaning_are_refused(wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=rf"ProGRPO\.{name} is"):
        ProGRPO(**wrong)
