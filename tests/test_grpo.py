"""The loss of a micro-batch: golden values through the whole function, identities, invariances, KL, mismatch."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.grpo import GRPO, apply_kl_in_reward, loss, losses
from mmrl.losses import kl
from mmrl.losses.advantages import group_normalized
from mmrl.losses.reduce import Totals
from mmrl.losses.surrogates import bounded_ratio, clipped, gmpo, gspo, gspo_token, sapo
from mmrl.objectives.base import Objective
from mmrl.types import Batch, Now, Prompt, Role, Rollout, Scores

GOLDEN = (
    Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parent / "golden"))
    / "objectives"
    / "policy_loss.npz"
)
NOW = Now(step=0, progress=0.0)
REDUCTIONS = {
    "token-mean": "token",
    "seq-mean-token-mean": "sequence",
    "seq-mean-token-sum": "sequence_sum",
}


def make_batch(logp, mask, advantage, roles=None, reward=None, **scores):
    rows, columns = mask.shape
    nothing = torch.zeros(0, dtype=torch.long)
    prompt = Prompt(id="p", messages=[])
    answer = Rollout(
        prompt=prompt,
        group=0,
        prompt_ids=nothing,
        tokens=nothing,
        roles=nothing,
        text="",
        stop="eos",
    )
    roles = (
        torch.where(mask.bool(), Role.POLICY, Role.OBSERVATION).to(torch.uint8)
        if roles is None
        else roles
    )
    return Batch(
        rollouts=[answer] * rows,
        group=torch.arange(rows) // 2,
        tokens=torch.zeros(rows, columns, dtype=torch.long),
        mask=mask.bool(),
        reward=torch.zeros(rows) if reward is None else reward,
        advantage=advantage,
        roles=roles,
        scores={name: Scores(x) for name, x in scores.items()},
    )


def rows_of(batch, rows):
    return replace(
        batch,
        rollouts=[batch.rollouts[int(i)] for i in rows],
        **{
            name: getattr(batch, name)[rows]
            for name in ("group", "tokens", "mask", "reward", "advantage", "roles")
        },
        scores={name: scores[rows] for name, scores in batch.scores.items()},
    )


def random_case(seed=0, rows=5, columns=6, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    noise = lambda scale: scale * torch.randn(rows, columns, generator=rng, dtype=dtype)  # noqa: E731
    logp = -torch.rand(rows, columns, generator=rng, dtype=dtype) * 2
    lengths = torch.randint(0, columns + 1, (rows, 1), generator=rng)
    lengths[0] = columns
    mask = torch.arange(columns) < lengths
    advantage = torch.randn(rows, 1, generator=rng, dtype=dtype) * mask
    old, ref, sampler = logp + noise(0.3), logp + noise(0.3), logp + noise(0.3)
    return logp.requires_grad_(), make_batch(
        logp, mask, advantage, raw=old, ref=ref, sampler=sampler
    )


@dataclass(frozen=True)
class Term(Objective):
    """A term that touches every token of the raw branch."""

    weight: float = 0.5

    def terms(self, live, batch, now):
        return {"term": self.weight * live["raw"].logp.square()} if self.weight else {}

    def metrics(self, live, batch, now):
        return {"logp": live["raw"].logp}


def golden_plan(key, low, high, dual, columns):
    """(settings, surrogate) for the golden keys that the whole loss reproduces; the rest belongs to test_surrogates."""
    verl = GRPO(clip_low=low, clip_high=high, dual_clip=dual)
    first, *rest = key.split("__")
    if first == "verl_vanilla" and rest and rest[0] in REDUCTIONS:
        return replace(verl, reduction=REDUCTIONS[rest[0]]), clipped
    if key in ("verl_gspo", "verl_geo_mean", "verl_sapo"):
        surrogate = {"verl_gspo": gspo_token, "verl_geo_mean": gmpo, "verl_sapo": sapo}[key]
        return replace(
            verl, dual_clip=None
        ), surrogate  # reduced by its own rule, not by verl.reduction
    rules = {
        "trl_grpo": "sequence",
        "trl_dapo": "token",
        "trl_bnpo": "token",
        "trl_dr_grpo": "constant",
    }
    if first in rules and len(rest) == 2 and rest[0] == "token" and rest[1].startswith("beta"):
        beta = float(rest[1].removeprefix("beta"))
        constant = columns if rules[first] == "constant" else 0
        trl = replace(verl, dual_clip=None, kl=beta, kl_importance=True)
        return replace(trl, reduction=rules[first], length_constant=constant), clipped
    return None


def golden_keys():
    if not GOLDEN.exists():
        return []
    keys = [key for key in np.load(GOLDEN).files if "__in_" not in key]
    keys = sorted({tuple(key.rsplit("__", 1)[0].split("__", 1)) for key in keys})
    return [(case, key) for case, key in keys if golden_plan(key, 0.2, 0.2, 3.0, 1) is not None]


@pytest.mark.parametrize(("case", "key"), golden_keys())
def test_golden_objectives_whole_loss(case, key):
    vectors = np.load(GOLDEN)
    logp, old, ref, mask = (
        torch.tensor(vectors[f"{case}__in_{name}"])
        for name in ("log_probs", "old_log_probs", "ref_log_probs", "response_mask")
    )
    grpo, surrogate = golden_plan(
        key, *(float(x) for x in vectors[f"{case}__in_clip"]), mask.shape[1]
    )
    if grpo.kl and (kl.k3(logp, ref, value_max=None) * mask).max() > 10:
        pytest.skip(f"{case}__{key}: TRL does not clamp k3, the core does")
    if not mask.any(-1).all() and (key.startswith("trl") or key == "verl_geo_mean"):
        pytest.skip(
            f"{case}__{key}: the reference counts answers without tokens, the core does not"
        )
    advantage = torch.tensor(vectors[f"{case}__in_adv_seq"]).unsqueeze(-1) * mask
    logp.requires_grad_()
    batch = make_batch(logp, mask, advantage, raw=old, ref=ref)
    got, _ = loss(grpo, surrogate, batch, {"raw": Scores(logp)}, [], Totals.of(mask), NOW)
    np.testing.assert_allclose(
        got.item(), vectors[f"{case}__{key}__loss"], rtol=1e-5, atol=1e-6
    )
    gradient = torch.autograd.grad(got, logp)[0].numpy()
    np.testing.assert_allclose(gradient, vectors[f"{case}__{key}__grad"], rtol=1e-4, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from(["token", "sequence", "sequence_sum", "constant"]),
    st.sampled_from([clipped, gspo, gmpo]),
    st.integers(0, 5),
)
def test_split_row_order_and_padding_change_neither_loss_gradient_nor_metrics(
    seed, reduction, surrogate, cut
):
    logp, batch = random_case(seed)
    grpo = GRPO(
        kl=0.1,
        reduction=reduction,
        length_constant=6,
        mismatch="truncate",
        mismatch_level="sequence",
        mismatch_cap=3.0,
    )
    totals = Totals.of(batch.mask)
    objectives = [Term()]
    whole, metrics = loss(
        grpo, surrogate, batch, {"raw": Scores(logp)}, objectives, totals, NOW
    )
    (gradient,) = torch.autograd.grad(whole, logp)

    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    pieces, sums = [], {}
    for rows in (order[:cut], order[cut:]):
        live = {"raw": Scores(logp[rows])}
        piece, part = (
            loss(grpo, surrogate, rows_of(batch, rows), live, objectives, totals, NOW)
            if len(rows)
            else (0, {})
        )
        pieces.append(piece)
        for name, value in part.items():
            joined = torch.maximum if name.endswith("_max") else torch.add
            sums[name] = joined(sums[name], value) if name in sums else value
    torch.testing.assert_close(sum(pieces), whole)
    torch.testing.assert_close(torch.autograd.grad(sum(pieces), logp)[0], gradient)
    torch.testing.assert_close(sums, metrics)

    def wider(x, fill):
        return torch.cat([x, torch.full((5, 2), fill, dtype=x.dtype)], 1)

    wide = make_batch(
        logp,
        wider(batch.mask, False),
        wider(batch.advantage, torch.nan),
        **{name: wider(scores.logp, torch.nan) for name, scores in batch.scores.items()},
    )
    garbage, _ = loss(
        grpo, surrogate, wide, {"raw": Scores(wider(logp, torch.nan))}, objectives, totals, NOW
    )
    torch.testing.assert_close(garbage, whole)
    torch.testing.assert_close(torch.autograd.grad(garbage, logp)[0], gradient)


@pytest.mark.parametrize("where", ["mask", "live"])
def test_garbage_on_tokens_that_are_not_trained_is_never_read(where):
    logp, batch = random_case(3)
    expected, _ = loss(
        GRPO(kl=0.1),
        clipped,
        batch,
        {"raw": Scores(logp)},
        [Term()],
        Totals.of(batch.mask),
        NOW,
    )
    (gradient,) = torch.autograd.grad(expected, logp)
    dirty = torch.where(batch.mask, logp.detach(), torch.nan).requires_grad_()
    scores = batch.scores
    if where == "mask":
        scores = {
            name: Scores(torch.where(batch.mask, x.logp, torch.inf))
            for name, x in scores.items()
        }
    got, _ = loss(
        GRPO(kl=0.1),
        clipped,
        replace(batch, scores=scores),
        {"raw": Scores(dirty)},
        [Term()],
        Totals.of(batch.mask),
        NOW,
    )
    assert got == expected
    assert (torch.autograd.grad(got, dirty)[0] == gradient).all()


def test_a_zero_objective_leaves_the_loss_bit_equal():
    logp, batch = random_case(1, dtype=torch.float32)
    arguments = (GRPO(kl=0.03), clipped, batch, {"raw": Scores(logp)})
    plain, _ = loss(*arguments, [], Totals.of(batch.mask), NOW)
    zeroed, metrics = loss(*arguments, [Term(0.0)], Totals.of(batch.mask), NOW)
    assert plain == zeroed
    assert (torch.autograd.grad(plain, logp)[0] == torch.autograd.grad(zeroed, logp)[0]).all()
    assert "loss/term" not in metrics and "term/logp" in metrics


def test_parts_add_up_and_are_named():
    logp, batch = random_case(2)
    live = {
        "raw": Scores(logp, entropy=torch.ones_like(logp)),
        "masked": Scores(logp.detach() - 0.5),
    }
    totals = Totals.of(batch.mask)
    parts, _ = losses(GRPO(kl=0.1), clipped, batch, live, [Term(), Term(0.25)], totals, NOW)
    total, metrics = loss(GRPO(kl=0.1), clipped, batch, live, [Term(), Term(0.25)], totals, NOW)
    assert list(parts) == ["policy", "kl", "term"]
    torch.testing.assert_close(sum(parts.values()), total)
    torch.testing.assert_close(metrics["loss/kl"], 0.1 * metrics["policy/kl_ref"])
    torch.testing.assert_close(
        parts["term"].detach(),
        0.75 * (logp.detach().square() * batch.mask).sum() / totals.tokens,
    )
    assert metrics["policy/entropy"] == pytest.approx(1.0)
    assert metrics["branch/masked/kl"] == pytest.approx(np.exp(-0.5) + 0.5 - 1)
    assert not any(value.requires_grad for value in metrics.values())


def test_without_stored_scores_the_ratio_is_one():
    logp, batch = random_case(4)
    batch = replace(batch, scores={})
    got, metrics = loss(
        GRPO(), clipped, batch, {"raw": Scores(logp)}, [], Totals.of(batch.mask), NOW
    )
    weight = batch.advantage / batch.mask.sum()
    torch.testing.assert_close(got, -weight.sum())
    torch.testing.assert_close(torch.autograd.grad(got, logp)[0], -weight)
    assert metrics["policy/ratio_max"] == 1 and metrics["policy/kl_old"] == 0


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_the_entropy_bonus_is_the_token_mean_of_the_exact_entropy(reduction):
    """As in NoisyRollout's and VisionReasoner's update: pg_loss - coefficient · masked mean of H, gradient included."""
    rng = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 4, 7, generator=rng, dtype=torch.float64).requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    spread = logits.log_softmax(-1)
    entropy = -(spread.exp() * spread).sum(-1)  # [B, T]
    batch = make_batch(spread[..., 0].detach(), mask, torch.zeros(3, 1, dtype=torch.float64))
    live = {"raw": Scores(spread[..., 0], entropy)}
    settings = GRPO(entropy=0.25, reduction=reduction)
    total, metrics = loss(settings, clipped, batch, live, [], Totals.of(mask), NOW)
    wanted = -0.25 * entropy[mask].mean()
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(metrics["loss/entropy_bonus"], wanted.detach())
    (found,) = torch.autograd.grad(total, logits, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(wanted, logits)[0])


def test_no_entropy_bonus_is_no_term_and_one_without_entropy_is_refused():
    logp, batch = random_case()
    live = {"raw": Scores(logp)}
    totals = Totals.of(batch.mask)
    assert losses(GRPO(), clipped, batch, live, [], totals, NOW)[0].keys() == {"policy"}
    with pytest.raises(ValueError, match=r"GRPO\.entropy is positive.*entropy=True"):
        losses(GRPO(entropy=0.1), clipped, batch, live, [], totals, NOW)


def test_reference_kl_gradient_is_the_closed_form():
    logp, batch = random_case(5)
    on_policy = replace(batch, scores={"ref": batch.scores["ref"]})
    totals = Totals.of(batch.mask)
    for kl_importance in (False, True):
        grpo = GRPO(kl=0.2, kl_importance=kl_importance)
        parts, _ = losses(grpo, clipped, on_policy, {"raw": Scores(logp)}, [], totals, NOW)
        u = (batch.scores["ref"].logp - logp).detach()
        expected = (
            0.2
            * (1 - u.exp() + (u.exp() - u - 1 if kl_importance else 0))
            * batch.mask
            / totals.tokens
        )
        torch.testing.assert_close(torch.autograd.grad(parts["kl"], logp)[0], expected)


def test_exact_kl_reads_the_divergence_and_says_so_when_it_is_missing():
    logp, batch = random_case(5)
    ref = Scores(logp.detach(), divergence=torch.where(batch.mask, 2.0, torch.nan).double())
    arguments = (GRPO(kl=0.1, kl_kind="exact"), clipped, batch)
    parts, _ = losses(
        *arguments, {"raw": Scores(logp), "ref": ref}, [], Totals.of(batch.mask), NOW
    )
    assert parts["kl"].item() == pytest.approx(0.2)
    with pytest.raises(ValueError, match="divergence='forward'"):
        losses(*arguments, {"raw": Scores(logp)}, [], Totals.of(batch.mask), NOW)


def test_missing_scores_are_named():
    logp, batch = random_case(6)
    bare, live, totals = replace(batch, scores={}), {"raw": Scores(logp)}, Totals.of(batch.mask)
    with pytest.raises(ValueError, match="no 'ref' scores"):
        loss(GRPO(kl=0.1), clipped, bare, live, [], totals, NOW)
    with pytest.raises(ValueError, match="no 'sampler' scores"):
        loss(GRPO(mismatch="mask"), clipped, bare, live, [], totals, NOW)
    with pytest.raises(ValueError, match="no 'raw' scores"):
        apply_kl_in_reward(GRPO(kl=0.1, kl_in="reward"), bare)


def test_mismatch_weights_the_policy_term_only():
    logp, batch = random_case(7)
    live, totals = {"raw": Scores(logp)}, Totals.of(batch.mask)
    plain, _ = losses(GRPO(kl=0.1), clipped, batch, live, [Term()], totals, NOW)
    grpo = GRPO(kl=0.1, mismatch="truncate", mismatch_cap=1.1)
    weighted, metrics = losses(grpo, clipped, batch, live, [Term()], totals, NOW)
    assert weighted["kl"] == plain["kl"] and weighted["term"] == plain["term"]
    weight = bounded_ratio(batch.scores["raw"].logp - batch.scores["sampler"].logp).clamp(
        max=1.1
    )
    surrogate = clipped(
        logp, batch.scores["raw"].logp, batch.advantage, batch.mask, clip_low=0.2, clip_high=0.2
    )
    torch.testing.assert_close(
        weighted["policy"], (weight * surrogate * batch.mask).sum() / totals.tokens
    )
    assert metrics["policy/mismatch_weight_max"] == pytest.approx(1.1)
    equal = replace(batch, scores=batch.scores | {"sampler": batch.scores["raw"]})
    same, metrics = losses(grpo, clipped, equal, live, [Term()], totals, NOW)
    assert same["policy"] == plain["policy"] and metrics["policy/mismatch"] == 0


def test_kl_in_reward_enters_the_advantage_and_not_the_loss():
    logp, batch = random_case(8)
    batch = replace(batch, reward=torch.arange(5.0, dtype=torch.float64))
    grpo = GRPO(kl=0.5, kl_kind="k1", kl_in="reward")
    paid = apply_kl_in_reward(grpo, batch)
    expected = -0.5 * (batch.scores["raw"].logp - batch.scores["ref"].logp) * batch.mask
    lengths = batch.mask.sum(-1)
    for i, length in enumerate(lengths.tolist()):
        if length:
            expected[i, length - 1] += batch.reward[i]
    torch.testing.assert_close(paid, expected)
    full = lengths > 0
    torch.testing.assert_close(
        group_normalized(paid, batch.group, batch.mask)[full],
        group_normalized(torch.where(full, expected.sum(-1), 0.0), batch.group, batch.mask)[
            full
        ],
    )
    parts, _ = losses(
        grpo, clipped, batch, {"raw": Scores(logp)}, [], Totals.of(batch.mask), NOW
    )
    assert list(parts) == ["policy"]
    assert apply_kl_in_reward(GRPO(kl=0.5), batch) is batch.reward


def test_expert_tokens_stay_readable_for_objectives_but_are_not_trained_by_the_surrogate():
    logp, batch = random_case(9)
    roles = torch.where(batch.mask, Role.EXPERT, Role.OBSERVATION).to(torch.uint8)
    roles[0] = Role.POLICY
    mask = batch.mask & (roles == Role.POLICY)
    seen = {}

    class Reader(Objective):
        def terms(self, live, batch, now):
            seen.update(live=live["raw"].logp.detach(), old=batch.scores["raw"].logp)
            return {}

    expert = replace(batch, mask=mask, roles=roles)
    got, _ = loss(
        GRPO(), clipped, expert, {"raw": Scores(logp)}, [Reader()], Totals.of(mask), NOW
    )
    torch.testing.assert_close(seen["live"], torch.where(batch.mask, logp.detach(), 0.0))
    torch.testing.assert_close(
        seen["old"], torch.where(batch.mask, batch.scores["raw"].logp, 0.0)
    )
    assert (torch.autograd.grad(got, logp)[0][1:] == 0).all()


def test_a_term_may_fix_its_own_reduction():
    @dataclass(frozen=True)
    class Fixed(Term):
        reductions = {"term": "token"}  # noqa: RUF012

    logp, batch = random_case(10)
    totals, live = Totals.of(batch.mask), {"raw": Scores(logp)}
    by_run, _ = losses(GRPO(reduction="sequence"), clipped, batch, live, [Term()], totals, NOW)
    fixed, _ = losses(GRPO(reduction="sequence"), clipped, batch, live, [Fixed()], totals, NOW)
    by_token, _ = losses(GRPO(), clipped, batch, live, [Term()], totals, NOW)
    assert fixed["term"] == by_token["term"] != by_run["term"]
    assert fixed["policy"] == by_run["policy"]


def test_a_term_of_the_wrong_shape_is_refused_by_name():
    class Averaged(Objective):
        def terms(self, live, batch, now):
            return {"average": live["raw"].logp.mean()}

    logp, batch = random_case(11)
    with pytest.raises(ValueError, match="Averaged returned 'average' of shape"):
        loss(
            GRPO(),
            clipped,
            batch,
            {"raw": Scores(logp)},
            [Averaged()],
            Totals.of(batch.mask),
            NOW,
        )


@pytest.mark.parametrize(
    "setting",
    [
        {"clip_low": -0.1},
        {"clip_low": 1.5},
        {"clip_high": -1.0},
        {"dual_clip": 1.0},
        {"entropy": -1e-3},
        {"kl": -0.1},
        {"kl_importance": True, "kl_in": "reward"},
        {"length_constant": 0, "reduction": "constant"},
        {"mismatch_cap": 0.0},
        {"overlong_buffer": -1},
        {"overlong_factor": -1.0},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_settings_out_of_range_are_refused_by_name(setting):
    with pytest.raises(ValueError, match=rf"GRPO\.{next(iter(setting))} is .*must be"):
        GRPO(**setting)
