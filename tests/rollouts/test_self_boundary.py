"""SELF: who is left out, what is trained, a step without anything left, and that without a probe it is GRPO."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.ground.seeds import philox
from mmrl.grpo import GRPO
from mmrl.losses.advantages import group_normalized
from mmrl.model.packing import collate
from mmrl.model.policy import Policy
from mmrl.model.ranks import Ranks
from mmrl.rewards.pay import Rewards, in_process
from mmrl.rollouts.dars import DARSRollout
from mmrl.rollouts.ghpo import GHPORollout
from mmrl.rollouts.groups import DynamicSampling, group_rollout
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.self_boundary import SELF, SELFRollout
from mmrl.rollouts.stages import OneStep
from mmrl.training.compatibility import check_setup
from mmrl.training.run import Run
from mmrl.training.trainer import Trainer
from mmrl.types import Now, Prompt, Prompts, Role, Rollout, Sampling
from tests.several import several, values

NOW, FOUR = Now(1, 0.1, seed=3), Sampling(4, 1.0, top_p=0.9, top_k=5, min_p=0.1, max_tokens=6)


class Rows(Prompts):
    """Prompt "1" is solved greedily, "0" is not, "?" could not be judged."""

    def __init__(self, *ids):
        self.ids, self.size = ids, len(ids)

    def __getitem__(self, index):
        return Prompt(self.ids[index], [{"role": "user", "content": self.ids[index]}])


class Engine:
    """Remembers what it was asked; a sampled answer says a number of its prompt."""

    def __init__(self):
        self.calls = []

    def generate(self, prompts, sampling, now, **_):
        self.calls.append(([p.id for p in prompts], sampling))
        return [
            Rollout(p, i, torch.tensor([5]), torch.tensor([7, 9]), torch.zeros(2, dtype=torch.uint8),
                    "greedy" if sampling.temperature == 0 else str(n), "eos",
                    temperature=sampling.temperature)
            for i, p in enumerate(prompts)
            for n in range(sampling.group_size)
        ]  # fmt: skip


def pay(rollouts):
    """Greedy answers by the name of their prompt; of sampled ones every other is right."""
    paid = []
    for one in rollouts:
        right = {"1": True, "0": False, "?": None}[one.prompt.id[0]]
        right = right if one.text == "greedy" else int(one.text) % 2 == 0
        paid.append(
            replace(one, reward=float(right or 0), correct=right, parts={"accuracy": right})
        )
    return paid


def step(rule, *ids, per_step=None, ranks=None):
    rows, engine = Rows(*ids), Engine()
    supply = Supply(rows, per_step or rows.size, seed=0, ranks=ranks)
    order = [supply.prompts[supply._index(n)].id for n in range(rows.size)]
    return rule(OneStep(engine), pay, supply, FOUR, NOW), supply.counters, engine.calls, order


def test_prompts_whose_greedy_answer_is_right_are_left_out_and_the_order_stays():
    found, counters, calls, order = step(SELFRollout(), "1a", "0a", "?", "1b", "0b")
    left = [name for name in order if name[0] != "1"]
    assert [asked for asked, _ in calls] == [order, left]
    assert [one.prompt.id for one in found[::4]] == left and len(found) == 12
    assert [one.group for one in found] == sorted(one.group for one in found)
    assert all(one.text != "greedy" and (one.roles == Role.POLICY).all() for one in found)
    assert counters["self_boundary/solved"] == 2 and not counters["self_boundary/skipped_steps"]


def test_the_probe_is_greedy_and_the_answers_are_sampled_as_ever():
    _, _, ((_, probe), (_, sampled)), _ = step(SELFRollout(), "0a", "0b")
    assert (probe.group_size, probe.temperature) == (1, 0.0) and sampled == FOUR
    assert (probe.top_p, probe.top_k, probe.min_p, probe.max_tokens) == (1.0, 0, 0.0, 6)


def test_a_step_that_is_solved_trains_nothing_and_shows_its_greedy_answers():
    found, counters, calls, order = step(SELFRollout(), "1a", "1b", "1c")
    assert len(calls) == 1 and [one.prompt.id for one in found] == order
    assert [one.group for one in found] == [0, 1, 2]
    assert all(one.text == "greedy" and one.temperature == 1.0 for one in found)
    assert not collate(found).mask.any() and counters["self_boundary/skipped_steps"] == 1


def test_without_a_probe_it_is_the_plain_rollout():
    found, _, calls, _ = step(SELFRollout(boundary=SELF(probe=False)), "1a", "0a")
    plain, _, asked, _ = step(group_rollout, "1a", "0a")
    assert calls == asked
    assert [(r.group, r.text, r.reward) for r in found] == [
        (r.group, r.text, r.reward) for r in plain
    ]


def test_under_dynamic_sampling_solved_prompts_are_replaced_by_others():
    rule = SELFRollout(DynamicSampling(spread=True, rounds=4))
    found, counters, _, _ = step(rule, "1a", "1b", "0a", "1c", "0b", "0c", per_step=2)
    assert len(found) == 8 and all(one.prompt.id[0] == "0" for one in found)
    assert (
        len({one.group for one in found}) == 2 and not counters["self_boundary/skipped_steps"]
    )


@pytest.mark.parametrize("other", [DARSRollout, GHPORollout])
def test_two_parts_with_stages_of_their_own_are_refused_with_both_names(other):
    for outer, inner in ((SELFRollout, other), (other, SELFRollout)):
        said = rf"{outer.__name__} and {inner.__name__} cannot be used together"
        with pytest.raises(ValueError, match=said):
            outer(inner=inner())


def check(rewards):
    prompts = Drawn("lookup", size=4)
    parts = SELFRollout(), group_normalized, GRPO(), OneStep(Engine())
    check_setup([], {}, *parts, prompts, rewards=rewards)


@in_process
def half(answer):
    return 0.5


def test_rewards_that_do_not_say_who_is_right_are_refused():
    with pytest.raises(ValueError, match=r"SELFRollout reads whether an answer is right"):
        check(Rewards(half=half))
    check(Rewards(half=half, correct=("half", 0.4)))


def split():
    ranks = Ranks.start("cpu")
    found = [step(SELFRollout(), *ids, ranks=ranks)[0] for ids in (("1a", "0a"), ("1a", "1b"))]
    ranks.end()
    return [[(r.prompt.id, bool((r.roles == Role.POLICY).all())) for r in one] for one in found]


def test_a_rank_with_nothing_left_waits_for_the_others_and_all_skip_together():
    told = values(several(2, split))
    mixed, solved = ([mine[n] for mine in told] for n in (0, 1))
    assert sorted(len(one) for one in mixed) == [0, 4]
    assert all(trained for one in mixed for _, trained in one)
    assert [len(one) for one in solved] == [1, 1]
    assert not any(trained for one in solved for _, trained in one)


@in_process
def never(answer):
    return 0.0


@in_process
def always(answer):
    return 1.0


@in_process
def by_text(answer):
    return float(philox("coin", answer.text).random() < 0.5)


@pytest.mark.parametrize(("pays", "moves"), [(always, False), (by_text, True)])
def test_a_trainer_makes_no_update_where_everything_is_solved(
    tiny_folder, tmp_path, pays, moves
):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32")
    before = [p.detach().clone() for p in policy.parameters()]
    trainer = Trainer(
        policy, prompts=Drawn("lookup", size=8, size_px=32, cells=2),
        rewards=Rewards(accuracy=pays, correct="accuracy"), rollout=SELFRollout(),
        sampling=Sampling(4, max_tokens=4),
        run=Run(output=tmp_path, steps=1, prompts_per_step=4, updates_per_step=2, save_every=0),
    )  # fmt: skip
    metrics = trainer.step(Now(1, 1.0, 0))
    same = all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    assert same is not moves
    assert (metrics.get("self_boundary/skipped_steps", 0) == 1) is not moves
    assert ("update/skipped" in metrics) is not moves and metrics["answer/count"] > 0
