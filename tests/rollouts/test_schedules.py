"""DARS, EAD and GHPO: their schedules against the official code, and what their rollout functions do with them."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.ground.faults import BadRow
from mmrl.model.packing import collate
from mmrl.model.policy import Policy
from mmrl.model.ranks import Ranks
from mmrl.rollouts.dars import DARS, DARSRollout, further_answers
from mmrl.rollouts.ead import EAD, EADRollout, annealed
from mmrl.rollouts.engine import HFEngine
from mmrl.rollouts.experts import WithLabel
from mmrl.rollouts.ghpo import GHPO, GHPORollout, hint_of, hinted
from mmrl.rollouts.groups import DynamicSampling, group_rollout
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.stages import OneStep
from mmrl.types import Now, Prompt, Prompts, Rollout, Sampling
from tests.several import several, values

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden")) / "rlvr"
NOW, FOUR = Now(1, 0.1, seed=3), Sampling(4, 1.0, max_tokens=6)


def golden(name):
    file = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return [pytest.param(case, file, id=f"{name}-{case['name']}") for case in file["cases"]]


# ------------------------------------------------------------------------------------------------ official schedules


@pytest.mark.parametrize(("case", "file"), golden("dars_schedule"))
def test_dars_adds_what_the_official_code_adds(case, file):
    given = case["inputs"]
    for schedule, right in case["outputs"].items():
        found = [
            further_answers(
                accuracy,
                given["N"],
                given["N_max"],
                schedule=schedule,
                z_scored=given["std_normalised"],
            )
            for accuracy in given["accuracy"]
        ]
        assert found == right, schedule


@pytest.mark.parametrize(("case", "file"), golden("ead"))
def test_ead_anneals_as_the_official_code_does(case, file):
    given = case["inputs"]
    # The two official curves: the sampler's divides by 20 d_s, the other by d_s.
    kappa = 20.0 if case["name"].startswith("sampler") else 1.0
    found = [
        annealed(
            position,
            given["train_step"],
            tau_max=given["tau_max"],
            tau_min=given["tau_min"],
            d0=given["d0"],
            kappa=kappa,
            warmup=given["warmup"],
        )
        for position in given["positions"]
    ]
    for mine, right in zip(found, case["outputs"]["temperature"], strict=True):
        assert abs(mine - right) <= file["atol"] + file["rtol"] * abs(right)


@pytest.mark.parametrize(("case", "file"), golden("ghpo_hint_len"))
def test_a_hint_is_as_long_as_in_the_official_code(case, file):
    for share, lengths in case["outputs"].items():
        for characters, right in zip(case["inputs"]["solution_chars"], lengths, strict=True):
            assert len(hint_of("x" * characters, float(share))) == right


# -------------------------------------------------------------------------------------------------------- properties


@given(
    st.integers(1, 64),
    st.integers(0, 512),
    st.sampled_from(["ET", "HW"]),
    st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_dars_gives_no_less_to_harder_prompts_and_never_too_much(answers, more, schedule, z):
    most = answers + more
    found = [
        further_answers(right / answers, answers, most, schedule=schedule, z_scored=z)
        for right in range(answers + 1)
    ]
    # 0 counts as half an answer, so it gets at least what one right answer gets.
    assert found == sorted(found, reverse=True) or answers == 1
    assert all(0 <= count <= more for count in found)
    assert all(count == 0 for right, count in enumerate(found) if 2 * right >= answers)


@given(
    st.floats(0.1, 3.0),
    st.floats(0.1, 3.0),
    st.floats(1.0, 1e4),
    st.integers(0, 10**6),
    st.integers(0, 40),
)
@settings(max_examples=80, deadline=None)
def test_ead_starts_at_one_then_cools_to_its_floor_and_later_steps_cool_more_slowly(
    one, other, d0, step, warmup
):
    ead = EAD(max(one, other), min(one, other), min(d0, 4e4), 20.0, warmup)
    now, later = ead.at(step), ead.at(step + 50)
    heats = [now(t) for t in range(warmup, warmup + 3000, 37)]
    assert [now(t) for t in range(warmup)] == [1.0] * warmup
    assert heats == sorted(heats, reverse=True) and min(heats) >= ead.tau_min
    assert all(later(t) >= now(t) for t in range(0, 4000, 111))
    assert now(10**9) == ead.tau_min
    assert EAD(1.2, 0.1, 4e4, 1e6, 0).at(0)(100) == pytest.approx(1.2, abs=1e-6)
    assert {EAD(1.0, 1.0).at(step)(t) for t in range(0, 5000, 77)} == {1.0}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: EAD(tau_min=0.05), "tau_min is 0.05"),
        (lambda: EAD(tau_max=0.05), "tau_max is 0.05"),
        (lambda: EAD(d0=0), "d0 is 0"),
        (lambda: EAD(warmup=-1), "warmup is -1"),
        (lambda: EAD(kappa=0), "kappa is 0"),
        (lambda: DARS(schedule="XX"), "schedule is 'XX'"),
        (lambda: DARS(most=0), "most is 0"),
        (lambda: GHPO(shares=(0.5, 0.25)), "shares is"),
        (lambda: GHPO(shares=(0.5, 1.5)), "shares is"),
        (lambda: GHPO(sentence="no place"), "sentence is"),
    ],
)
def test_absurd_settings_are_refused(make, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        make()


# ------------------------------------------------------------------------------------------------- rollout functions


class Rows(Prompts):
    """Prompts 0, 1, …; the number says how many of its first answers are right."""

    def __init__(self, *ids, solutions=()):
        self.ids, self.size, self.solutions = ids, len(ids), solutions

    def __getitem__(self, index):
        name = self.ids[index]
        extra = {"solution": "step one, step two"} if name in self.solutions else {}
        content = [{"type": "text", "text": f"question {name}"}]
        return Prompt(name, [{"role": "user", "content": content}], extra=extra)


class Counting:
    """Answer n of a prompt says n; a hint is seen in the question."""

    def __init__(self):
        self.calls = []

    def generate(
        self, prompts, sampling, now, *, counts=None, first=None, prefixes=None, **more
    ):
        counts = counts or [sampling.group_size] * len(prompts)
        # As the engine: of a prompt that is there twice in one call, numbers go on.
        copies, base, first = Counter(), first or [0] * len(prompts), []
        for prompt, count, start in zip(prompts, counts, base, strict=True):
            first.append(start + copies[prompt.id])
            copies[prompt.id] += count
        self.calls.append(
            [(p.id, n, f) for p, n, f in zip(prompts, counts, first, strict=True)]
        )
        return [
            Rollout(
                p,
                i,
                torch.tensor([5]),
                torch.tensor([start + n]),
                torch.zeros(1, dtype=torch.uint8),
                f"{start + n}",
                "eos",
            )
            for i, (p, count, start) in enumerate(zip(prompts, counts, first, strict=True))
            for n in range(count)
        ]


def paying(right):
    """`right(rollout)` says whether an answer is right; None: not known."""

    def pay(rollouts):
        judged = [right(r) for r in rollouts]
        return [
            replace(r, reward=float(known or 0), correct=known, parts={"accuracy": known})
            for r, known in zip(rollouts, judged, strict=True)
        ]

    return pay


def sampled(rule, rows, right, sampling=FOUR, per_step=None):
    supply, engine = Supply(rows, per_step or rows.size, seed=0), Counting()
    found = rule(OneStep(engine), paying(right), supply, sampling, NOW)
    return found, supply.counters, engine.calls


def first_few(rollout):
    """Prompt "2": its answers 0 and 1 are right."""
    return int(rollout.text) < int(rollout.prompt.id)


def sizes(rollouts):
    return dict(Counter(r.prompt.id for r in rollouts))


def test_dars_asks_hard_prompts_again_and_leaves_out_what_is_even():
    rows = Rows("0", "1", "2", "4")
    found, counters, calls = sampled(DARSRollout(dars=DARS(most=12)), rows, first_few)
    # N = 4, peak 2. a = 0 counts as 1/8: S = 0.21875, (2 - 0.875) / S -> 6. a = 1/4: S = 0.375 -> 2.
    again = {name: count for name, count, _ in calls[1] if count}
    assert again == {"0": 6, "1": 2}
    assert {(name, start) for name, count, start in calls[1] if count} == {("0", 4), ("1", 4)}
    assert sizes(found) == {"1": 6, "2": 4}, "all wrong and all right are left out"
    numbers = [r.text for r in found if r.prompt.id == "1"]
    assert numbers == ["0", "1", "2", "3", "4", "5"], "no draw comes twice"
    assert [r.group for r in found] == sorted(r.group for r in found)
    assert {r.group for r in found} == {0, 1}
    assert counters["dars/further_answers"] == 8 and counters["dars/hard_prompts"] == 2
    assert counters["dars/dropped_groups"] == 2
    whole, _, _ = sampled(DARSRollout(dars=DARS(most=12, drop_even=False)), rows, first_few)
    assert sizes(whole) == {"0": 10, "1": 6, "2": 4, "4": 4}


def test_dars_with_nothing_to_add_is_plain_and_a_step_without_signal_stays_whole():
    rows = Rows("2", "3")
    found, _, calls = sampled(DARSRollout(dars=DARS(most=4)), rows, first_few)
    plain, _, _ = sampled(group_rollout, rows, first_few)
    assert [(r.group, r.text, r.reward) for r in found] == [
        (r.group, r.text, r.reward) for r in plain
    ]
    assert len(calls) == 1, "no second stage is sampled for nothing"
    with pytest.raises(ValueError, match=r"DARS\.most is 3, but .* 4 answers.*--dars\.most"):
        sampled(DARSRollout(dars=DARS(most=3)), rows, first_few)
    even, counters, _ = sampled(DARSRollout(dars=DARS(most=4)), Rows("0", "9"), first_few)
    assert sizes(even) == {"0": 4, "9": 4} and counters["dars/dropped_groups"] == 2
    unknown, _, calls = sampled(DARSRollout(), rows, lambda r: None)
    assert sizes(unknown) == {"2": 4, "3": 4} and len(calls) == 1


def test_dars_under_dynamic_sampling_fills_the_step_with_ragged_groups():
    rule = DARSRollout(DynamicSampling(spread=True, rounds=4), DARS(most=12, drop_even=False))
    rows = Rows("0", "1", "4", "2", "3", "9")
    found, _, _ = sampled(rule, rows, first_few, per_step=3)
    assert set(sizes(found)) <= {"1", "2", "3"} and len({r.group for r in found}) == 3
    assert sizes(found)["1"] == 6


def solved_at(length):
    """Right once the hint has so many characters."""
    return lambda r: len(r.prompt.extra.get("hint", "")) >= length


def test_ghpo_climbs_its_ladder_until_an_answer_is_right():
    everything, half, quarter = len("step one, step two"), 9, 4
    for length, tries in ((quarter, 1), (half, 2), (12, 3), (everything, 3)):
        rows = Rows("a", solutions=("a",))
        found, counters, calls = sampled(GHPORollout(), rows, solved_at(length))
        assert len(calls) == 1 + tries and counters["ghpo/failed_groups"] == 1
        assert sizes(found) == {"a": 4} and counters["ghpo/hinted_groups"] == tries
        assert counters["ghpo/unsolved_groups"] == (length == everything)
        hint = found[0].prompt.extra["hint"]
        assert hint == hint_of("step one, step two", (0.25, 0.5, 0.75)[tries - 1])
        said = found[0].prompt.messages[0]["content"]
        assert said[0]["text"] == "question a" and said[1]["text"].endswith(hint)
        # Numbers go on, so that a try draws anew.
        assert [start for ((_, _, start),) in calls] == [4 * n for n in range(1 + tries)]


def test_ghpo_leaves_solved_groups_and_rows_without_a_solution_alone():
    rows = Rows("1", "0", "00", solutions=("1", "0"))

    def right(rollout):
        return first_few(rollout) or "hint" in rollout.prompt.extra

    found, counters, calls = sampled(GHPORollout(), rows, right)
    plain, _, _ = sampled(group_rollout, rows, first_few)
    mine = [r for r in found if r.prompt.id != "0"]
    theirs = [r for r in plain if r.prompt.id != "0"]
    for one, other in zip(mine, theirs, strict=True):
        assert (one.text, one.reward, one.group) == (other.text, other.reward, other.group)
        assert one.prompt is other.prompt or one.prompt == other.prompt
    assert [name for name, _, _ in calls[1]] == ["0"] and counters["ghpo/missing"] == 1
    assert all("hint" in r.prompt.extra for r in found if r.prompt.id == "0")
    assert counters["ghpo/unsolved_groups"] == 1
    off, counters, calls = sampled(GHPORollout(ghpo=GHPO(shares=())), rows, first_few)
    assert len(calls) == 1 and [r.text for r in off] == [r.text for r in plain]


def test_a_hint_that_does_not_fit_leaves_the_group_and_is_counted():
    def check(prompt):
        if len(prompt.extra["hint"]) > 5:
            raise BadRow("too long")

    rule = GHPORollout(check=check)
    found, counters, calls = sampled(rule, Rows("a", solutions=("a",)), solved_at(99))
    assert len(calls) == 2 and counters["ghpo/too_long"] == 1
    assert len(found[0].prompt.extra["hint"]) == 4, "the last group that could be asked"


def test_the_hint_goes_behind_the_users_last_words():
    chat = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "<think>"},
    ]
    prompt = Prompt("p", chat, extra={"a": 1})
    found = hinted(prompt, "x = {}", " (so: {})")
    assert [m["content"] for m in found.messages] == [
        "be short",
        "one",
        "yes?",
        "two (so: x = {})",
        "<think>",
    ]
    assert found.id == "p" and found.extra == {"a": 1, "hint": "x = {}"}
    assert prompt.messages == chat and prompt.extra == {"a": 1}
    assert hinted(Prompt("t", "one"), "x", " {}").messages == "one x"
    system = [{"role": "system", "content": [{"type": "text", "text": "one"}]}]
    assert hinted(Prompt("s", system), "x", "{}").messages[0]["content"][1]["text"] == "x"


# --------------------------------------------------------------------------------------------------- with a real model


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return Policy.load(tiny_folder, device="cpu", dtype="float32")


def parity(rollout):
    return bool(rollout.tokens.sum() % 2)


def with_model(policy, rule, now=NOW):
    supply = Supply(Rows("3", "4"), 2, seed=0)
    return rule(OneStep(HFEngine(policy)), paying(parity), supply, FOUR, now)


def test_ead_scores_what_it_sampled_and_gives_labels_the_same_temperatures(policy):
    ead = EAD(tau_max=1.5, tau_min=0.3, d0=1.0, kappa=2.0, warmup=2)
    encode = policy.processing.encode_answer
    rows = Rows("3", "4")
    label = WithLabel(encode, column="", inner=group_rollout)
    rule = EADRollout(ead, inner=label)
    supply = Supply(Answered(rows), 2, seed=0)
    now = Now(4, 0.4, seed=3)
    found = rule(OneStep(HFEngine(policy)), paying(parity), supply, FOUR, now)
    assert Counter(r.origin for r in found) == {"policy": 8, "label": 2}
    for rollout in found:
        right = [ead.at(3)(t) for t in range(len(rollout.tokens))]
        assert rollout.temperature.tolist() == right


@dataclass(frozen=True)
class Answered(Prompts):
    rows: Rows
    size: int = 2

    def __getitem__(self, index):
        return replace(self.rows[index], answer="red blue")


def test_ead_at_one_and_dars_and_ghpo_without_strength_are_the_plain_rollout(policy):
    plain = with_model(policy, group_rollout)
    for rule in (
        EADRollout(EAD(1.0, 1.0)),
        DARSRollout(dars=DARS(most=4, drop_even=False)),
        GHPORollout(ghpo=GHPO(shares=())),
    ):
        found = with_model(policy, rule)
        for one, other in zip(found, plain, strict=True):
            assert torch.equal(one.tokens, other.tokens) and torch.equal(one.logp, other.logp)
            assert (one.reward, one.group, one.correct) == (
                other.reward,
                other.group,
                other.correct,
            )


def test_stages_and_annealing_compose(policy):
    ead = EAD(tau_max=1.5, tau_min=0.3, d0=1.0, kappa=2.0, warmup=1)
    rule = EADRollout(ead, inner=DARSRollout(dars=DARS(most=9, drop_even=False)))
    found = with_model(policy, rule)
    assert all(isinstance(r.temperature, torch.Tensor) for r in found)
    assert all(4 <= count <= 9 for count in sizes(found).values())
    keys = [(r.prompt.id, *r.tokens.tolist()) for r in found]
    assert len(found) == len(keys)
    assert collate(found).mask.any(1).all()
    assert math.isfinite(sum(float(r.logp.sum()) for r in found))


# ---------------------------------------------------------------------------------------------------- several processes


def staged():
    """Rows that come again within a step, in two stages, under a filter: who was kept, with which draws."""
    ranks = Ranks.start("cpu")
    supply = Supply(Rows("1", "2", "0", "3", "9"), 4, seed=0, ranks=ranks)
    rule = DARSRollout(DynamicSampling(spread=True, rounds=3), DARS(most=9, drop_even=False))
    answers = []
    for step in (1, 2):
        supply.new_step()
        found = rule(
            OneStep(Counting()), paying(first_few), supply, FOUR, replace(NOW, step=step)
        )
        answers += [(step, r.prompt.id, r.text) for r in found]
    ranks.end()
    return answers, supply.counters["dars/further_answers"]


def test_several_ranks_sample_the_same_stages():
    alone, further = staged()
    told = values(several(2, staged))
    assert sorted(one for mine, _ in told for one in mine) == sorted(alone)
    assert sum(count for _, count in told) == further > 0
    assert len(alone) == len(set(alone)), "a draw came twice"
