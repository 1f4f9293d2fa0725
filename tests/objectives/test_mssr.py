"""MSSR: golden run of the released tracker, the Beta memory, forgetting, entropy bonus and checkpoint."""

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.grpo import GRPO, loss
from mmrl.losses import kl
from mmrl.losses.reduce import Totals
from mmrl.losses.surrogates import clipped
from mmrl.objectives.base import ScoreRequest
from mmrl.objectives.mssr import MSSR, whitened
from mmrl.types import Batch, Now, Prompt, Role, Rollout, Scores

GOLDEN = (
    Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden"))
    / "objectives"
    / "mssr.npz"
)
NOW = Now(step=0, progress=0.0)


def make_batch(mask, reward, raw, ref, prompts=None):
    rows, columns = mask.shape
    nothing = torch.zeros(0, dtype=torch.long)
    names = [f"p{i}" for i in range(rows)] if prompts is None else prompts
    return Batch(
        rollouts=[
            Rollout(Prompt(name, []), i, nothing, nothing, nothing, "", "eos")
            for i, name in enumerate(names)
        ],
        group=torch.arange(rows),
        tokens=torch.zeros(rows, columns, dtype=torch.long),
        mask=mask.bool(),
        reward=reward,
        advantage=torch.zeros(rows, columns),
        roles=torch.where(mask.bool(), Role.POLICY, Role.OBSERVATION).to(torch.uint8),
        scores={"raw": Scores(raw), "ref": Scores(ref)},
    )


@dataclass(frozen=True)
class Released(MSSR):
    """The released KL of an answer: its padding is summed as well, then divided by the length."""

    def answer_kl(self, batch):
        raw, ref = batch.scores["raw"].logp, batch.scores["ref"].logp
        return kl.k3(raw, ref).sum(-1) / batch.mask.sum(-1)


def golden_steps(vectors):
    return sorted(
        {
            int(found[1])
            for key in vectors.files
            if (found := re.match(r"step(\d+)_in_scores", key))
        }
    )


@pytest.mark.skipif(not GOLDEN.exists(), reason="no mssr.npz in the golden folder")
def test_golden_objectives_mssr_run():
    vectors = np.load(GOLDEN)
    mssr, steps = Released(), golden_steps(vectors)
    memory = mssr.start_memory()
    assert steps, "mssr.npz holds no step"
    prompts = [f"p{i}" for i in range(len(vectors["in_init_outcomes"]))]
    memory.start(dict(zip(prompts, vectors["in_init_outcomes"].tolist(), strict=True)))

    def close(got, key):
        return np.testing.assert_allclose(got, vectors[key], rtol=1e-4, atol=2e-6, err_msg=key)

    for step in steps:
        np.testing.assert_allclose(
            memory.values(prompts), vectors["values"][step], rtol=1e-5, atol=1e-6
        )
        mask, score, raw, ref = (
            torch.tensor(vectors[f"step{step}_in_{name}"])
            for name in ("mask", "scores", "log_probs", "ref_log_probs")
        )
        batch = make_batch(mask, score, raw, ref, prompts)
        shaped = mssr.shape(torch.zeros_like(raw), batch, NOW, memory)
        close(shaped.advantage, f"step{step}_advantages")
        close(mssr.metrics({}, batch, NOW)["entropy"], f"step{step}_entropy_proxy")
        close(memory.forgetting(), f"step{step}_rho_used")
        close(shaped.logged["forgetting"], f"step{step}_rho_used")
        close(shaped.logged["kl_window"], f"step{step}_kl_window_mean")
        posterior = memory.state()["posterior"]
        close([posterior[name][0] for name in prompts], f"step{step}_alpha")
        close([posterior[name][1] for name in prompts], f"step{step}_beta")
    np.testing.assert_allclose(
        memory.values(prompts), vectors["values"][steps[-1] + 1], rtol=1e-5, atol=1e-6
    )


def shaping_keys():
    if not GOLDEN.exists():
        return []
    return [
        key for key in np.load(GOLDEN).files if key.startswith("shape_") and "_in_" not in key
    ]


@pytest.mark.parametrize("key", shaping_keys())
def test_golden_objectives_mssr_shaping(key):
    vectors = np.load(GOLDEN)
    found = re.fullmatch(r"shape_psi_a([\d.]+)_k([\d.]+)", key)
    if not found:
        pytest.skip(f"{key}: nothing of this name here")
    mssr = MSSR(lambda_entropy=float(found[1]), gamma=float(found[2]))
    got = mssr.bonus(torch.tensor(vectors["shape_in_adv"]), torch.tensor(vectors["shape_in_H"]))
    np.testing.assert_allclose(got, vectors[key], rtol=1e-6, atol=1e-7)


def random_case(seed=0, rows=6, columns=5):
    rng = torch.Generator().manual_seed(seed)
    mask = torch.arange(columns) < torch.tensor([[5], [3], [1], [4], [5], [2]])[:rows]
    raw = -torch.rand(rows, columns, generator=rng, dtype=torch.float64) * 2
    ref = raw + 0.1 * torch.randn(rows, columns, generator=rng, dtype=torch.float64)
    return make_batch(
        mask, torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)[:rows], raw, ref
    )


def test_padding_does_not_enter_the_kl_as_it_does_in_the_released_code():
    batch = random_case()
    dirty = {
        name: Scores(torch.where(batch.mask, s.logp, torch.nan))
        for name, s in batch.scores.items()
    }
    clean = MSSR().answer_kl(batch)
    torch.testing.assert_close(MSSR().answer_kl(replace(batch, scores=dirty)), clean)
    assert (Released().answer_kl(batch) > clean + 1e-6).any()
    expected = (kl.k3(batch.scores["raw"].logp, batch.scores["ref"].logp) * batch.mask).sum(
        -1
    ) / batch.mask.sum(-1)
    torch.testing.assert_close(clean, expected)


def test_the_baseline_is_the_value_before_the_update_and_advantages_are_whitened():
    batch = random_case()
    mssr = MSSR(lambda_entropy=0.0)
    memory = mssr.start_memory()
    memory.start({f"p{i}": rate for i, rate in enumerate([0.0, 0.5, 1.0, 0.25, 0.5, 0.5])})
    # Equal counts would scale all gains alike, and whitening would hide an update that came too early.
    memory.observe(["p1", "p1", "p3"], torch.tensor([1.0, 0.0, 1.0]), torch.full((3,), 0.009))
    before = memory.values([f"p{i}" for i in range(6)])
    shaped = mssr.shape(torch.full_like(batch.advantage, 99.0), batch, NOW, memory).advantage
    gain = batch.reward - before
    per_answer = shaped[:, 0]
    torch.testing.assert_close(per_answer, (gain - gain.mean()) / gain.std(unbiased=False))
    torch.testing.assert_close(
        per_answer.mean(), torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0
    )
    assert (shaped[~batch.mask] == 0).all()
    assert not torch.equal(memory.values([f"p{i}" for i in range(6)]), before)


def test_counts_add_without_forgetting_and_reach_the_effective_sample_size_with_it():
    none = MSSR(
        eta_max=1.0
    ).start_memory()  # at the target KL nothing is forgotten: the conjugate update
    none.start({"p": 0.5})
    for value in (1.0, 0.0, 1.0):
        none.observe(["p"], torch.tensor([value]), torch.tensor([0.01], dtype=torch.float64))
    assert none.state()["posterior"]["p"] == [6.0, 5.0]
    some = MSSR().start_memory()
    for _ in range(600):
        some.observe(["p"], torch.tensor([1.0]), torch.tensor([0.01]))
    alpha, beta = some.state()["posterior"]["p"]
    assert alpha + beta == pytest.approx(1 / (1 - 0.96), rel=1e-5) and some.values(["p"])[
        0
    ] == pytest.approx(1.0, abs=1e-4)


def test_forgetting_is_the_printed_sawtooth():
    def after(*values, window=10):
        memory = MSSR(window=window).start_memory()
        for value in values:
            memory.observe([], torch.zeros(0), torch.tensor([value]))
        return memory.forgetting()

    assert after() == pytest.approx((0.875 + 0.96) / 2)
    assert after(0.0) == 0.875
    assert after(0.005) == pytest.approx(0.9175)
    assert after(0.01) == pytest.approx(0.96, rel=1e-6)
    assert after(0.0101) == 0.875 and after(5.0) == 0.875
    assert after(5.0, 0.005, 0.005, window=2) == pytest.approx(0.9175)


def test_repeated_prompts_update_in_turn_and_unseen_ones_start_in_the_middle():
    memory = MSSR().start_memory()
    assert memory.values(["new"])[0] == 0.5
    memory.observe(["p", "p"], torch.tensor([1.0, 0.0]), torch.tensor([0.01, 0.01]))
    eta = memory.forgetting()
    alpha, beta = eta * (eta * 4 + 1) + 0, eta * (eta * 4 + 0) + 1
    assert memory.state()["posterior"]["p"] == pytest.approx([alpha, beta])
    assert memory.state()["posterior"]["p"][0] < 8


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_values_stay_probabilities_and_the_bonus_keeps_the_sign(seed, rewards):
    batch = replace(random_case(seed), reward=torch.tensor(rewards, dtype=torch.float64))
    mssr, plain = MSSR(), MSSR(lambda_entropy=0.0)
    memory, other = mssr.start_memory(), plain.start_memory()
    for _ in range(3):
        shaped = mssr.shape(batch.advantage, batch, NOW, memory).advantage
        base = plain.shape(batch.advantage, batch, NOW, other).advantage
        assert torch.isfinite(shaped).all()
        bonus = shaped - base
        assert (bonus >= -1e-12).all() and (bonus <= base.abs() / 2 + 1e-12).all()
        assert (shaped * base >= 0).all()
        values = memory.values([f"p{i}" for i in range(6)])
        assert ((values >= 0) & (values <= 1)).all()


def test_degenerate_batches_are_finite():
    assert (whitened(torch.full((4,), 0.3)) == 0).all()
    torch.testing.assert_close(whitened(torch.tensor([0.7])), torch.tensor([0.7]))
    torch.testing.assert_close(
        whitened(torch.tensor([1.0, torch.nan, 0.0])), torch.tensor([1.0, 0.0, -1.0])
    )
    memory = MSSR().start_memory()
    memory.observe(["p"], torch.tensor([torch.nan]), torch.zeros(1))
    assert memory.values(["p"])[0] == 0.5


def test_the_memory_survives_json_and_reproduces_the_next_step():
    mssr, batch = MSSR(), random_case()
    first = mssr.start_memory()
    first.start({"p0": 1.0})
    mssr.shape(batch.advantage, batch, NOW, first)
    saved = json.loads(json.dumps(first.state()))
    second = mssr.start_memory()
    second.load(saved)
    third = mssr.shape(batch.advantage, batch, NOW, first).advantage
    assert torch.equal(mssr.shape(batch.advantage, batch, NOW, second).advantage, third)
    assert second.state() == first.state() != saved  # what was saved is a copy


def test_an_objective_remembers_nothing_itself():
    mssr, batch = MSSR(), random_case()
    before = replace(mssr)
    memory, other = mssr.start_memory(), mssr.start_memory()
    mssr.shape(batch.advantage, batch, NOW, memory)
    assert mssr == before and vars(mssr) == vars(before)
    assert memory.posterior and not other.posterior
    with pytest.raises(ValueError, match="got no memory"):
        mssr.shape(batch.advantage, batch, NOW)


def test_switched_off_it_is_bit_equal_to_grpo_and_needs_nothing():
    batch = random_case()
    off = MSSR(lambda_entropy=0.0, baseline=False)
    assert (
        off.score_requests() == ()
        and off.shape(batch.advantage, batch, NOW).advantage is batch.advantage
    )
    logp = batch.scores["raw"].logp.clone().requires_grad_()
    arguments = (
        GRPO(),
        clipped,
        replace(batch, advantage=torch.ones_like(logp)),
        {"raw": Scores(logp)},
    )
    totals = Totals.of(batch.mask)
    assert loss(*arguments, [off], totals, NOW)[0] == loss(*arguments, [], totals, NOW)[0]


def test_needs_and_missing_scores():
    assert MSSR().score_requests() == (
        ScoreRequest("raw", stage="shape"),
        ScoreRequest("ref", stage="shape"),
    )
    assert MSSR(entropy="exact", baseline=False).score_requests() == (
        ScoreRequest("raw", stage="shape", entropy=True),
    )
    batch = random_case()
    bare = replace(batch, scores={"raw": batch.scores["raw"]})
    with pytest.raises(ValueError, match=r"set grpo\.kl above 0"):
        MSSR().shape(batch.advantage, bare, NOW, MSSR().start_memory())
    with pytest.raises(ValueError, match="without entropy"):
        MSSR(entropy="exact").shape(batch.advantage, batch, NOW, MSSR().start_memory())


def test_settings_out_of_range_are_refused_by_name():
    bad = (
        {"gamma": 0.0},
        {"lambda_entropy": -1.0},
        {"eta_min": 1.0},
        {"eta_max": 0.5},
        {"target": 0.0},
        {"window": 0},
    )
    for setting in bad:
        with pytest.raises(ValueError, match=rf"MSSR\.{next(iter(setting))} is"):
            MSSR(**setting)
    with pytest.raises(ValueError, match="success rate"):
        MSSR().start_memory().start({"p": 2.0})
