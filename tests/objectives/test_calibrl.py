"""CalibRL: golden values of the released loss, gradient sides, on-policy statistics and identities."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrl.grpo import GRPO, loss, losses
from mmrl.losses.reduce import Totals
from mmrl.losses.surrogates import clipped
from mmrl.model.packing import rows_of
from mmrl.objectives.base import ScoreRequest
from mmrl.objectives.calibrl import CalibRL
from mmrl.types import Batch, Now, Prompt, Role, Rollout, Scores

GOLDEN = (
    Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden"))
    / "objectives"
    / "calibrl_loss.npz"
)
NOW = Now(step=1, progress=0.0)
REDUCTIONS = {"token-mean": "token", "seq-mean-token-mean": "sequence"}


def make_batch(mask, group, reward, advantage, old, expert):
    """`expert`: bool [B]; those rows are expert answers, their tokens are not trained."""
    rows, columns = mask.shape
    nothing = torch.zeros(0, dtype=torch.long)
    origins = ["expert" if is_expert else "policy" for is_expert in expert.tolist()]
    roles = torch.where(expert.unsqueeze(-1), int(Role.EXPERT), int(Role.POLICY))
    return Batch(
        rollouts=[
            Rollout(
                Prompt(f"p{g}", []), int(g), nothing, nothing, nothing, "", "eos", origin=origin
            )
            for g, origin in zip(group.tolist(), origins, strict=True)
        ],
        group=group,
        tokens=torch.zeros(rows, columns, dtype=torch.long),
        mask=mask.bool() & ~expert.unsqueeze(-1),
        reward=reward,
        advantage=advantage,
        roles=torch.where(mask.bool(), roles, int(Role.OBSERVATION)).to(torch.uint8),
        scores={"raw": Scores(old)},
    )


def golden_runs():
    if not GOLDEN.exists():
        return []
    keys = [key.split("__") for key in np.load(GOLDEN).files if "__in_" not in key]
    return sorted({tuple(key[:3]) for key in keys})


@pytest.mark.parametrize(("case", "mode", "reduction"), golden_runs())
def test_golden_objectives_calibrl(case, mode, reduction):
    if mode != "expert-guided" or reduction not in REDUCTIONS:
        pytest.skip(f"{case}__{mode}__{reduction}: another paper's loss")
    vectors = np.load(GOLDEN)
    read = lambda name: torch.tensor(vectors[f"{case}__in_{name}"])  # noqa: E731
    logp, pref, mask = (
        read("log_probs").requires_grad_(),
        read("pref_log_probs"),
        read("response_mask").bool(),
    )
    dropped, rows = read("pref_mask").any(-1), len(mask)
    # Every row of the file carries its own expert log-probs: one group each, the expert as a second answer.
    both = lambda first, second: torch.cat([first, second])  # noqa: E731
    expert = both(torch.zeros(rows, dtype=torch.bool), torch.ones(rows, dtype=torch.bool))
    advantage = read("adv_seq").unsqueeze(-1) * mask
    batch = make_batch(
        both(mask & ~dropped.unsqueeze(-1), torch.ones_like(mask)),
        torch.arange(rows).repeat(2),
        both(read("pass_mask").flatten().float(), torch.zeros(rows)),
        both(advantage, torch.zeros_like(advantage)),
        both(read("old_log_probs"), pref),
        expert,
    )
    calibrl = CalibRL()
    shaped = calibrl.shape(batch.advantage, batch, NOW)  # its advantage is not the file's
    batch = replace(batch, shaped=[shaped])
    live = {"raw": Scores(both(logp, pref))}
    grpo, totals = GRPO(reduction=REDUCTIONS[reduction]), Totals.of(batch.mask)
    parts, _ = losses(grpo, clipped, batch, live, [calibrl], totals, NOW)
    total, key = sum(parts.values()), f"{case}__{mode}__{reduction}"

    def close(got, name):
        return np.testing.assert_allclose(got, vectors[f"{key}__{name}"], rtol=1e-5, atol=1e-6)

    close(parts["policy"].item(), "pg_loss")
    close(parts["guided"].item() / 0.1, "guided_loss")
    close(total.item(), "total")
    close(torch.autograd.grad(total, logp)[0].numpy(), "grad")


@pytest.mark.skipif(not GOLDEN.exists(), reason="no calibrl_loss.npz in the golden folder")
def test_golden_objectives_calibrl_has_known_cases():
    assert any(
        mode == "expert-guided" and reduction in REDUCTIONS
        for _, mode, reduction in golden_runs()
    )


def random_case(seed=0, columns=6):
    """Two groups of three on-policy answers and one expert (rows 3 and 7), and a group without an expert (8, 9)."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([[6], [3], [2], [4], [5], [6], [1], [5], [3], [4]])
    mask = torch.arange(columns) < lengths
    old = -torch.rand(10, columns, generator=rng, dtype=torch.float64) * 2
    logp = (
        old + 0.1 * torch.randn(10, columns, generator=rng, dtype=torch.float64)
    ).requires_grad_()
    reward = torch.tensor(
        [1.0, 0.0, 0.1, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64
    )
    group = torch.tensor([0, 0, 0, 0, 4, 4, 4, 4, 7, 7])
    expert = torch.zeros(10, dtype=torch.bool)
    expert[[3, 7]] = True
    advantage = torch.zeros(10, columns, dtype=torch.float64)
    batch = make_batch(mask, group, reward, advantage, torch.where(mask, old, 0.0), expert)
    return logp, batch


def shaped(calibrl, batch):
    """The batch after `shape`, as the core passes it on and as it shows it to the objective."""
    found = calibrl.shape(batch.advantage, batch, NOW)
    return replace(batch, advantage=found.advantage, shaped=[found], kept=found.kept)


def guided(calibrl, logp, batch):
    return calibrl.terms({"raw": Scores(logp)}, batch, NOW)["guided"]


def test_experts_do_not_enter_the_group_statistics():
    calibrl = CalibRL()
    _, batch = random_case()
    advantage = shaped(calibrl, batch).advantage[:, 0]
    mean = 1.1 / 3
    torch.testing.assert_close(
        advantage[:4], torch.tensor([1 - mean, -mean, 0.1 - mean, 0.0], dtype=torch.float64)
    )
    torch.testing.assert_close(advantage[8:], torch.tensor([0.5, -0.5], dtype=torch.float64))
    paid_otherwise = replace(
        batch, reward=torch.where(torch.arange(10) == 3, 55.0, batch.reward)
    )
    torch.testing.assert_close(shaped(calibrl, paid_otherwise).advantage[:, 0], advantage)
    by_std = shaped(CalibRL(std=True), batch).advantage[:3, 0]
    assert by_std.var() == pytest.approx(1.0, rel=1e-4)


def test_a_batch_without_experts_keeps_its_advantage():
    _, batch = random_case()
    rows = [8, 9]
    part = replace(
        batch,
        rollouts=[batch.rollouts[i] for i in rows],
        scores={"raw": batch.scores["raw"][torch.tensor(rows)]},
        **{
            name: getattr(batch, name)[rows]
            for name in ("group", "tokens", "mask", "reward", "advantage", "roles")
        },
    )
    marked = torch.full_like(part.advantage, 3.0)
    assert CalibRL().shape(marked, part, NOW).advantage is marked


def test_position_alignment_gradient_has_the_right_sign_and_one_to_alpha_strength():
    calibrl = CalibRL(weight=1.0, alpha=0.3)
    logp, batch = random_case()
    batch = shaped(calibrl, batch)
    (gradient,) = torch.autograd.grad(guided(calibrl, logp, batch).sum(), logp)
    expert = {0: batch.scores["raw"].logp[3], 4: batch.scores["raw"].logp[7]}
    ends = {0: 4, 4: 5}
    for row in (0, 1, 2, 4, 5, 6):
        group = int(batch.group[row])
        sign = 1.0 if batch.reward[row] > 0.1 else -1.0
        lead = (logp[row] - expert[group]).detach()
        slope = torch.where(-sign * lead > 0, 1.0, 0.3)
        covered = batch.mask[row] & (torch.arange(6) < ends[group])
        torch.testing.assert_close(
            gradient[row], -sign * batch.advantage[row].abs() * slope * covered
        )
    assert (gradient[[3, 7, 8, 9]] == 0).all()  # experts, and a group without one
    assert (gradient[0] < 0).any() and (gradient[1] > 0).any()


@pytest.mark.parametrize("alignment", ["mean", "sum"])
def test_whole_answer_alignments_compare_means_or_sums(alignment):
    calibrl = CalibRL(alignment=alignment)
    logp, batch = random_case()
    batch = shaped(calibrl, batch)
    lead, covered = calibrl.lead(logp, batch)
    reduce = torch.mean if alignment == "mean" else torch.sum
    expected = reduce(logp[1, :3]) - reduce(batch.scores["raw"].logp[3, :4])
    torch.testing.assert_close(lead[1, :3], expected.expand(3))
    assert covered[1].tolist() == [True] * 3 + [False] * 3 and not covered[[3, 7, 8, 9]].any()


def test_slope_one_is_linear_advantage_weighted_likelihood():
    calibrl = CalibRL(alpha=1.0, weight=1.0)
    logp, batch = random_case()
    batch = shaped(calibrl, batch)
    lead, _ = calibrl.lead(logp, batch)
    sign = torch.where(batch.reward > 0.1, 1.0, -1.0).unsqueeze(-1)
    torch.testing.assert_close(
        guided(calibrl, logp, batch), -sign * batch.advantage.abs() * lead
    )


def test_the_term_is_continuous_where_answer_and_expert_agree_and_zero_without_advantage():
    calibrl = CalibRL(weight=1.0)
    logp, batch = random_case()
    batch = shaped(calibrl, batch)
    expert = batch.scores["raw"].logp[3]
    for shift in (1e-6, -1e-6):
        near = torch.where(torch.arange(10).unsqueeze(-1) == 0, expert + shift, logp.detach())
        assert guided(calibrl, near, batch)[0].abs().max() < 2e-6
    idle = replace(batch, advantage=torch.zeros_like(batch.advantage))
    assert (guided(calibrl, logp, idle) == 0).all()


def test_the_expert_carries_no_gradient():
    calibrl = CalibRL()
    logp, batch = random_case()
    old = batch.scores["raw"].logp.clone().requires_grad_()
    batch = shaped(calibrl, replace(batch, scores={"raw": Scores(old)}))
    term = guided(calibrl, logp, batch).sum()
    assert torch.autograd.grad(term, old, allow_unused=True) == (None,)


def test_a_group_cut_over_passes_and_padding_change_nothing():
    calibrl = CalibRL()
    logp, batch = random_case()
    batch = shaped(calibrl, batch)
    totals = Totals.of(batch.mask)
    whole, _ = loss(GRPO(), clipped, batch, {"raw": Scores(logp)}, [calibrl], totals, NOW)
    pieces = []
    for rows in (torch.tensor([0, 9, 3, 4]), torch.tensor([7, 1, 8]), torch.tensor([2, 6, 5])):
        part = rows_of(batch, rows)
        pieces.append(
            loss(GRPO(), clipped, part, {"raw": Scores(logp[rows])}, [calibrl], totals, NOW)[0]
        )
    torch.testing.assert_close(sum(pieces), whole)
    read = batch.roles != Role.OBSERVATION
    dirty = torch.where(read, logp.detach(), torch.nan).requires_grad_()
    garbage, _ = loss(GRPO(), clipped, batch, {"raw": Scores(dirty)}, [calibrl], totals, NOW)
    assert garbage == whole
    torch.testing.assert_close(
        torch.autograd.grad(garbage, dirty)[0], torch.autograd.grad(whole, logp)[0]
    )


def test_dropping_the_experts_leaves_the_surrogate_unchanged():
    logp, batch = random_case()
    batch = replace(shaped(CalibRL(), batch), shaped=())
    totals = Totals.of(batch.mask)
    with_experts, _ = losses(GRPO(), clipped, batch, {"raw": Scores(logp)}, [], totals, NOW)
    rows = torch.tensor([0, 1, 2, 4, 5, 6, 8, 9])
    part = rows_of(batch, rows)
    without, _ = losses(
        GRPO(), clipped, part, {"raw": Scores(logp[rows])}, [], Totals.of(part.mask), NOW
    )
    torch.testing.assert_close(with_experts["policy"], without["policy"])


def test_zero_weight_is_bit_equal_to_grpo_and_needs_nothing():
    off = CalibRL(weight=0.0)
    assert off.score_requests() == () and CalibRL().score_requests() == (
        ScoreRequest("raw", stage="shape"),
    )
    logp, batch = random_case()
    batch = replace(shaped(off, batch), shaped=())
    arguments = (GRPO(), clipped, batch, {"raw": Scores(logp)})
    totals = Totals.of(batch.mask)
    assert loss(*arguments, [off], totals, NOW)[0] == loss(*arguments, [], totals, NOW)[0]


def test_terms_before_shape_are_refused():
    logp, batch = random_case()
    with pytest.raises(ValueError, match="call shape first"):
        CalibRL().terms({"raw": Scores(logp)}, batch, NOW)
    with pytest.raises(ValueError, match="stored 'raw' scores"):
        CalibRL().shape(batch.advantage, replace(batch, scores={}), NOW)


def test_metrics_split_right_from_wrong():
    calibrl = CalibRL()
    logp, batch = random_case()
    maps = calibrl.metrics({"raw": Scores(logp)}, shaped(calibrl, batch), NOW)
    assert (maps["logp_right"] * maps["logp_wrong"] == 0).all()
    assert maps["behind"].sum() <= maps["covered"].sum() and maps["covered"].sum() > 0


def test_settings_out_of_range_are_refused_by_name():
    for setting in ({"weight": -1.0}, {"alpha": 1.5}):
        with pytest.raises(ValueError, match=rf"CalibRL\.{next(iter(setting))} is"):
            CalibRL(**setting)
