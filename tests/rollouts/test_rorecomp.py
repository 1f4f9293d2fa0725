"""RoRecomp: what is trained at once, what is put by, that it comes back with its old advantages, and resume."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrl.data.drawn.drawn import Drawn
from mmrl.ground.seeds import philox
from mmrl.grpo import GRPO
from mmrl.losses.advantages import group_normalized
from mmrl.model.packing import collate
from mmrl.model.policy import Policy
from mmrl.objectives.nsr import NSR
from mmrl.rewards.pay import Rewards, in_process
from mmrl.rollouts.engine import HFEngine
from mmrl.rollouts.groups import group_rollout
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.rorecomp import PutBy, RoRecomp, RoRecompRollout, priority
from mmrl.training.compatibility import check_setup
from mmrl.training.run import Run
from mmrl.training.trainer import Trainer
from mmrl.types import Now, Prompt, Prompts, Rollout, Sampling

EIGHT = Sampling(8, max_tokens=9)
ALWAYS = RoRecomp(compensate=1.0)


class Rows(Prompts):
    size = 6

    def __getitem__(self, index):
        return Prompt(f"q{index}", [{"role": "user", "content": str(index)}])


class Engine:
    """Answers of different lengths with random verdicts in their text."""

    def generate(self, prompts, sampling, now, **_):
        found = []
        for group, prompt in enumerate(prompts):
            coin = philox("answers", now.step, prompt.id)
            for n in range(sampling.group_size):
                length = int(coin.integers(1, 9))
                found.append(
                    Rollout(prompt, group, torch.tensor([5]), torch.arange(length) + 10 * n,
                            torch.zeros(length, dtype=torch.uint8), "yn"[int(coin.integers(2))],
                            "length" if length == 8 else "eos", -torch.rand(length))
                )  # fmt: skip
        return found


def pay(rollouts):
    return [
        replace(r, reward=float(r.text == "y") + len(r.tokens) / 100, correct=r.text == "y")
        for r in rollouts
    ]


def run_steps(settings, steps, supply=None):
    """The rollouts of each step, and the supply."""
    rollout = RoRecompRollout(lambda prompt: torch.tensor([5]), settings)
    supply = supply or Supply(Rows(), 2, seed=1)
    found = []
    for step in steps:
        supply.new_step()
        found.append(rollout(Engine(), pay, supply, EIGHT, Now(step, 0.0, seed=2)))
    return found, supply, rollout


def trained(rollout):
    return len(rollout.roles) > 0 and bool((rollout.roles == 0).all())


@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.booleans(), st.booleans()), min_size=1, max_size=12
    ),
    st.floats(0.05, 0.99),
)
def test_short_right_and_long_wrong_ones_come_first(answers, kept):
    lengths, correct, ends = map(list, zip(*answers, strict=True))
    first = priority(lengths, correct, ends, RoRecomp(kept=kept))
    for side, sign in ((True, 1), (False, -1)):
        rows = [row for row, right in enumerate(correct) if right is side]
        chosen = [sign * lengths[row] for row in rows if first[row]]
        left = [sign * lengths[row] for row in rows if not first[row]]
        assert len(chosen) == math.ceil(kept * len(rows))
        assert not left or max(chosen) <= min(left)
    assert all(priority(lengths, correct, ends, RoRecomp(kept=1.0)))


def test_cut_off_answers_can_be_put_by_and_unjudged_ones_are_trained():
    ends = [True, False, True, False]
    verdicts = [False, False, True, None]
    assert priority([9, 3, 2, 5], verdicts, ends, RoRecomp()) == [True, False, True, True]
    rest = RoRecomp(cut_off="rest")
    assert priority([9, 3, 2, 5], verdicts, ends, rest) == [False, True, False, True]


def test_nothing_is_lost_or_trained_twice():
    """What a step puts by is trained by the next one, and by no other."""
    (first, second), _, _ = run_steps(ALWAYS, (1, 2))
    put_by = [tuple(r.tokens.tolist()) for r in first if not trained(r)]
    again = [tuple(r.tokens.tolist()) for r in second if r.origin == "kept" and len(r.tokens)]
    assert 0 < len(put_by) < len(first) and again == put_by
    assert all(trained(r) for r in second if r.origin == "kept" and len(r.tokens))
    assert [r.prompt.id for r in second if r.origin == "kept"] == [r.prompt.id for r in first]


def test_answers_come_back_with_the_advantages_of_their_own_group():
    (first, second), _, _ = run_steps(ALWAYS, (1, 2))
    old = [r for r in second if r.origin == "kept"]
    advantages = []
    for rollouts in (first, old):
        batch = collate(rollouts)
        advantages.append(group_normalized(batch.reward, batch.group, batch.mask))
    assert torch.equal(advantages[0], advantages[1])
    for ours, theirs in zip(old, first, strict=True):
        if len(ours.tokens):
            assert torch.equal(ours.logp, theirs.logp) and ours.stop == theirs.stop


def test_keeping_all_is_plain_sampling_to_the_bit():
    (first, second), supply, rollout = run_steps(RoRecomp(kept=1.0, compensate=1.0), (1, 2))
    plain = Supply(Rows(), 2, seed=1)
    for step, found in ((1, first), (2, second)):
        plain.new_step()
        torch.manual_seed(0)
        expected = group_rollout(Engine(), pay, plain, EIGHT, Now(step, 0.0, seed=2))
        assert [r.tokens.tolist() for r in found] == [r.tokens.tolist() for r in expected]
        assert all(trained(r) for r in found)
    assert rollout.start_memory() is None and not rollout.brings() and not supply.counters


def test_old_answers_are_forgotten_and_none_are_trained_at_the_end():
    never = RoRecomp(compensate=0.0, age=2)
    _, supply, rollout = run_steps(never, (1, 2, 3, 4))
    memory = supply.memory(rollout)
    assert {one.step for one in memory.groups} == {3, 4}
    assert supply.counters["rorecomp/out_of_date"] == 4
    assert ALWAYS.probability(Now(9, 1.0)) == 0.0 and ALWAYS.probability(Now(1, 0.0)) == 1.0
    assert RoRecomp().probability(Now(1, 0.5)) == pytest.approx(0.25)


def test_a_memory_that_was_saved_goes_on_alike():
    _, supply, rollout = run_steps(RoRecomp(compensate=0.0), (1, 2))
    memory = supply.memory(rollout)
    saved = json.loads(json.dumps({"memory": memory.state(), "supply": supply.state()}))
    read = PutBy()
    read.load(saved["memory"])
    assert read.groups == memory.groups and read.groups


def check(objective):
    rollout = RoRecompRollout(lambda prompt: torch.tensor([5]))
    rewards = Rewards(accuracy=by_text, correct="accuracy")
    check_setup(
        [objective], {}, rollout, group_normalized, GRPO(), Engine(), Rows(), rewards=rewards
    )


def test_selecting_twice_by_right_and_wrong_is_refused():
    with pytest.raises(ValueError, match="hardly any would be left"):
        check(NSR(positive=0.0))
    check(NSR(positive=0.1))


@in_process
def by_text(answer):
    return float(philox("coin", answer.text).random() < 0.5)


def test_a_trainer_learns_from_both_kinds(tiny_folder, tmp_path):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32")
    trainer = Trainer(
        policy, prompts=Drawn("lookup", size=8, size_px=32, cells=2),
        rewards=Rewards(accuracy=by_text, correct="accuracy"),
        rollout=RoRecompRollout(lambda prompt: policy.encode(prompt).ids, ALWAYS),
        engine=HFEngine(policy), grpo=GRPO(mismatch="truncate"), sampling=Sampling(4, max_tokens=4),
        run=Run(output=tmp_path, steps=4, prompts_per_step=2, save_every=0),
    )  # fmt: skip
    metrics = [trainer.step(Now(step, 0.0, 0)) for step in (1, 2)]
    assert metrics[0]["rorecomp/put_by"] > 0 and "kept/count" not in metrics[0]
    assert metrics[1]["rorecomp/replayed_groups"] == 2 and metrics[1]["kept/count"] == 8
    assert metrics[1]["answer/count"] == 8 and metrics[1]["optim/grad_norm"] > 0
