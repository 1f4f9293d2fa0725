"""PAPO: golden values of the official update, negative examples, identities and closed-form gradients."""

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
from mmrl.objectives.papo import PAPO, top_tokens
from mmrl.types import Batch, Now, Prompt, Role, Rollout, Scores

GOLDEN = (
    Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden"))
    / "objectives"
    / "papo_loss.npz"
)
NOW = Now(step=0, progress=0.0)
G_RUN = GRPO(clip_low=0.2, clip_high=0.3, kl=0.01)
PLAIN = PAPO(gamma=0.02, eta_orig=0.0, eta_masked=0.0)
BOTH = PAPO(gamma=0.02, eta_orig=0.05, eta_masked=0.05)
RUNS = {
    "grpo_only": (G_RUN, None),
    "papo_g_3b": (G_RUN, PLAIN),
    "papo_g_7b": (G_RUN, BOTH),
    "papo_d": (
        GRPO(clip_low=0.2, clip_high=0.28),
        PAPO(gamma=0.01, eta_orig=0.03, eta_masked=0.03),
    ),
    "papo_seq_avg": (replace(G_RUN, reduction="sequence"), PLAIN),
    "papo_clip0.2": (G_RUN, replace(PLAIN, k3_clip=0.2)),
    "papo_top20": (G_RUN, replace(PLAIN, token_top_p=0.2)),
    "papo_kl_k1": (G_RUN, replace(PLAIN, kl="k1")),
    "papo_sft": (G_RUN, replace(PLAIN, sft=1e-3)),
}


def make_batch(mask, advantage, reward=None, **scores):
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
    return Batch(
        rollouts=[answer] * rows,
        group=torch.zeros(rows, dtype=torch.long),
        tokens=torch.zeros(rows, columns, dtype=torch.long),
        mask=mask.bool(),
        reward=torch.zeros(rows) if reward is None else reward,
        advantage=advantage,
        roles=torch.where(mask.bool(), Role.POLICY, Role.OBSERVATION).to(torch.uint8),
        scores={name: Scores(x) for name, x in scores.items()},
    )


class Case:
    """The inputs of one golden case, and our loss on them."""

    def __init__(self, name):
        vectors = np.load(GOLDEN)
        read = lambda key: torch.tensor(vectors[f"{name}__in_{key}"])  # noqa: E731
        self.mask = read("response_mask").bool()
        self.advantage = read("adv_seq").unsqueeze(-1) * self.mask
        self.logp, self.masked, self.old, self.ref = (
            read(f"{key}log_probs") for key in ("", "aug_", "old_", "ref_")
        )

    def run(self, grpo, papo, masked_grad=False, entropies=(None, None)):
        """(loss, gradient for the real branch, gradient for the masked branch, metrics)."""
        logp, masked = self.logp.clone().requires_grad_(), self.masked.clone().requires_grad_()
        seen = masked if masked_grad else masked.detach()
        live = {"raw": Scores(logp, entropies[0]), "masked": Scores(seen, entropies[1])}
        correct = (torch.arange(len(self.mask)) % 2 == 0).float()
        batch = make_batch(self.mask, self.advantage, correct, raw=self.old, ref=self.ref)
        # Both references count an answer without tokens as a zero in means over answers.
        totals = Totals(int(self.mask.sum()), len(self.mask))
        value, metrics = loss(grpo, clipped, batch, live, [papo] if papo else [], totals, NOW)
        gradients = torch.autograd.grad(value, [logp, masked], allow_unused=True)
        real, aug = (torch.zeros_like(logp) if x is None else x for x in gradients)
        return (
            value.item(),
            real.numpy(),
            aug.numpy(),
            {name: float(x) for name, x in metrics.items()},
        )


def golden_runs():
    """(case, mode, run) of every official run in the file."""
    if not GOLDEN.exists():
        return []
    keys = [key.split("__") for key in np.load(GOLDEN).files]
    return sorted(
        {
            (key[0], key[1], key[2])
            for key in keys
            if len(key) > 3 or (len(key) == 4 and "loss" in key[3])
        }
    )


def configured(case, mode, run):
    """Settings for a golden run, or None if it names something that we do not have."""
    if run not in RUNS or not mode.startswith("main"):
        return None
    grpo, papo = RUNS[run]
    if papo is not None and mode.startswith("main_annealed"):
        factor = float(mode.removeprefix("main_annealed"))
        papo = replace(papo, anneal=Linear(factor, factor))
    elif mode not in ("main", "main_recompute"):
        return None
    if papo is not None and papo.sft:
        # The code divides by the tokens of the correct answers, we by all: the coefficient makes up for it.
        papo = replace(papo, sft=papo.sft * float(case.mask.sum() / case.mask[::2].sum()))
    return grpo, papo


@pytest.mark.parametrize(("name", "mode", "run"), golden_runs())
def test_golden_objectives_papo_loss(name, mode, run):
    vectors, case, key = np.load(GOLDEN), Case(name), f"{name}__{mode}__{run}"
    settings = configured(case, mode, run)
    if settings is None:
        pytest.skip(f"{key}: not a run of the official main branch that we have")
    value, real, aug, metrics = case.run(*settings, masked_grad=mode == "main_recompute")
    np.testing.assert_allclose(value, vectors[f"{key}__total_loss"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(real, vectors[f"{key}__grad"], rtol=1e-4, atol=1e-7)
    if f"{key}__grad_aug" in vectors:
        np.testing.assert_allclose(aug, vectors[f"{key}__grad_aug"], rtol=1e-4, atol=1e-7)
    grpo, papo = settings
    ours = {
        "kl_prcp_loss": metrics.get("loss/perception", 0.0) / papo.gamma if papo else None,
        "aug_entropy_loss": metrics.get("papo/surprise_masked"),
        "ori_entropy_loss": metrics["policy/surprise"],
        # The code reduces this one like the surrogate; ours is always a token mean.
        "entropy_loss": metrics["policy/surprise"] if grpo.reduction == "token" else None,
        "kl_loss": metrics.get("loss/kl", 0.0) / grpo.kl if grpo.kl else None,
        "ppo_kl": metrics["policy/kl_old"],
        "pg_clipfrac_higher": metrics["policy/clip_high"] + metrics["policy/clip_low"],
        "pg_clipfrac_lower": metrics["policy/clip_dual"],
    }
    for metric, got in ours.items():
        if got is not None and f"{key}__metric__{metric}" in vectors:
            np.testing.assert_allclose(
                got, vectors[f"{key}__metric__{metric}"], rtol=1e-4, atol=1e-6, err_msg=metric
            )


@pytest.mark.skipif(not GOLDEN.exists(), reason="no papo_loss.npz in the golden folder")
def test_golden_objectives_papo_has_known_cases():
    assert any(mode == "main" and run in RUNS for _, mode, run in golden_runs())


def cases_with(key):
    if not GOLDEN.exists():
        return []
    return sorted({name.split("__")[0] for name in np.load(GOLDEN).files if key in name})


@pytest.mark.parametrize("name", cases_with("__qwen3branch__papo_g_7b__grad"))
def test_golden_objectives_papo_is_not_the_official_qwen3_branch(name):
    vectors, case = np.load(GOLDEN), Case(name)
    theirs = vectors[f"{name}__qwen3branch__papo_g_7b__grad"]
    np.testing.assert_array_equal(theirs, vectors[f"{name}__qwen3branch__grpo_only__grad"])
    _, ours, _, _ = case.run(*RUNS["papo_g_7b"])
    _, plain, _, _ = case.run(G_RUN, None)
    np.testing.assert_allclose(plain, theirs, rtol=1e-4, atol=1e-6)
    assert np.abs(ours - theirs).max() > 1e-3


@pytest.mark.parametrize("name", cases_with("__trlpapo_grpo__loss"))
def test_golden_objectives_papo_is_not_trls_average_over_padding(name):
    vectors, case = np.load(GOLDEN), Case(name)
    entropies = tuple(
        torch.tensor(vectors[f"{name}__trlpapo_in_{key}"])
        for key in ("entropy", "entropy_masked")
    )
    grpo = GRPO(clip_low=0.2, clip_high=0.3, dual_clip=None, kl=0.01, reduction="sequence")
    papo = PAPO(gamma=0.1, eta_orig=0.03, eta_masked=0.03, k3_clip=0.2, entropy="exact")
    value, _, _, metrics = case.run(grpo, papo, masked_grad=True, entropies=entropies)
    assert abs(value - vectors[f"{name}__trlpapo_grpo__loss"]) > 1e-5
    # Averaging our own maps over all positions, padding included, is what TRL did.
    k3 = kl.k3(case.logp, case.masked, value_max=None).clamp(0, 0.2)
    over_padding = -0.1 * k3.mean() + 0.03 * entropies[0].mean() + 0.03 * entropies[1].mean()
    core = metrics["loss/policy"] + metrics["loss/kl"]
    np.testing.assert_allclose(
        core + over_padding.item(), vectors[f"{name}__trlpapo_grpo__loss"], rtol=1e-5, atol=1e-6
    )


def random_case(seed=0, rows=4, columns=7):
    rng = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(rows, columns, generator=rng, dtype=torch.float64)  # noqa: E731
    logp = -draw().abs() - 0.1
    masked, old = logp + 0.5 * draw(), logp + 0.1 * draw()
    mask = torch.arange(columns) < torch.tensor([[columns], [3], [1], [5]])[:rows]
    advantage = torch.randn(rows, 1, generator=rng, dtype=torch.float64) * mask
    return logp.requires_grad_(), masked, make_batch(mask, advantage, raw=old)


def run(logp, masked, batch, *objectives, now=NOW, grpo=GRPO(), totals=None):
    live = {"raw": Scores(logp), "masked": Scores(masked)}
    return loss(grpo, clipped, batch, live, objectives, totals or Totals.of(batch.mask), now)


@pytest.mark.parametrize("entropy", [0.0, 0.05])
def test_an_unmasked_image_gives_no_perception_term(entropy):
    logp, _, batch = random_case()
    papo = PAPO(gamma=0.02, eta_orig=entropy, eta_masked=0.0)
    value, metrics = run(logp, logp.detach(), batch, papo)
    plain, _ = run(logp, logp.detach(), batch, replace(papo, gamma=0.0))
    assert metrics["loss/perception"] == 0 and value == plain
    assert (torch.autograd.grad(value, logp)[0] == torch.autograd.grad(plain, logp)[0]).all()


@pytest.mark.parametrize(
    "papo",
    [PAPO(gamma=0.0, eta_orig=0.0, eta_masked=0.0), PAPO(anneal=Linear(0.0, 0.0))],
    ids=["zero", "annealed"],
)
def test_zero_coefficients_are_bit_equal_to_grpo(papo):
    logp, masked, batch = random_case()
    value, _ = run(logp, masked, batch, papo)
    plain, _ = run(logp, masked, batch)
    assert value == plain
    assert (torch.autograd.grad(value, logp)[0] == torch.autograd.grad(plain, logp)[0]).all()


def test_needs_name_only_what_is_read():
    assert PAPO(gamma=0.0, eta_orig=0.0, eta_masked=0.0).score_requests() == ()
    assert PAPO(gamma=0.0, eta_masked=0.0).score_requests() == (ScoreRequest("raw"),)
    assert PAPO(eta_orig=0.0, eta_masked=0.0, masked="hidden").score_requests() == (
        ScoreRequest("hidden"),
    )
    exact = PAPO(entropy="exact", kl="exact").score_requests()
    assert exact == (
        ScoreRequest("raw", entropy=True),
        ScoreRequest("masked", entropy=True, divergence="forward"),
    )


def test_gradients_are_the_closed_forms():
    logp, masked, batch = random_case()
    masked.requires_grad_()
    papo = PAPO(gamma=0.02, eta_orig=0.03, eta_masked=0.05)
    value, _ = run(logp, masked, batch, papo)
    plain, _ = run(logp, masked, batch)
    real, hidden = torch.autograd.grad(value - plain, [logp, masked])
    weight = batch.mask / batch.mask.sum()
    decay = torch.exp(masked - logp).detach()
    torch.testing.assert_close(real, weight * (-0.02 * (1 - decay) - 0.03))
    torch.testing.assert_close(hidden, weight * (-0.02 * (decay - 1) - 0.05))


def test_without_gradient_through_the_branch_its_entropy_changes_the_value_only():
    logp, masked, batch = random_case()
    value, _ = run(logp, masked, batch, PAPO(eta_masked=0.05))
    less, _ = run(logp, masked, batch, PAPO(eta_masked=0.0))
    surprise = -(masked * batch.mask).sum() / batch.mask.sum()
    torch.testing.assert_close(value - less, 0.05 * surprise)
    torch.testing.assert_close(
        torch.autograd.grad(value, logp)[0], torch.autograd.grad(less, logp)[0]
    )


def test_the_term_reaches_the_parameters():
    rng = torch.Generator().manual_seed(0)
    features, hidden = (torch.randn(4, 7, 8, generator=rng) for _ in range(2))
    tokens = torch.randint(0, 11, (4, 7), generator=rng)
    layer = torch.nn.Linear(8, 11)
    _, _, batch = random_case()
    batch = replace(batch, scores={}, advantage=torch.zeros(4, 7))

    def scores(x):
        return torch.log_softmax(layer(x), -1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

    def gradient(papo):
        value, _ = run(scores(features), scores(hidden).detach(), batch, papo)
        return torch.autograd.grad(value, layer.weight)[0]

    assert (gradient(PAPO(gamma=0.0, eta_orig=0.0, eta_masked=0.0)) == 0).all()
    assert gradient(PAPO(eta_orig=0.0, eta_masked=0.0)).abs().max() > 1e-5


def test_looking_pays_and_the_anneal_scales_all_three_terms():
    logp, masked, batch = random_case()
    logp, masked = logp.detach().fill_(-1.0), masked.fill_(-2.0)
    papo = PAPO(gamma=0.02, eta_orig=0.03, eta_masked=0.05, anneal=Linear(1.0, 0.0, until=0.5))
    _, base = run(logp, masked, batch, papo)
    _, better = run(logp + 0.5, masked, batch, papo)
    assert better["loss/perception"] < base["loss/perception"] < 0
    assert base["loss/entropy_orig"] == pytest.approx(0.03) and base[
        "loss/entropy_masked"
    ] == pytest.approx(0.1)
    _, half = run(logp, masked, batch, papo, now=Now(step=1, progress=0.25))
    for name in ("perception", "entropy_orig", "entropy_masked"):
        torch.testing.assert_close(half[f"loss/{name}"], base[f"loss/{name}"] / 2)
    _, over = run(logp, masked, batch, papo, now=Now(step=1, progress=0.75))
    assert "loss/perception" not in over


def test_entropies_are_token_means_under_every_reduction():
    logp, masked, batch = random_case()
    _, by_token = run(logp, masked, batch, PAPO())
    _, by_answer = run(logp, masked, batch, PAPO(), grpo=GRPO(reduction="sequence"))
    for name in ("entropy_orig", "entropy_masked"):
        assert by_token[f"loss/{name}"] == by_answer[f"loss/{name}"]
    assert by_token["loss/perception"] != by_answer["loss/perception"]


@pytest.mark.parametrize(
    "papo", [PAPO(), PAPO(token_top_p=0.3), PAPO(sft=0.01, kl="k2"), PAPO(k3_clip=0.1)]
)
def test_split_row_order_and_padding_do_not_matter(papo):
    logp, masked, batch = random_case()
    batch = replace(batch, reward=torch.tensor([1.0, 0.0, 1.0, 0.0]))
    totals = Totals.of(batch.mask)
    whole, _ = run(logp, masked, batch, papo)
    pieces = []
    for rows in (torch.tensor([2, 0]), torch.tensor([3, 1])):
        part = replace(
            batch,
            rollouts=batch.rollouts[:2],
            **{
                name: getattr(batch, name)[rows]
                for name in ("group", "tokens", "mask", "reward", "advantage", "roles")
            },
            scores={"raw": batch.scores["raw"][rows]},
        )
        pieces.append(run(logp[rows], masked[rows], part, papo, totals=totals)[0])
    torch.testing.assert_close(sum(pieces), whole)
    dirty = torch.where(batch.mask, logp.detach(), torch.nan).requires_grad_()
    garbage, _ = run(dirty, torch.where(batch.mask, masked, -torch.inf), batch, papo)
    assert garbage == whole
    torch.testing.assert_close(
        torch.autograd.grad(garbage, dirty)[0], torch.autograd.grad(whole, logp)[0]
    )


def test_top_tokens_keeps_the_upper_quantile_of_each_answer():
    value = torch.tensor(
        [[5.0, 1.0, 4.0, 2.0, 3.0, 99.0], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [7.0] * 6]
    )
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [0] * 6])
    got = top_tokens(value, mask, 0.25)
    assert got[0].tolist() == [True, False, True, False, False, False]
    assert got[1].tolist() == [True, True, True, False, False, False]  # ties stay together
    assert not got[2].any()
    assert (top_tokens(value, mask, 1.0) == mask.bool()).all()


def test_switches_change_what_they_name():
    logp, masked, batch = random_case(2)
    live = {"raw": Scores(logp), "masked": Scores(masked)}
    k3 = kl.k3(logp, masked) * batch.mask
    torch.testing.assert_close(PAPO().perception(live, batch), k3)
    torch.testing.assert_close(PAPO(k3_clip=0.05).perception(live, batch), k3.clamp(0, 0.05))
    torch.testing.assert_close(PAPO(k3_max=0.02).perception(live, batch), k3.clamp(max=0.02))
    torch.testing.assert_close(
        PAPO(kl="abs").perception(live, batch), (logp - masked).abs() * batch.mask
    )
    exact = {**live, "masked": Scores(masked, divergence=torch.full_like(masked, 3.0))}
    torch.testing.assert_close(
        PAPO(kl="exact").perception(exact, batch), 3.0 * batch.mask.double()
    )


def test_exact_quantities_that_were_not_scored_are_asked_for():
    logp, masked, batch = random_case()
    with pytest.raises(
        ValueError, match="scored without one; score it with divergence='forward'"
    ):
        run(logp, masked, batch, PAPO(kl="exact"))
    with pytest.raises(ValueError, match="scored without entropy"):
        run(logp, masked, batch, PAPO(entropy="exact"))


@pytest.mark.parametrize(
    "setting",
    [
        {"gamma": -0.1},
        {"eta_orig": -1.0},
        {"eta_masked": -1.0},
        {"sft": -1.0},
        {"k3_max": 0.0},
        {"k3_clip": 0.0},
        {"token_top_p": 0.0},
        {"token_top_p": 1.5},
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting):
    with pytest.raises(ValueError, match=rf"PAPO\.{next(iter(setting))} is .*must be"):
        PAPO(**setting)


def test_metrics_are_the_pages_list():
    logp, masked, batch = random_case()
    masked = torch.where(torch.arange(7) == 0, logp.detach() + 5.0, masked)
    _, metrics = run(logp, masked, batch, PAPO())
    assert metrics["papo/clamped"] == pytest.approx(4 / 16)
    d = (logp - masked).detach()[batch.mask]
    torch.testing.assert_close(metrics["papo/log_ratio"], d.mean())
    torch.testing.assert_close(metrics["papo/negative"].double(), (d < 0).double().mean())
    value = kl.k3(logp, masked).detach()[batch.mask]
    assert metrics["papo/kl_max"] == value.max() == 10
    torch.testing.assert_close(metrics["papo/kl"], value.mean())
    torch.testing.assert_close(metrics["papo/kl_squared"], value.square().mean())
    torch.testing.assert_close(metrics["papo/kl_above_1"].double(), (value > 1).double().mean())
