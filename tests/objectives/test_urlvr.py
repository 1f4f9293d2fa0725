"""Intrinsic rewards: votes on a table, what a certain policy earns, and the step at which they collapse."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import get_args

import pytest
import torch

from mmrl.model.packing import collate
from mmrl.objectives.urlvr import URLVR, VOTES, Signal, agreement, of_scores, of_votes
from mmrl.training.clashes import refuse_clashes
from mmrl.training.collapse import CollapseGuard
from mmrl.types import Now, Prompt, Rollout, Scores

MEASURED = [signal for signal in get_args(Signal) if signal not in VOTES]
TABLE = ["cat", "dog", "cat", "", "dog", "owl", "owl", "cat"]
GROUPS = [0, 0, 0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (False, [1, 0, 1, 0, 0, 1, 1, 1]),
        (True, [0.5, 0.25, 0.5, 0, 1 / 3, 2 / 3, 2 / 3, 1]),
    ],
)
def test_votes_on_a_table(share, expected):
    assert of_votes(TABLE, GROUPS, share).tolist() == pytest.approx(expected)


def test_ties_go_to_what_was_stated_first_and_silence_does_not_vote():
    assert of_votes(["b", "a", "a", "b"], [0] * 4, False).tolist() == [1, 0, 0, 1]
    assert of_votes(["", "", "a"], [0] * 3, False).tolist() == [0, 0, 1]
    assert of_votes(["", None], [0, 0], False).tolist() == [0, 0]


def scores(logits):
    """Scores of answers that took the likeliest token, from logits [B, T, V]."""
    logp = logits.log_softmax(-1)
    top = logp.topk(2)
    entropy = -(logp.exp() * logp).sum(-1)
    return Scores(
        logp=top.values[..., 0],
        entropy=entropy,
        vocabulary_mean=logp.mean(-1),
        top_logp=top.values,
        top_ids=top.indices,
    )


@pytest.mark.parametrize("signal", MEASURED)
def test_a_certain_policy_earns_most_and_padding_nothing(signal):
    direction = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, True], [True, False, False]])
    earned = [of_scores(scores(heat * direction), mask, signal) for heat in (0.1, 1, 10, 40)]
    for less, more in pairwise(earned):
        assert (more > less).all()
    clean = scores(direction)
    dirty = clean.each(
        lambda x: (
            torch.where(mask.view(2, 3, *[1] * (x.ndim - 2)), x, torch.nan)
            if x.is_floating_point()
            else x
        )
    )
    torch.testing.assert_close(of_scores(dirty, mask, signal), of_scores(clean, mask, signal))
    nothing = of_scores(clean, torch.zeros_like(mask), signal)
    assert nothing.tolist() == [0, 0]


def test_a_signal_without_its_scores_is_refused():
    with pytest.raises(ValueError, match="'entropy' cannot be made"):
        of_scores(Scores(torch.zeros(1, 2)), torch.ones(1, 2, dtype=torch.bool), "entropy")
    with pytest.raises(ValueError, match=r"'sure'.*majority"):
        URLVR("sure")  # type: ignore[arg-type]


def test_agreement_is_of_the_first_best_answer_of_each_group():
    own = torch.tensor([0.0, 1.0, 1.0, 0.5, 0.5])
    right = torch.tensor([True, False, True, True, False])
    assert agreement(own, right, torch.tensor([0, 0, 0, 1, 1])) == 0.5


def test_a_batch_is_told_how_often_its_votes_agree_with_the_verifier():
    """Two groups: the majority of the first is right, that of the second is not."""
    said = ["a", "a", "b", "c", "c", "d"]
    prompts = [Prompt("p", []), Prompt("q", [])]
    roles = torch.zeros(1, dtype=torch.uint8)
    batch = collate([
        Rollout(prompts[n // 3], n // 3, roles.long(), roles.long(), roles, text, "eos", reward=0.0,
                correct=text in ("a", "d"))
        for n, text in enumerate(said)
    ])  # fmt: skip
    shaped = URLVR("majority").shape(torch.zeros(6, 1), batch, Now(1, 0.1))
    assert shaped.logged == {"intrinsic": pytest.approx(4 / 6), "agreement": 0.5}
    shaped = URLVR("majority").shape(
        torch.zeros(6, 1),
        replace(batch, correct=torch.tensor([text in "ac" for text in said])),
        Now(1, 0.1),
    )
    assert shaped.logged["agreement"] == 1.0


def test_the_collapse_is_the_first_of_several_steps_and_is_kept():
    watch = CollapseGuard(patience=3).started()
    said = [watch.observe({"urlvr/agreement": rate}) for rate in (0.4, 0, 0, 0.2, 0.0, 0.005)]
    assert not watch.reached and said[-1] == {"collapse/step": 0.0}
    later = CollapseGuard(patience=3).started()
    later.load(watch.state())
    assert later.observe({"urlvr/agreement": 0.0}) == {"collapse/step": 5.0}
    assert later.reached and "model collapse" in later.why
    assert later.observe({}) == {}
    silent = CollapseGuard(patience=1, stop=False).started()
    assert silent.observe({"urlvr/agreement": 0.0}) == {"collapse/step": 1.0}
    assert not silent.reached


def test_what_pays_for_certainty_has_the_advantage_alone():
    with pytest.raises(ValueError, match="URLVR and URLVR cannot be used together"):
        refuse_clashes([URLVR(), URLVR("entropy")], [])
