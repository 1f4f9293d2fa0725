"""Rollout functions: grouped answers, dynamic sampling, labels as answers."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, replace

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.ground.faults import BadRow
from mmrl.model.policy import Policy
from mmrl.model.ranks import Ranks
from mmrl.rollouts.engine import HFEngine
from mmrl.rollouts.groups import (
    DynamicSampling,
    FirstPass,
    LabelRollout,
    PlainRollout,
    by_group,
    chain,
    group_rollout,
    renumbered,
)
from mmrl.rollouts.oversampling import KeptShares
from mmrl.rollouts.prompt_order import Supply
from mmrl.training.tracking import describe
from mmrl.types import Now, Prompt, Prompts, Role, Rollout, Sampling
from tests.several import several, values

NOW = Now(step=1, progress=0.0, seed=0)


@dataclass(frozen=True)
class Rows(Prompts):
    """Endless numbered prompts."""

    size: int | None = None

    def __getitem__(self, index):
        return Prompt(str(index), [])


class Parrot:
    """An engine whose answer to prompt n is n; it remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def generate(self, prompts, sampling, now):
        self.asked.append([int(p.id) for p in prompts])
        kinds = torch.zeros(1, dtype=torch.uint8)
        return [
            Rollout(p, i, torch.arange(3), torch.tensor([int(p.id)]), kinds, p.id, "eos")
            for i, p in enumerate(prompts)
            for _ in range(sampling.group_size)
        ]

    def sync(self, policy):
        pass


def paid_by(accuracy, form=1.0):
    """Pay answer g of prompt n with accuracy(n, g), and a format reward on top."""

    def pay(rollouts):
        out = []
        for position, r in enumerate(rollouts):
            value = accuracy(int(r.prompt.id), position % 4)
            total = form if value is None else value + form
            out.append(replace(r, reward=total, parts={"accuracy": value, "format": form}))
        return out

    return pay


def mixed(n, g):
    """Prompts in turn: all wrong, all right, half right."""
    return (0.0, 1.0, float(g % 2))[n % 3]


def run(rule, accuracy=mixed, per_step=3):
    engine, supply = Parrot(), Supply(Rows(), per_step, seed=0)
    rollouts = rule(engine, paid_by(accuracy), supply, Sampling(4), NOW)
    return rollouts, supply, engine


def test_group_rollout_takes_one_portion_and_pays_it():
    rollouts, supply, engine = run(group_rollout)
    assert engine.asked == [[0, 1, 2]] and supply.position == 3
    assert [r.group for r in rollouts] == [0] * 4 + [1] * 4 + [2] * 4
    assert [r.reward for r in rollouts] == [1.0] * 4 + [2.0] * 4 + [1.0, 2.0] * 2


@pytest.mark.parametrize("spread", [False, True], ids=["mean", "spread"])
def test_dynamic_sampling_fills_the_step_with_groups_that_carry_signal(spread):
    rollouts, supply, engine = run(DynamicSampling(spread=spread))
    assert engine.asked == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert [int(r.prompt.id) for r in rollouts] == [2] * 4 + [5] * 4 + [8] * 4
    assert [r.group for r in rollouts] == [0] * 4 + [1] * 4 + [2] * 4
    assert (
        supply.counters["rollout/rounds"] == 3
        and supply.counters["rollout/dropped_groups"] == 6
    )
    assert supply.counters["rollout/surplus_groups"] == 0


def test_nothing_is_kept_of_what_dynamic_sampling_dropped(tiny_folder):
    """Round after round: prompts, pixels, encodings, answers, features and graphs of dropped groups are gone."""
    policy = Policy.load(tiny_folder, device="cpu", dtype="float64")
    rows, rounds = Drawn("lookup"), []
    read: list[weakref.ref] = []

    @dataclass(frozen=True)
    class Watched(Prompts):
        def __getitem__(self, index):
            prompt = rows[index]
            read.append(weakref.ref(prompt))
            return prompt

    def pay(answers):
        alive = sum(prompt() is not None for prompt in read)
        vision = policy.vision
        rounds.append((alive, len(vision._encoded), len(vision._entries)))
        number = len(
            rounds
        )  # the first answers of each round differ, of four prompts one is kept
        return [
            replace(
                r, reward=1.0, parts={"accuracy": float(r.group == 0 and i % 2 and number > 1)}
            )
            for i, r in enumerate(answers)
        ]

    supply = Supply(Watched(), 4, 0, check=policy.encode, forget=policy.vision.forget)
    engine = HFEngine(policy, rows_at_once=2)
    with policy.vision.step():
        rollouts = DynamicSampling()(engine, pay, supply, Sampling(2, max_tokens=2), NOW)
        gc.collect()
        assert len(rounds) == 5 and len(read) == 20
        # Four prompts of the round itself, and those that were kept before: none, none, one, two, three.
        assert rounds == [(4 + kept, 4 + kept, 4 + kept) for kept in (0, 0, 1, 2, 3)]
        alive = [prompt() for prompt in read if prompt() is not None]
        assert (
            {p.id for p in alive}
            == {r.prompt.id for r in rollouts}
            == set(policy.vision._encoded)
        )
        assert len(policy.vision._entries) == 4


def test_surplus_groups_are_left_out_and_counted():
    rollouts, supply, _ = run(DynamicSampling(), lambda n, g: 0.0 if n == 0 else float(g % 2))
    assert [r.prompt.id for r in rollouts[::4]] == ["1", "2", "3"]
    assert (
        supply.counters["rollout/surplus_groups"] == 2
        and supply.counters["rollout/dropped_groups"] == 1
    )


def test_dropped_and_surplus_groups_are_forgotten_at_once():
    forgotten = []
    supply = Supply(
        Rows(), 3, seed=0, forget=lambda prompts: forgotten.append([p.id for p in prompts])
    )
    pay = paid_by(lambda n, g: 0.0 if n == 0 else float(g % 2))
    rollouts = DynamicSampling()(Parrot(), pay, supply, Sampling(4), NOW)
    assert [r.prompt.id for r in rollouts[::4]] == ["1", "2", "3"]
    # The first round drops prompt 0, the second has two more than the step needs.
    assert forgotten == [["0"], ["4", "5"]]


def test_the_total_lets_all_wrong_but_well_formed_groups_pass_and_accuracy_does_not():
    wrong = lambda n, g: 0.0  # noqa: E731
    rollouts, *_ = run(DynamicSampling("total", low=0.01, high=1.5), wrong)
    assert len(rollouts) == 12
    with pytest.raises(ValueError, match=r"kept no group in 2 rounds of 3 prompts.*'accuracy'"):
        run(DynamicSampling(rounds=2), wrong)


def test_the_bounds_are_strict_and_spread_is_another_rule():
    even = lambda n, g: 0.5  # noqa: E731
    assert len(run(DynamicSampling(low=0.4, high=0.6), even)[0]) == 12
    for low, high in ((0.5, 0.9), (0.1, 0.5)):
        with pytest.raises(ValueError, match="kept no group"):
            run(DynamicSampling(low=low, high=high, rounds=2), even)
    with pytest.raises(ValueError, match="kept no group"):
        run(DynamicSampling(spread=True, rounds=2), even)


def test_values_that_are_not_available_are_left_out_of_the_mean():
    known = lambda n, g: 0.5 if g == 3 else None  # noqa: E731
    assert len(run(DynamicSampling(), known)[0]) == 12
    with pytest.raises(ValueError, match="kept no group"):
        run(DynamicSampling(rounds=1), lambda n, g: None)


def test_after_the_last_round_the_step_goes_on_with_what_there_is():
    rollouts, supply, engine = run(DynamicSampling(rounds=2))
    assert [r.prompt.id for r in rollouts[::4]] == ["2", "5"] and len(engine.asked) == 2
    assert supply.counters["rollout/rounds"] == 2


def test_an_unknown_part_and_no_rounds_are_explained():
    with pytest.raises(ValueError, match=r"part is 'acc'.*\['accuracy', 'format'\].*'total'"):
        run(DynamicSampling("acc"))
    with pytest.raises(ValueError, match="rounds is -1"):
        DynamicSampling(rounds=-1)
    with pytest.raises(ValueError, match="at_once is -1"):
        DynamicSampling(at_once=-1)


def test_a_round_may_take_other_numbers_of_prompts_than_a_step():
    """PAPO samples 128 prompts a round until 384 groups are kept."""
    rollouts, supply, engine = run(DynamicSampling(at_once=2))
    assert [len(asked) for asked in engine.asked] == [2, 2, 2, 2, 2]
    assert [int(r.prompt.id) for r in rollouts[::4]] == [2, 5, 8]
    assert supply.counters["rollout/rounds"] == 5


def test_unlimited_rounds_go_on_until_the_step_is_full_or_the_data_held_nothing():
    """One prompt in seven carries signal: three groups take 21 prompts, which 20 rounds of one would not reach."""
    rare = lambda n, g: float(g % 2) if n % 7 == 6 else 0.0  # noqa: E731
    rollouts, supply, _ = run(DynamicSampling(rounds=0, at_once=1), rare)
    assert [int(r.prompt.id) for r in rollouts[::4]] == [6, 13, 20]
    assert supply.counters["rollout/rounds"] == 21
    with pytest.raises(ValueError, match="kept no group in"):
        run(DynamicSampling(rounds=0), lambda n, g: 0.0)


def test_dynamic_sampling_with_the_real_engine(tiny_folder):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32")

    def pay(rollouts):
        return [
            replace(r, reward=float(v), parts={"accuracy": float(v)})
            for r in rollouts
            for v in [r.tokens[0].item() % 2]
        ]

    supply = Supply(Drawn("lookup", size=40), 2, seed=0, check=policy.encode)
    rollouts = DynamicSampling()(HFEngine(policy), pay, supply, Sampling(3, max_tokens=3), NOW)
    groups = by_group(rollouts)
    assert len(groups) == 2 and [len(g) for g in groups] == [3, 3]
    assert all(0 < sum(r.reward for r in g) < 3 for g in groups)


def test_labels_as_answers(tiny_folder):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32")
    encode = policy.processing.encode_answer
    supply = Supply(Drawn("lookup", size=5), 2, seed=0)
    rollout = LabelRollout(encode, lambda p: policy.encode(p).ids)
    first, second = rollout(Parrot(), paid_by(mixed), supply, Sampling(4), NOW)
    assert (
        first.text == first.prompt.extra["target"]
        and first.tokens.tolist() == encode(first.text).tolist()
    )
    assert first.tokens[-1].item() in policy.processing.stop_ids
    assert first.roles.tolist() == [int(Role.POLICY)] * len(first.tokens)
    assert (first.group, second.group, first.reward, first.origin) == (0, 1, 1.0, "label")
    plain = replace(rollout, field="absent")(
        Parrot(), paid_by(mixed), supply, Sampling(4), NOW
    )[0]
    assert plain.text == plain.prompt.answer, (
        "without the field the reference answer itself is learned"
    )


def test_a_label_that_cannot_be_written_costs_its_row_only(tiny_folder):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32")
    drawn = Drawn("lookup", size=4)

    class Spoilt(Prompts):
        """Some labels hold what a label must not hold."""

        def __init__(self, bad, rows):
            self.bad, self.rows, self.size = bad, rows, drawn.size

        def __getitem__(self, index):
            prompt = drawn[index]
            return replace(prompt, extra={"target": self.bad}) if index in self.rows else prompt

    rollout = LabelRollout(policy.processing.encode_answer, lambda p: policy.encode(p).ids)
    for bad in ("a <|im_end|>", "half \ud83d"):
        supply = Supply(Spoilt(bad, (0, 2)), 4, seed=0)
        labels = rollout(Parrot(), paid_by(mixed), supply, Sampling(4), NOW)
        assert [label.group for label in labels] == [0, 1]
        assert supply.counters["label/unusable"] == 2
        supply = Supply(Spoilt(bad, range(4)), 4, seed=0)
        with pytest.raises(BadRow, match="No label of 20 steps"):
            rollout(Parrot(), paid_by(mixed), supply, Sampling(4), NOW)


def test_grouping_and_numbering():
    rollouts = Parrot().generate([Prompt("4", []), Prompt("9", [])], Sampling(2), NOW)
    groups = by_group([rollouts[2], rollouts[0], rollouts[3], rollouts[1]])
    assert [[r.prompt.id for r in g] for g in groups] == [["9", "9"], ["4", "4"]]
    assert [r.group for r in renumbered(groups)] == [0, 0, 1, 1]


def test_the_first_pass_answers_every_usable_prompt_once(tiny_folder):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32")
    told = {}

    def pay(rs):
        return [replace(r, reward=0.5, parts={"accuracy": float(r.tokens[0] % 2)}) for r in rs]

    supply = Supply(Drawn("lookup", size=7), 2, seed=0)
    rule = FirstPass(told.update, policy, at_once=3)
    sampling = Sampling(2, max_tokens=1)
    first = rule(HFEngine(policy), pay, supply, sampling, NOW)
    assert sorted(told) == sorted(Drawn("lookup")[i].id for i in range(7)) and set(
        told.values()
    ) <= {0.0, 0.5, 1.0}
    assert (
        supply.counters["rollout/first_pass"] == 7 and supply.position == 2 and len(first) == 4
    )
    told.clear()
    rule(HFEngine(policy), pay, supply, sampling, replace(NOW, step=2))
    assert not told, "only before the first step"
    total = FirstPass(told.update, policy, part="total").rates(
        HFEngine(policy), pay, supply, sampling, NOW
    )
    assert set(total.values()) == {0.5}
    with pytest.raises(ValueError, match=r"endless; set data\.limit"):
        rule(HFEngine(policy), pay, Supply(Drawn("lookup"), 2, seed=0), sampling, NOW)


def test_a_chain_of_rollout_functions():
    inner = DynamicSampling()
    outer = FirstPass(print, None, inner=inner)
    assert chain(outer) == [outer, inner]
    (plain,) = chain(group_rollout)  # a plain function brings nothing
    assert (
        plain == PlainRollout(group_rollout)
        and plain.brings() == ()
        and not plain.sampled_under()
    )


DRAWS = {
    "full": (4, 20, 3),
    "ends after its rounds": (5, 2, 4),
    "as many as it takes": (3, 0, 7),
    "one group": (4, 3, 10**6),
}
"""Prompts per step, rounds, and one prompt of how many is kept."""


def sampled_dynamically():
    """Of each draw: (prompts of the kept groups, counters, position) of this rank. One start, which is what costs."""
    ranks, found = Ranks.start("cpu"), {}
    for name, (per_step, rounds, keep) in DRAWS.items():
        supply = Supply(Rows(None), per_step, seed=0, ranks=ranks)
        pay = paid_by(lambda n, g, keep=keep: float(n % keep == 0 and g == 0))
        out = DynamicSampling(rounds=rounds)(Parrot(), pay, supply, Sampling(group_size=4), NOW)
        kept = [int(group[0].prompt.id) for group in by_group(out)]
        found[name] = kept, dict(supply.counters), supply.position
    ranks.end()
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_dynamic_sampling_keeps_the_same_groups_on_several_ranks(world):
    found = values(several(world, sampled_dynamically))
    for draw, (kept, counted, position) in sampled_dynamically().items():
        of_each = [rank[draw] for rank in found]
        assert sorted(prompt for mine, _, _ in of_each for prompt in mine) == kept, draw
        assert all(place == position for _, _, place in of_each), draw
        for name, count in counted.items():
            assert sum(theirs.get(name, 0) for _, theirs, _ in of_each) == count, (draw, name)


def first_rates():
    ranks = Ranks.start("cpu")
    supply = Supply(Rows(7), 4, seed=0, ranks=ranks)

    class Vision:
        def no_update(self):
            import contextlib

            return contextlib.nullcontext()

    class Model:
        vision = Vision()

        def encode(self, prompt):
            pass

    pay = paid_by(lambda n, g: float(n % 2 == g))
    found = {}
    first = FirstPass(found.update, Model(), at_once=3)
    first(Parrot(), pay, supply, Sampling(group_size=4), NOW)
    ranks.end()
    return found


def test_the_first_pass_knows_the_rates_of_all_ranks():
    alone = first_rates()
    assert len(alone) == 7
    assert values(several(2, first_rates)) == [alone, alone]


# ---- over-sampling by past losses


def dealt(keep, per_step, steps=6, rows=None, **settings):
    """Sizes of the rounds of each step, and what was asked; `keep` says of which prompts the answers differ."""
    engine, rule = Parrot(), DynamicSampling(spread=True, rounds=9, adaptive=True, **settings)
    supply = Supply(rows or Rows(), per_step, seed=0)

    def pay(rollouts):
        return [
            replace(r, reward=0.0, parts={"accuracy": float(n % 2 and keep(int(r.text)))})
            for n, r in enumerate(rollouts)
        ]

    sizes, groups = [], []
    for step in range(1, steps + 1):
        begun = len(engine.asked)
        found = rule(engine, pay, supply, Sampling(2), replace(NOW, step=step))
        sizes.append([len(round_) for round_ in engine.asked[begun:]])
        groups.append(len({r.group for r in found}))
    return sizes, groups, engine.asked, supply


@pytest.mark.parametrize("every", [1, 2, 4, 5])
def test_rounds_become_as_large_as_the_share_that_is_kept_wants(every):
    """A steady share: the first step finds it out, later ones ask for N / share at once; no prompt comes twice."""
    sizes, groups, asked, _ = dealt(lambda n: n % every == 0, 8)
    assert groups == [8] * 6 and sizes[0][0] == 8
    assert all(len(step) <= 2 for step in sizes[2:])
    assert abs(sizes[-1][0] - 8 * every) <= every
    seen = [n for round_ in asked for n in round_]
    assert len(seen) == len(set(seen))
    if every == 1:
        assert sizes == [[8]] * 6, "nothing is dropped, so nothing more is asked for"


def test_a_round_that_keeps_nothing_asks_for_no_more_than_the_floor_allows():
    sizes, _, _, _ = dealt(lambda n: n >= 4, 4, steps=1)
    assert sizes[0][:2] == [4, 40]
    sizes, _, _, _ = dealt(lambda n: n >= 4, 4, steps=1, least_share=0.5)
    assert sizes[0][:2] == [4, 8]
    sizes, _, _, _ = dealt(lambda n: n >= 4, 4, steps=1, at_once=6)
    assert sizes[0][:2] == [4, 6]


def test_shares_only_fall_and_outlive_a_checkpoint():
    shares = KeptShares()
    assert (shares.asks(8, 0.1), KeptShares(0.3).asks(3, 0.1)) == (8, 10)
    shares.after_round(2, 8)
    assert (shares.asks(6, 0.1), shares.asks(6, 0.5)) == (24, 12)
    shares.after_round(20, 24)
    assert shares.of_rounds == 0.25, "a good round does not raise it"
    shares.after_step(22, 32)
    again = KeptShares()
    again.load(shares.state())
    assert again == shares == KeptShares(22 / 32)
    again.after_step(32, 32)
    assert again.of_steps == 22 / 32


def test_without_it_rounds_are_what_they_were_and_nothing_is_remembered():
    assert DynamicSampling().start_memory() is None
    # Runs from before these settings go on.
    assert not {"adaptive", "least_share"} & describe(DynamicSampling()).keys()
    assert describe(DynamicSampling(adaptive=True))["adaptive"] is True
    with pytest.raises(ValueError, match="least_share is 0"):
        DynamicSampling(least_share=0)
