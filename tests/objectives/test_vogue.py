"""VOGUE: golden values of the released arithmetic, caps, branch draws and identities."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrl.grpo import GRPO, loss
from mmrl.losses import kl
from mmrl.losses.reduce import Totals
from mmrl.losses.schedules import Linear
from mmrl.losses.surrogates import clipped
from mmrl.objectives.base import ScoreRequest
from mmrl.objectives.vogue import VOGUE
from mmrl.types import Batch, Now, Prompt, Role, Rollout, Scores

GOLDEN = (
    Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden"))
    / "objectives"
    / "vogue_advantage.npz"
)
NOW = Now(step=3, progress=0.5, seed=7)
NOISY, RAW = Linear(1.0, 1.0), Linear(0.0, 0.0)
OFFICIAL = VOGUE(
    uncertainty="sampled", entropy="sampled", caps="sequential", draw="batch", probability=NOISY
)


def make_batch(mask, scores, branch="raw", per_prompt=1):
    rows, columns = mask.shape
    nothing = torch.zeros(0, dtype=torch.long)
    rollouts = [
        Rollout(
            Prompt(f"p{i // per_prompt}", []),
            i // per_prompt,
            nothing,
            nothing,
            nothing,
            "",
            "eos",
            branch=branch,
        )
        for i in range(rows)
    ]
    return Batch(
        rollouts=rollouts,
        group=torch.arange(rows) // per_prompt,
        tokens=torch.zeros(rows, columns, dtype=torch.long),
        mask=mask.bool(),
        reward=torch.zeros(rows),
        advantage=torch.zeros(rows, columns),
        roles=torch.where(mask.bool(), Role.POLICY, Role.OBSERVATION).to(torch.uint8),
        scores=scores,
    )


def golden_keys():
    if not GOLDEN.exists():
        return []
    return [key.split("__", 1) for key in np.load(GOLDEN).files if "__in_" not in key]


def computed(vectors, case, key):
    """Our value for a golden key, or None if it names something that we do not have."""
    read = lambda name: torch.tensor(vectors[f"{case}__in_{name}"])  # noqa: E731
    scores = {"raw": Scores(read("raw_log_probs")), "noisy": Scores(read("aug_log_probs"))}
    batch, advantage = make_batch(read("mask"), scores), read("adv")
    if key == "U_code":
        return OFFICIAL.visual_uncertainty(batch)
    if key == "bonus_visual":
        return (
            replace(OFFICIAL, alpha_entropy=0.0).shape(advantage, batch, NOW).advantage
            - advantage
        )
    if key == "entropy_proxy_aug":
        return OFFICIAL.metrics({}, batch, NOW)["entropy_noisy"]
    if key == "adv_noisy_branch":
        return OFFICIAL.shape(advantage, batch, NOW).advantage
    if key == "adv_raw_branch":
        return replace(OFFICIAL, probability=RAW).shape(advantage, batch, NOW).advantage
    return None


@pytest.mark.parametrize(("case", "key"), golden_keys())
def test_golden_objectives_vogue(case, key):
    vectors = np.load(GOLDEN)
    got = computed(vectors, case, key)
    if got is None:
        pytest.skip(f"{case}__{key}: nothing of this name here")
    np.testing.assert_allclose(got.numpy(), vectors[f"{case}__{key}"], rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not GOLDEN.exists(), reason="no vogue_advantage.npz in the golden folder")
def test_golden_objectives_vogue_has_known_cases():
    vectors = np.load(GOLDEN)
    assert any(computed(vectors, case, key) is not None for case, key in golden_keys())


def random_case(seed=0, rows=6, columns=5, vocabulary=7):
    """Advantages, and a batch whose two branches are categorical distributions."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    logits, noisy = draw(rows, columns, vocabulary), draw(rows, columns, vocabulary)
    tokens = torch.randint(0, vocabulary, (rows, columns, 1), generator=rng)
    pick = lambda x: torch.log_softmax(x, -1).gather(-1, tokens).squeeze(-1)  # noqa: E731
    mask = torch.arange(columns) < torch.tensor([[5], [3], [1], [4], [5], [2]])[:rows]
    scores = {
        "raw": Scores(pick(logits), kl.entropy(logits)),
        "noisy": Scores(pick(noisy), kl.entropy(noisy), kl.symmetric_kl(logits, noisy)),
    }
    return draw(rows, 1) * mask, make_batch(mask, scores, per_prompt=2)


def test_the_printed_form_adds_both_capped_bonuses_at_once():
    advantage, batch = random_case()
    raw, noisy = batch.scores["raw"], batch.scores["noisy"]
    cap = advantage.abs() / 2
    visual = torch.minimum(noisy.divergence, cap)
    expected = advantage + visual + torch.minimum(0.4 * noisy.entropy, cap)
    torch.testing.assert_close(
        VOGUE(probability=NOISY).shape(advantage, batch, NOW).advantage, expected * batch.mask
    )
    expected = advantage + torch.minimum(0.4 * raw.entropy, cap)
    torch.testing.assert_close(
        VOGUE(probability=RAW).shape(advantage, batch, NOW).advantage, expected * batch.mask
    )


def test_sequential_caps_use_the_raised_advantage():
    advantage, batch = random_case()
    both = replace(
        OFFICIAL, alpha_visual=50.0, alpha_entropy=50.0, uncertainty="exact", entropy="exact"
    )
    torch.testing.assert_close(
        both.shape(advantage, batch, NOW).advantage,
        torch.where(advantage > 0, 2.25 * advantage, 0.25 * advantage),
    )
    together = replace(both, caps="simultaneous").shape(advantage, batch, NOW).advantage
    torch.testing.assert_close(together, torch.where(advantage > 0, 2.0 * advantage, 0.0))


@pytest.mark.parametrize("uncertainty", ["exact", "sampled", "forward"])
def test_one_bonus_is_bounded_and_never_flips_a_sign(uncertainty):
    advantage, batch = random_case(1)
    vogue = VOGUE(
        alpha_visual=9.0, alpha_entropy=0.0, uncertainty=uncertainty, probability=NOISY
    )
    bonus = vogue.shape(advantage, batch, NOW).advantage - advantage
    assert (bonus.abs() <= advantage.abs() / 2 + 1e-12).all()
    assert (bonus[advantage == 0] == 0).all()
    if uncertainty != "forward":
        assert (bonus >= 0).all()
    else:
        assert (bonus < 0).any()


def test_uncertainty_is_symmetric_non_negative_and_zero_only_for_equal_branches():
    _, batch = random_case(2)
    swapped = replace(
        batch, scores={"raw": batch.scores["noisy"], "noisy": batch.scores["raw"]}
    )
    u = OFFICIAL.visual_uncertainty(batch)
    torch.testing.assert_close(u, OFFICIAL.visual_uncertainty(swapped))
    assert (u >= 0).all() and (u[batch.mask] > 0).all()
    equal = replace(batch, scores={"raw": batch.scores["raw"], "noisy": batch.scores["raw"]})
    assert (OFFICIAL.visual_uncertainty(equal) == 0).all()
    advantage, _ = random_case(2)
    raw = replace(OFFICIAL, probability=RAW).shape(advantage, equal, NOW).advantage
    torch.testing.assert_close(OFFICIAL.shape(advantage, equal, NOW).advantage, raw)


def test_the_sampled_term_is_one_summand_of_the_exact_divergence():
    rng = torch.Generator().manual_seed(0)
    a, b = (
        torch.log_softmax(torch.randn(5, generator=rng, dtype=torch.float64), -1)
        for _ in range(2)
    )
    batch = make_batch(torch.ones(1, 5), {"raw": Scores(a[None]), "noisy": Scores(b[None])})
    torch.testing.assert_close(OFFICIAL.visual_uncertainty(batch).sum(), kl.symmetric_kl(a, b))


def test_draws_follow_the_schedule_and_are_shared_by_a_prompt():
    _, batch = random_case()
    assert (
        VOGUE().active(batch, Now(0, 0.0)).all()
        and not VOGUE().active(batch, Now(0, 1.0)).any()
    )
    half = VOGUE(probability=Linear(0.5, 0.5))
    draws = torch.stack(
        [half.active(batch, Now(step, 0.0, seed=1)).squeeze(-1) for step in range(300)]
    )
    assert (draws[:, 0::2] == draws[:, 1::2]).all()
    assert 0.4 < draws.float().mean() < 0.6
    assert not (draws[:, 0] == draws[:, 2]).all()
    assert (half.active(batch, NOW) == half.active(batch, NOW)).all()
    by_batch = torch.stack(
        [
            replace(half, draw="batch").active(batch, Now(step, 0.0)).squeeze(-1)
            for step in range(40)
        ]
    )
    assert (by_batch == by_batch[:, :1]).all() and by_batch.any() and not by_batch.all()
    flipped = batch.rollouts[1:] + batch.rollouts[:1]
    assert (
        half.active(replace(batch, rollouts=flipped), NOW)
        == half.active(batch, NOW).roll(-1, 0)
    ).all()


def test_rows_sampled_under_the_noisy_view_can_decide():
    _, batch = random_case()
    mixed = [
        replace(r, branch="noisy") if i % 3 == 0 else r for i, r in enumerate(batch.rollouts)
    ]
    active = VOGUE(draw="rollout").active(replace(batch, rollouts=mixed), NOW)
    assert active.flatten().tolist() == [i % 3 == 0 for i in range(6)]


def test_flip_turns_exploration_into_consistency():
    advantage, batch = random_case()
    vogue = VOGUE(alpha_entropy=0.0, probability=NOISY, flip=(0.5, 0.75))
    early, middle, late = (
        vogue.shape(advantage, batch, Now(0, p)).advantage - advantage
        for p in (0.4, 0.625, 0.9)
    )
    torch.testing.assert_close(early, -late)
    assert (middle == 0).all() and early.abs().sum() > 0


def test_zero_coefficients_are_bit_equal_to_grpo_and_need_nothing():
    advantage, batch = random_case()
    off = VOGUE(alpha_visual=0.0, alpha_entropy=0.0)
    assert (
        off.score_requests() == () and off.shape(advantage, batch, NOW).advantage is advantage
    )
    logp = batch.scores["raw"].logp.clone().requires_grad_()
    batch = replace(batch, advantage=advantage)
    arguments = (GRPO(), clipped, batch, {"raw": Scores(logp)})
    assert (
        loss(*arguments, [off], Totals.of(batch.mask), NOW)[0]
        == loss(*arguments, [], Totals.of(batch.mask), NOW)[0]
    )


def test_needs_ask_for_exact_quantities_only_where_read():
    assert VOGUE().score_requests() == (
        ScoreRequest("raw", stage="shape", entropy=True),
        ScoreRequest("noisy", stage="shape", entropy=True, divergence="symmetric"),
    )
    assert OFFICIAL.score_requests() == (
        ScoreRequest("raw", stage="shape"),
        ScoreRequest("noisy", stage="shape"),
    )


def test_padding_does_not_matter_and_nothing_carries_gradient():
    advantage, batch = random_case()
    for vogue in (OFFICIAL, VOGUE(probability=NOISY)):
        expected = vogue.shape(advantage, batch, NOW).advantage
        dirty = lambda x: torch.where(batch.mask, x, torch.nan)  # noqa: E731
        scores = {
            name: Scores(
                dirty(s.logp).requires_grad_(),
                dirty(s.entropy),
                None if s.divergence is None else dirty(s.divergence),
            )
            for name, s in batch.scores.items()
        }
        got = vogue.shape(advantage, replace(batch, scores=scores), NOW).advantage
        torch.testing.assert_close(got, expected)
        assert not got.requires_grad and (got[~batch.mask] == 0).all()


def test_missing_scores_are_named():
    advantage, batch = random_case()
    bare = replace(batch, scores={"raw": batch.scores["raw"]})
    with pytest.raises(ValueError, match="stored scores of 'noisy'"):
        VOGUE(probability=NOISY).shape(advantage, bare, NOW)
    plain = {name: Scores(s.logp) for name, s in batch.scores.items()}
    with pytest.raises(ValueError, match="divergence='symmetric'"):
        VOGUE().shape(advantage, replace(batch, scores=plain), NOW)
    with pytest.raises(ValueError, match="without entropy"):
        VOGUE(alpha_visual=0.0).shape(advantage, replace(batch, scores=plain), NOW)


@pytest.mark.parametrize(
    "setting",
    [
        {"alpha_visual": -1.0},
        {"alpha_entropy": -1.0},
        {"beta_visual": 0.0},
        {"beta_entropy": 0.0},
        {"flip": (0.7, 0.5)},
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting):
    with pytest.raises(ValueError, match=rf"VOGUE\.{next(iter(setting))} is .*must be"):
        VOGUE(**setting)
