"""Stages of a rollout: counts per prompt, numbers that go on, forced beginnings, temperatures per token."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from mmrl.model.answer_trees import temperature_of
from mmrl.model.packing import Group, collate, pack
from mmrl.model.policy import Policy
from mmrl.model.reference_scores import score_repeated
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.rollouts.advance import Pace
from mmrl.rollouts.engine import HFEngine, can_look
from mmrl.rollouts.groups import DynamicSampling
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.request import abilities_of
from mmrl.rollouts.stages import Answering, OneStep, StagedRollout, paid_once
from mmrl.types import Now, Prompt, Role, Rollout, Sampling

NOW, HOT = Now(3, 0.25, seed=11), Sampling(3, 1.0, max_tokens=7)
PACES = [None, Pace(look_every=3, buckets=(1, 2, 4, 8))]


def asked(count):
    return [
        Prompt(f"q{n}", [{"role": "user", "content": "What is red?" + " blue" * n}])
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return Policy.load(tiny_folder, device="cpu", dtype="float32")


def groups_of(policy, rollouts):
    groups = []
    for number in sorted({r.group for r in rollouts}):
        rows = tuple(i for i, r in enumerate(rollouts) if r.group == number)
        encoded = policy.encode(rollouts[rows[0]].prompt)
        answers = tuple(rollouts[i].tokens for i in rows)
        heat = tuple(rollouts[i].temperature for i in rows)
        groups.append(Group(encoded, encoded.visual, answers, rows, heat))
    return groups, (len(rollouts), max(len(r.tokens) for r in rollouts))


def logp(policy, rollouts, score=score_packed):
    groups, shape = groups_of(policy, rollouts)
    with torch.no_grad():
        return score(policy, {"raw": groups}, {"raw": ScoreOutputs(entropy=True)}, shape)["raw"]


def same(first, second):
    assert [r.group for r in first] == [r.group for r in second]
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.tokens, other.tokens)


# ---------------------------------------------------------------------------------------------------- counts, numbers


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("rows", [2, 256])
def test_each_prompt_gets_as_many_answers_as_it_shall(policy, pace, rows):
    """Ragged counts give the first answers of full groups, whatever shapes they are sampled in."""
    prompts, counts = asked(4), [2, 0, 3, 1]
    full = HFEngine(policy).generate(prompts, HOT, NOW)
    engine = HFEngine(policy, rows_at_once=rows, pace=pace)
    found = engine.generate(prompts, HOT, NOW, counts=counts)
    assert [r.group for r in found] == [0, 0, 2, 2, 2, 3]
    right = [full[3 * g + n] for g, count in enumerate(counts) for n in range(count)]
    same(found, right)
    assert [r.prompt.id for r in found] == [r.prompt.id for r in right]
    assert engine.generate(prompts, HOT, NOW, counts=[0] * 4) == []


@pytest.mark.parametrize("cut", [(1, 5), (3, 3), (6, 0), (2, 1, 1, 2)])
def test_two_stages_give_the_answers_of_one(policy, cut):
    """Numbers go on: however a group is cut into stages, its answers are those of one call, and none repeats."""
    prompts = asked(2)
    whole = HFEngine(policy).generate(prompts, replace(HOT, group_size=6), NOW)
    engine, found = OneStep(HFEngine(policy)), []
    for count in cut:
        found += engine.generate(prompts, HOT, NOW, counts=[count] * 2)
    same(sorted(found, key=lambda r: r.group), whole)
    keys = Counter((r.group, tuple(r.tokens.tolist())) for r in found)
    again = OneStep(HFEngine(policy)).generate(prompts, replace(HOT, group_size=6), NOW)
    assert keys == Counter((r.group, tuple(r.tokens.tolist())) for r in again)


def test_numbers_go_on_for_a_prompt_that_is_there_twice_and_begin_anew_elsewhere(policy):
    (prompt,) = asked(1)
    whole = HFEngine(policy).generate([prompt], replace(HOT, group_size=9), NOW)
    engine = OneStep(HFEngine(policy))
    twice = engine.generate([prompt, prompt], HOT, NOW)
    third = engine.generate([prompt], HOT, NOW)
    tokens = [r.tokens.tolist() for r in [*twice, *third]]
    assert tokens == [r.tokens.tolist() for r in whole]
    # Another step, seed or view has draws of its own, and begins at 0.
    for other in (Now(4, 0.3, 11), Now(3, 0.25, 12)):
        same(
            engine.generate([prompt], HOT, other),
            HFEngine(policy).generate([prompt], HOT, other),
        )
    encoded = policy.encode(prompt)
    dark = {"visual": [encoded.visual], "branch": "dark"}
    same(
        engine.generate([prompt], HOT, NOW, **dark),
        HFEngine(policy).generate([prompt], HOT, NOW, **dark),
    )


class Plain:
    """An engine that does what the protocol asks and nothing else."""

    def generate(self, prompts, sampling, now):
        return [
            Rollout(p, i, torch.tensor([1]), torch.tensor([2]), torch.zeros(1), "a", "eos")
            for i, p in enumerate(prompts)
            for _ in range(sampling.group_size)
        ]

    def sync(self, policy):
        self.synced = policy


def test_an_engine_is_asked_for_what_it_can_do_only():
    engine = OneStep(Plain())
    assert len(engine.generate(asked(2), HOT, NOW)) == 6
    engine.sync("weights")
    assert engine.stands_for.synced == "weights" and not abilities_of(engine)
    with pytest.raises(ValueError, match=r"'counts per prompt', which Plain cannot do"):
        engine.generate(asked(2), HOT, NOW, counts=[1, 2])
    real = OneStep(HFEngine.__new__(HFEngine))
    assert can_look(real) and not can_look(Answering(real, print))


# -------------------------------------------------------------------------------------------------- staged functions


class Twice(StagedRollout):
    """Two more answers to prompts whose first answers are all of one length."""

    def groups(self, stages, prompts):
        first = stages(prompts)
        more = stages(prompts, [2 if n % 2 else 0 for n in range(len(prompts))])
        return [[*a, *b] for a, b in zip(first, more, strict=True)]


def paying(calls):
    def pay(rollouts):
        calls.append(len(rollouts))
        value = [float(r.tokens.sum() % 2) for r in rollouts]
        return [
            replace(r, reward=v, parts={"accuracy": v})
            for r, v in zip(rollouts, value, strict=True)
        ]

    return pay


class Rows:
    def __init__(self, count):
        self.rows, self.size = asked(count), count

    def __getitem__(self, index):
        return self.rows[index]

    def drain(self):
        return {}


@pytest.mark.parametrize("inner", [None, DynamicSampling(spread=True, rounds=9)])
def test_stages_are_one_group_paid_once_also_under_a_filter(policy, inner):
    calls, supply = [], Supply(Rows(6), 4, seed=1)
    rollout = Twice() if inner is None else Twice(inner)
    found = rollout(OneStep(HFEngine(policy)), paying(calls), supply, HOT, NOW)
    groups = Counter(r.group for r in found)
    assert set(groups) == set(range(len(groups))) and set(groups.values()) == {3, 5}
    assert all(r.reward is not None for r in found)
    assert [r.group for r in found] == sorted(r.group for r in found)
    # Each stage is paid by itself, and no answer twice.
    drawn = calls if inner is None else [n for n in calls if n]
    assert all(n in (12, 4) for n in drawn)
    for group in range(len(groups)):
        mine = [r for r in found if r.group == group]
        assert len({r.prompt.id for r in mine}) == 1
        if inner is not None:
            assert len({r.reward for r in mine}) == 2
    # Ragged groups become a batch, and their log-probs are the sampler's.
    batch = collate(found)
    scores = logp(policy, found)
    kept = batch.mask.float()
    torch.testing.assert_close(
        scores.logp * kept, batch.scores["sampler"].logp * kept, rtol=0, atol=1e-5
    )


def test_what_has_been_paid_is_not_paid_again():
    prompts, calls = asked(2), []
    answers = Plain().generate(prompts, HOT, NOW)
    pay = paid_once(paying(calls))
    first = pay(answers[:4])
    found = pay([*answers[4:], *first])
    assert calls == [4, 2] and [r.group for r in found] == [0, 0, 0, 1, 1, 1]
    assert pay(found) == found and calls == [4, 2]


def test_who_counts_inside_another_who_counts_is_refused(policy):
    with pytest.raises(ValueError, match=r"Twice and Twice cannot be used together"):
        Twice(Twice())(HFEngine(policy), paying([]), Supply(Rows(6), 4, seed=1), HOT, NOW)
    with pytest.raises(
        ValueError, match=r"Twice needs 'counts per prompt', which Plain cannot do"
    ):
        Twice()(OneStep(Plain()), paying([]), Supply(Rows(6), 4, seed=1), HOT, NOW)


# --------------------------------------------------------------------------------------------------------- beginnings


@pytest.mark.parametrize("pace", PACES)
def test_every_answer_may_begin_with_words_of_its_own(policy, pace):
    prompts = asked(2)
    words = policy.processing.encode_answer("red blue green")[:-1]
    prefixes = [[words[:2], words[:0], words[:1]], words[:1]]
    counts = [3, 2]
    engine = HFEngine(policy, rows_at_once=2, pace=pace)
    found = engine.generate(prompts, HOT, NOW, counts=counts, prefixes=prefixes)
    lengths = [2, 0, 1, 1, 1]
    hint = int(Role.HINT)
    for rollout, length in zip(found, lengths, strict=True):
        assert rollout.tokens[:length].tolist() == words[:length].tolist()
        assert (rollout.roles == hint).tolist() == [
            n < length for n in range(len(rollout.tokens))
        ]
    batch = collate([replace(r, reward=1.0) for r in found])
    for row, length in enumerate(lengths):
        # Conditioned on, never trained.
        assert not batch.mask[row, :length].any()
        assert batch.mask[row, length : len(found[row].tokens)].all()
    scores = logp(policy, found)
    for row, rollout in enumerate(found):
        torch.testing.assert_close(
            rollout.logp, scores.logp[row, : len(rollout.tokens)], rtol=0, atol=1e-5
        )
    # An answer without a prefix is what it is without any hints around it.
    assert torch.equal(found[1].tokens, engine.generate(prompts, HOT, NOW)[1].tokens)
    with pytest.raises(ValueError, match="2 prefixes for 3 answers"):
        engine.generate(prompts, HOT, NOW, prefixes=[[words, words], words])


# ------------------------------------------------------------------------------------------------------- temperatures


def cooling(t):
    return (1.3, 0.0, 0.4, 0.9, 0.2)[t % 5]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_training_scores_each_token_at_the_temperature_it_was_sampled_at(tiny_folder, dtype):
    policy = Policy.load(tiny_folder, device="cpu", dtype=dtype)
    found = HFEngine(policy).generate(asked(3), HOT, NOW, temperature_at=cooling)
    for rollout in found:
        # Greedy positions (0) are scored at 1.
        right = [cooling(t) or 1.0 for t in range(len(rollout.tokens))]
        assert rollout.temperature.dtype == torch.float64
        assert rollout.temperature.tolist() == right
    scores, repeated = logp(policy, found), logp(policy, found, score_repeated)
    close = 1e-5 if dtype == "float32" else 1e-10
    for row, rollout in enumerate(found):
        length = len(rollout.tokens)
        for other in (rollout.logp, repeated.logp[row, :length]):
            torch.testing.assert_close(scores.logp[row, :length], other, rtol=0, atol=close)
    torch.testing.assert_close(scores.entropy, repeated.entropy, rtol=0, atol=10 * close)


def test_a_temperature_per_token_equals_single_scores_at_each_temperature(policy):
    """Column t of the mixed pass is column t of a pass in which all tokens have that temperature; gradients too."""
    found = HFEngine(policy).generate(asked(2), HOT, NOW)
    heats = [torch.linspace(0.3, 1.7, len(r.tokens), dtype=torch.float64) for r in found]
    mixed = [replace(r, temperature=h) for r, h in zip(found, heats, strict=True)]
    scores = logp(policy, mixed)
    for row in (0, 4):
        for t, heat in enumerate(heats[row].tolist()):
            plain = logp(policy, [replace(r, temperature=heat) for r in found])
            torch.testing.assert_close(scores.logp[row, t], plain.logp[row, t])
            torch.testing.assert_close(scores.entropy[row, t], plain.entropy[row, t])


def test_numbers_of_temperatures_that_do_not_fit_are_refused():
    tokens = torch.arange(3)
    assert temperature_of(tokens, 0.7).tolist() == [0.7] * 3
    assert temperature_of(tokens[:0], torch.zeros(0)).tolist() == []
    with pytest.raises(ValueError, match="3 tokens has 2 temperatures"):
        temperature_of(tokens, torch.ones(2))


def test_numbers_and_lists_of_temperatures_stand_in_one_row(policy):
    (prompt,) = asked(1)
    encoded = policy.encode(prompt)
    answers = (torch.arange(70, 73), torch.arange(70, 72))
    heat = (0.5, torch.tensor([2.0, 0.25], dtype=torch.float64))
    row = pack([Group(encoded, (), answers, (0, 1), heat)], torch.device("cpu"))
    assert row.temperature.tolist() == [0.5, 0.5, 0.5, 2.0, 0.25]
