"""DVRP: terms, equivalence with PAPO, gradients and identities."""

from dataclasses import replace

import pytest
import torch

from mmrl.grpo import GRPO, loss
from mmrl.losses import kl
from mmrl.losses.reduce import Totals
from mmrl.losses.surrogates import clipped
from mmrl.objectives.base import ScoreRequest
from mmrl.objectives.dvrp import DVRP
from mmrl.objectives.papo import PAPO
from mmrl.types import Batch, Now, Prompt, Role, Rollout, Scores

NOW = Now(step=0, progress=0.0)
SAMPLED = DVRP(kl="k3", lambda_orig=0.03)


def random_case(seed=0, rows=4, columns=6):
    rng = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(rows, columns, generator=rng, dtype=torch.float64)  # noqa: E731
    logp = -draw().abs() - 0.1
    mask = torch.arange(columns) < torch.tensor([[columns], [3], [1], [5]])[:rows]
    nothing = torch.zeros(0, dtype=torch.long)
    batch = Batch(
        rollouts=[Rollout(Prompt("p", []), 0, nothing, nothing, nothing, "", "eos")] * rows,
        group=torch.zeros(rows, dtype=torch.long),
        tokens=torch.zeros(rows, columns, dtype=torch.long),
        mask=mask,
        reward=torch.zeros(rows),
        advantage=torch.randn(rows, 1, generator=rng, dtype=torch.float64) * mask,
        roles=torch.where(mask, Role.POLICY, Role.OBSERVATION).to(torch.uint8),
        scores={"raw": Scores(logp + 0.1 * draw())},
    )
    return (
        logp.requires_grad_(),
        logp.detach() + 0.5 * draw(),
        logp.detach() + 0.1 * draw(),
        batch,
    )


def run(logp, masked, noisy, batch, *objectives, grpo=GRPO(), totals=None):
    live = {"raw": Scores(logp), "masked": Scores(masked), "noisy": Scores(noisy)}
    return loss(grpo, clipped, batch, live, objectives, totals or Totals.of(batch.mask), NOW)


def test_terms_are_the_written_formula():
    logp, masked, noisy, batch = random_case()
    _, metrics = run(logp, masked, noisy, batch, SAMPLED)
    mean = lambda x: (x.detach() * batch.mask).sum() / batch.mask.sum()  # noqa: E731
    torch.testing.assert_close(metrics["loss/necessity"], -0.01 * mean(kl.k3(logp, masked)))
    torch.testing.assert_close(metrics["loss/robustness"], 0.01 * mean(kl.k3(logp, noisy)))
    torch.testing.assert_close(metrics["loss/entropy_masked"], -0.05 * mean(masked))
    torch.testing.assert_close(metrics["loss/entropy_noisy"], -0.05 * mean(noisy))
    torch.testing.assert_close(metrics["loss/entropy_orig"], -0.03 * mean(logp))
    torch.testing.assert_close(metrics["dvrp/kl_masked"], mean(kl.k3(logp, masked)))


def test_without_robustness_and_entropies_it_is_papo_without_entropies():
    logp, masked, noisy, batch = random_case()
    for reduction in ("token", "sequence"):
        grpo = GRPO(reduction=reduction)
        dvrp = DVRP(kl="k3", lambda_nec=0.02, lambda_rob=0.0, lambda_ent=0.0)
        ours, _ = run(logp, masked, noisy, batch, dvrp, grpo=grpo)
        papo, _ = run(
            logp,
            masked,
            noisy,
            batch,
            PAPO(gamma=0.02, eta_orig=0.0, eta_masked=0.0),
            grpo=grpo,
        )
        assert ours == papo
        assert (torch.autograd.grad(ours, logp)[0] == torch.autograd.grad(papo, logp)[0]).all()


def test_swapping_the_views_flips_the_sign_of_the_divergences():
    logp, masked, noisy, batch = random_case()
    dvrp = DVRP(kl="k3", lambda_ent=0.0)
    plain, _ = run(logp, masked, noisy, batch)
    there, _ = run(logp, masked, noisy, batch, dvrp)
    back, _ = run(logp, noisy, masked, batch, dvrp)
    torch.testing.assert_close(there - plain, plain - back)
    assert there != plain


def test_equal_views_give_exactly_the_base():
    logp, _, _, batch = random_case()
    same = logp.detach()
    value, metrics = run(logp, same, same, batch, DVRP(kl="k3", lambda_ent=0.0))
    plain, _ = run(logp, same, same, batch)
    assert value == plain and metrics["loss/necessity"] == metrics["loss/robustness"] == 0
    assert (torch.autograd.grad(value, logp)[0] == torch.autograd.grad(plain, logp)[0]).all()


def test_zero_coefficients_are_bit_equal_to_grpo_and_need_nothing():
    logp, masked, noisy, batch = random_case()
    off = DVRP(lambda_nec=0.0, lambda_rob=0.0, lambda_ent=0.0)
    assert off.score_requests() == ()
    value, _ = run(logp, masked, noisy, batch, off)
    plain, _ = run(logp, masked, noisy, batch)
    assert (
        value == plain
        and (torch.autograd.grad(value, logp)[0] == torch.autograd.grad(plain, logp)[0]).all()
    )


def test_gradients_are_the_closed_forms_with_and_without_branch_gradient():
    logp, masked, noisy, batch = random_case()
    masked.requires_grad_()
    noisy.requires_grad_()
    dvrp = DVRP(kl="k3", lambda_nec=0.02, lambda_rob=0.03, lambda_ent=0.05)
    value, _ = run(logp, masked, noisy, batch, dvrp)
    plain, _ = run(logp, masked, noisy, batch)
    raw, hidden, blurred = torch.autograd.grad(value - plain, [logp, masked, noisy])
    weight = batch.mask / batch.mask.sum()
    down, near = torch.exp(masked - logp).detach(), torch.exp(noisy - logp).detach()
    torch.testing.assert_close(raw, weight * (-0.02 * (1 - down) + 0.03 * (1 - near)))
    torch.testing.assert_close(hidden, weight * (-0.02 * (down - 1) - 0.05))
    torch.testing.assert_close(blurred, weight * (0.03 * (near - 1) - 0.05))


def test_the_exact_divergence_carries_gradient_to_the_policy():
    logp, masked, noisy, batch = random_case()
    away = (logp - masked).square()
    live = {
        "raw": Scores(logp),
        "masked": Scores(masked, divergence=away),
        "noisy": Scores(noisy, divergence=away),
    }
    dvrp = DVRP(lambda_rob=0.0, lambda_ent=0.0)
    value, _ = loss(GRPO(), clipped, batch, live, [dvrp], Totals.of(batch.mask), NOW)
    plain, _ = loss(GRPO(), clipped, batch, live, [], Totals.of(batch.mask), NOW)
    (gradient,) = torch.autograd.grad(value - plain, logp)
    torch.testing.assert_close(
        gradient, -0.02 * (logp - masked).detach() * batch.mask / batch.mask.sum()
    )
    with pytest.raises(ValueError, match="scored without one"):
        run(logp, masked, noisy, batch, dvrp)


def test_needs_name_only_what_is_read():
    assert DVRP().score_requests() == (
        ScoreRequest("masked", divergence="forward"),
        ScoreRequest("noisy", divergence="forward"),
    )
    assert DVRP(kl="k3", lambda_rob=0.0, lambda_ent=0.0).score_requests() == (
        ScoreRequest("masked"),
    )
    assert DVRP(lambda_nec=0.0, lambda_rob=0.0, entropy="exact").score_requests() == (
        ScoreRequest("masked", entropy=True),
        ScoreRequest("noisy", entropy=True),
    )
    assert DVRP(kl="k3", lambda_orig=0.1, entropy="exact").score_requests()[0] == ScoreRequest(
        "raw", entropy=True
    )


def test_split_row_order_and_padding_do_not_matter():
    logp, masked, noisy, batch = random_case()
    totals = Totals.of(batch.mask)
    whole, _ = run(logp, masked, noisy, batch, SAMPLED)
    pieces = []
    for rows in (torch.tensor([2, 0]), torch.tensor([3, 1])):
        names = ("group", "tokens", "mask", "reward", "advantage", "roles")
        part = replace(
            batch,
            rollouts=batch.rollouts[:2],
            scores={"raw": batch.scores["raw"][rows]},
            **{name: getattr(batch, name)[rows] for name in names},
        )
        pieces.append(
            run(logp[rows], masked[rows], noisy[rows], part, SAMPLED, totals=totals)[0]
        )
    torch.testing.assert_close(sum(pieces), whole)
    dirty = torch.where(batch.mask, logp.detach(), torch.nan).requires_grad_()
    garbage, _ = run(dirty, torch.where(batch.mask, masked, torch.inf), noisy, batch, SAMPLED)
    assert garbage == whole
    torch.testing.assert_close(
        torch.autograd.grad(garbage, dirty)[0], torch.autograd.grad(whole, logp)[0]
    )


def test_exact_entropy_that_was_not_scored_is_asked_for():
    logp, masked, noisy, batch = random_case()
    with pytest.raises(ValueError, match="branch 'masked' was scored without entropy"):
        run(logp, masked, noisy, batch, DVRP(kl="k3", entropy="exact"))


def test_settings_out_of_range_are_refused_by_name():
    for name in ("lambda_nec", "lambda_rob", "lambda_ent", "lambda_orig"):
        with pytest.raises(ValueError, match=rf"DVRP\.{name} is -1"):
            DVRP(**{name: -1.0})
    with pytest.raises(ValueError, match="two views need two branches"):
        DVRP(masked="noisy")
