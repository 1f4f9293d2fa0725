"""VPPO: token filter, answer weights, identities."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.grpo import GRPO, loss
from mmrl.losses import kl
from mmrl.losses.reduce import Totals
from mmrl.losses.surrogates import clipped
from mmrl.objectives.base import ScoreRequest
from mmrl.objectives.vppo import VPPO, most_dependent
from mmrl.types import Batch, Now, Prompt, Role, Rollout, Scores

NOW = Now(step=0, progress=0.0)
DAPO = VPPO(top_share=1.0, beta_min=1.0, eta=0.0)


def random_case(seed=0, columns=6):
    rng = torch.Generator().manual_seed(seed)
    mask = torch.arange(columns) < torch.tensor([[columns], [3], [1], [5], [0]])
    draw = lambda: torch.randn(5, columns, generator=rng, dtype=torch.float64)  # noqa: E731
    logp = -draw().abs() - 0.1
    nothing = torch.zeros(0, dtype=torch.long)
    batch = Batch(
        rollouts=[Rollout(Prompt("p", []), 0, nothing, nothing, nothing, "", "eos")] * 5,
        group=torch.zeros(5, dtype=torch.long),
        tokens=torch.zeros(5, columns, dtype=torch.long),
        mask=mask,
        reward=torch.zeros(5),
        advantage=torch.zeros(5, columns, dtype=torch.float64),
        roles=torch.where(mask, Role.POLICY, Role.OBSERVATION).to(torch.uint8),
        scores={"raw": Scores(logp), "masked": Scores(logp + 0.5 * draw())},
    )
    return torch.tensor([[1.0], [-2.0], [0.5], [3.0], [1.0]], dtype=torch.float64) * mask, batch


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0]))
def test_the_filter_keeps_exactly_the_ceiling_of_the_share(seed, share):
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.arange(11)
    mask = torch.arange(10) < lengths.unsqueeze(-1)
    value = torch.randint(0, 4, (11, 10), generator=rng).double()  # many ties
    kept = most_dependent(value, mask, share)
    expected = [math.ceil(round(share * 10) * int(n) / 10) for n in lengths]
    assert kept.sum(-1).tolist() == expected
    assert not (kept & ~mask).any()
    for row in range(11):
        dropped = mask[row] & ~kept[row]
        if dropped.any() and kept[row].any():
            assert value[row][kept[row]].min() >= value[row][dropped].max()


def test_the_filter_stops_the_gradient_of_tokens_that_do_not_look():
    advantage, batch = random_case()
    vppo = VPPO(beta_min=1.0, beta_max=1.0, eta=0.0)
    shaped = vppo.shape(advantage, batch, NOW).advantage
    kept = most_dependent(
        kl.k3(batch.scores["raw"].logp, batch.scores["masked"].logp), batch.mask, 0.4
    )
    torch.testing.assert_close(shaped, torch.where(kept, advantage, 0.0))
    logp = batch.scores["raw"].logp.clone().requires_grad_()
    live = {"raw": Scores(logp)}
    value, _ = loss(
        GRPO(),
        clipped,
        replace(batch, advantage=shaped),
        live,
        [vppo],
        Totals.of(batch.mask),
        NOW,
    )
    gradient = torch.autograd.grad(value, logp)[0]
    torch.testing.assert_close(
        gradient, -shaped / batch.mask.sum()
    )  # the length normaliser still counts all tokens


def test_answer_weights_span_the_range_and_average_to_one():
    _, batch = random_case()
    vppo = VPPO()
    dependency = vppo.dependency(batch)
    weight = vppo.answer_weight(dependency, batch.mask)[:4]
    assert weight.min() == pytest.approx(0.9) and weight.mean() == pytest.approx(1.0)
    means = torch.stack(
        [row[on].mean() for row, on in zip(dependency[:4], batch.mask[:4], strict=True)]
    )
    assert (weight.flatten().argsort() == means.argsort()).all()
    fixed = VPPO(beta_max=1.3).answer_weight(dependency, batch.mask)[:4]
    assert fixed.min() == pytest.approx(0.9) and fixed.max() == pytest.approx(1.3)


def test_equal_dependency_weighs_one_and_is_finite():
    advantage, batch = random_case()
    equal = replace(batch, scores={"raw": batch.scores["raw"], "masked": batch.scores["raw"]})
    for vppo in (VPPO(top_share=1.0), VPPO(top_share=1.0, beta_max=2.0)):
        torch.testing.assert_close(vppo.shape(advantage, equal, NOW).advantage, advantage)
    empty = replace(batch, mask=torch.zeros_like(batch.mask))
    assert (VPPO().shape(torch.zeros_like(advantage), empty, NOW).advantage == 0).all()


def test_switched_off_it_is_bit_equal_to_dapo_and_needs_nothing():
    advantage, batch = random_case()
    assert (
        DAPO.score_requests() == () and DAPO.shape(advantage, batch, NOW).advantage is advantage
    )
    logp = batch.scores["raw"].logp.clone().requires_grad_()
    arguments = (GRPO(), clipped, replace(batch, advantage=advantage), {"raw": Scores(logp)})
    totals = Totals.of(batch.mask)
    assert loss(*arguments, [DAPO], totals, NOW)[0] == loss(*arguments, [], totals, NOW)[0]
    assert VPPO(kl="exact").score_requests() == (
        ScoreRequest("raw", stage="shape"),
        ScoreRequest("masked", stage="shape", divergence="forward"),
    )


def test_the_entropy_penalty_is_a_token_mean():
    _, batch = random_case()
    logp = batch.scores["raw"].logp.clone().requires_grad_()
    for reduction in ("token", "sequence"):
        arguments = (GRPO(reduction=reduction), clipped, batch, {"raw": Scores(logp)}, [VPPO()])
        _, metrics = loss(*arguments, Totals.of(batch.mask), NOW)
        mean = (logp.detach() * batch.mask).sum() / batch.mask.sum()
        torch.testing.assert_close(metrics["loss/entropy"], -0.06 * mean)


def test_padding_and_row_order_do_not_matter():
    advantage, batch = random_case()
    expected = VPPO().shape(advantage, batch, NOW).advantage
    scores = {
        name: Scores(torch.where(batch.mask, s.logp, torch.nan))
        for name, s in batch.scores.items()
    }
    torch.testing.assert_close(
        VPPO().shape(advantage, replace(batch, scores=scores), NOW).advantage, expected
    )
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = replace(
        batch,
        mask=batch.mask[order],
        scores={name: s[order] for name, s in batch.scores.items()},
    )
    torch.testing.assert_close(
        VPPO().shape(advantage[order], shuffled, NOW).advantage, expected[order]
    )
    assert not expected.requires_grad


def test_missing_scores_and_bad_settings_are_named():
    advantage, batch = random_case()
    with pytest.raises(ValueError, match=r"stored scores of \['masked'\]"):
        VPPO().shape(advantage, replace(batch, scores={"raw": batch.scores["raw"]}), NOW)
    for setting in ({"top_share": 0.0}, {"beta_min": 1.5}, {"beta_max": 0.5}, {"eta": -1.0}):
        with pytest.raises(ValueError, match=rf"VPPO\.{next(iter(setting))} is"):
            VPPO(**setting)
