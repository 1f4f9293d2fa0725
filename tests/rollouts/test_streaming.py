"""Groups whose answers are done are scored while others are still drawn, and nothing else changes."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.grpo import GRPO
from mmrl.model.policy import Policy
from mmrl.rewards.pay import Rewards, batch, in_process
from mmrl.rollouts import vllm_client
from mmrl.rollouts.engine import HFEngine
from mmrl.rollouts.groups import DynamicSampling, group_rollout
from mmrl.rollouts.request import asked_of
from mmrl.rollouts.stages import OneStep, Stages
from mmrl.rollouts.streaming import paid_answers, tells_of_groups
from mmrl.rollouts.vllm_client import RemoteVLLM, ServerGone
from mmrl.rollouts.vllm_engine import VLLMEngine
from mmrl.rollouts.vllm_serve import Gone
from mmrl.training.optim import Optim
from mmrl.training.paying import Payer
from mmrl.training.run import Run
from mmrl.training.tracking import read_metrics
from mmrl.training.trainer import Trainer
from mmrl.types import Now, Sampling
from tests.rollouts.made_up_vllm import MadeUp, loopback

NOW = Now(1, 0.5, 3)
SAMPLING = Sampling(2, max_tokens=6)
JUDGED = []
"""Answers that the judge was asked about."""


def number(text):
    return float(sum(map(ord, text)) % 7) / 7


def in_a_worker(rollout):
    return number(rollout.text)


async def judge(rollout):
    JUDGED.append(rollout.text)
    await asyncio.sleep(0)
    return number(rollout.text)


@batch
def share(rollouts):
    """Of the longest answer of the batch: another value if the batch is another one."""
    sizes = [len(rollout.text) for rollout in rollouts]
    return [size / max(*sizes, 1) for size in sizes]


SEEN = []
"""Answers in the order in which the part that runs here was asked."""


@in_process
def here(rollout):
    SEEN.append(rollout.tokens.tolist())
    return number(rollout.text)


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return Policy.load(tiny_folder, device="cpu", dtype="float32")


def prompts(count=4):
    drawn = Drawn("lookup", size=count)
    return [drawn[n] for n in range(count)]


def told(rollouts):
    return [(r.group, r.tokens.tolist(), r.logp.tolist(), r.stop) for r in rollouts]


class InTurn(MadeUp):
    """A made-up vLLM that has the last question's reply first."""

    def answer_in_turn(self, questions, version, tell):
        replies = self.answer(questions, version)
        for place in reversed(range(len(replies))):
            tell(place, replies[place])
        return replies


@pytest.fixture(scope="module")
def server(policy):
    """Its address, and what happens to the next requests there."""
    with loopback(InTurn(policy)) as found:
        yield found


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(vllm_client, "PAUSES", (0.01,))


def engines(policy, server):
    return {
        "here": HFEngine(policy, rows_at_once=2),
        "vllm": VLLMEngine(policy, InTurn(policy)),
        "server": VLLMEngine(policy, RemoteVLLM(server[0])),
    }


@pytest.mark.parametrize("which", ["here", "vllm", "server"])
def test_groups_are_told_once_whole_and_as_they_are_returned(policy, server, which):
    asked, engine = prompts(), engines(policy, server)[which]
    plain = engine.generate(asked, SAMPLING, NOW)
    groups = []
    found = engine.generate(asked, SAMPLING, NOW, done=groups.append)
    assert told(found) == told(plain)
    numbers = [group[0].group for group in groups]
    assert sorted(numbers) == [0, 1, 2, 3]
    for group in groups:
        same = [r for r in found if r.group == group[0].group]
        assert all(a is b for a, b in zip(group, same, strict=True))
    if which != "here":
        assert numbers == [3, 2, 1, 0], "as its replies come"


def test_the_engine_here_tells_while_it_still_draws(policy):
    """With two rows for eight answers most groups have ended before the last one begins."""
    engine, steps = HFEngine(policy, rows_at_once=2), []
    before = policy.counters["tokens/decode"]
    engine.generate(
        prompts(),
        SAMPLING,
        NOW,
        done=lambda group: steps.append(policy.counters["tokens/decode"] - before),
    )
    assert len(steps) == 4 and steps == sorted(set(steps)), "not all at the end"


def test_old_weights_and_wrong_replies_are_refused_all_the_same(policy):
    made_up = InTurn(policy)
    made_up.faults = ["old weights"]
    with pytest.raises(RuntimeError, match="from the weights 'older'"):
        VLLMEngine(policy, made_up).generate(prompts(), SAMPLING, NOW, done=lambda group: None)
    counting = VLLMEngine(policy, made_up, stale="count")
    made_up.faults = ["old weights"]
    before = policy.counters["rollout/stale"]
    counting.generate(prompts(), SAMPLING, NOW, done=lambda group: None)
    assert policy.counters["rollout/stale"] - before == 8, "each once"


class Patient(InTurn):
    """Goes on only when the first group has been told; `broken`: whoever listened has gone away."""

    def __init__(self, policy):
        super().__init__(policy)
        self.heard, self.broken = threading.Event(), threading.Event()

    def answer_in_turn(self, questions, version, tell):
        def waiting(place, reply):
            if place == len(questions) - 2:
                assert self.heard.wait(30), (
                    "the trainer heard of no group while others were drawn"
                )
            tell(place, reply)

        try:
            return super().answer_in_turn(questions, version, waiting)
        except Gone:
            self.broken.set()
            raise


def test_a_server_is_heard_while_it_still_draws(policy):
    made_up = Patient(policy)
    with loopback(made_up) as (url, _):
        engine = VLLMEngine(policy, RemoteVLLM(url))
        found = engine.generate(
            prompts(), SAMPLING, NOW, done=lambda group: made_up.heard.set()
        )
    plain = VLLMEngine(policy, MadeUp(policy)).generate(prompts(), SAMPLING, NOW)
    assert told(found) == told(plain) and len(made_up.asked) == 1


def test_a_trainer_that_goes_away_ends_what_the_server_draws(policy):
    made_up = Patient(policy)

    def leave(group):
        raise MemoryError("no room")

    with loopback(made_up) as (url, _):
        engine = VLLMEngine(policy, RemoteVLLM(url))
        # The first lines into nowhere may still be taken; these are many.
        many = [drawn for _ in range(16) for drawn in prompts()]
        with pytest.raises(MemoryError):
            engine.generate(many, SAMPLING, NOW, done=leave)
        made_up.heard.set()
        assert made_up.broken.wait(30)
        # And it serves whoever comes next.
        assert len(engine.generate(prompts(), SAMPLING, NOW)) == 8


BREAKS = ["cut 0", "cut 1", "cut 3", "cut 4", "killed 1", "killed 4"]


@pytest.mark.parametrize("breaks", [*([one] for one in BREAKS), ["cut 2", "killed 3", "cut 1"]])
def test_replies_that_break_off_are_paid_once_and_change_nothing(policy, breaks):
    """After 0 to all 4 replies, by a connection that is lost or a server that is started again."""
    made_up = InTurn(policy)
    pays = {}
    for broken in (False, True):
        JUDGED.clear(), SEEN.clear()
        with loopback(made_up) as (url, faults), Rewards(workers=1, **PARTS) as rewards:
            engine = VLLMEngine(policy, RemoteVLLM(url))
            engine.bring()
            faults["/answer"] = list(breaks) if broken else []
            found = paid_answers(engine, payer(rewards), prompts(), SAMPLING, NOW)
            assert not faults["/answer"] and len(JUDGED) == len(SEEN) == 8
            pays[broken] = told(found), [(r.reward, r.parts) for r in found], list(SEEN)
    assert pays[True] == pays[False]


class Breaks(InTurn):
    """Says one reply and fails, so many times."""

    times = 0

    def answer_in_turn(self, questions, version, tell):
        if self.times:
            self.times -= 1
            super().answer_in_turn(questions[-1:], version, lambda _, r: tell(3, r))
            raise RuntimeError("\x1b[31mout of memory")
        return super().answer_in_turn(questions, version, tell)


def test_a_server_that_fails_in_the_middle_is_asked_again_and_then_named(policy):
    made_up, groups = Breaks(policy), []
    with loopback(made_up) as (url, _):
        engine = VLLMEngine(policy, RemoteVLLM(url, patience=0.3))
        made_up.times = 2
        found = engine.generate(prompts(), SAMPLING, NOW, done=groups.append)
        assert len(found) == 8 and [g[0].group for g in groups] == [3, 2, 1, 0]
        # One reply again and again is no progress.
        made_up.times = 10**6
        with pytest.raises(
            ServerGone, match=r"/answer .*500.*RuntimeError.*out of memory"
        ) as no:
            engine.generate(prompts(), SAMPLING, NOW, done=groups.append)
        assert "\x1b" not in str(no.value) and len(groups) == 5


PARTS = {"worker": in_a_worker, "judge": judge, "share": share, "here": here}


class Untold:
    """An engine that tells nothing."""

    def __init__(self, engine):
        self.engine = engine

    def generate(self, prompts, sampling, now):
        return self.engine.generate(prompts, sampling, now)

    def sync(self, policy):
        self.engine.sync(policy)


def payer(rewards):
    return Payer(rewards, GRPO(), 6, False, rewards._counts)


@pytest.mark.parametrize("which", ["here", "vllm", "server"])
def test_streamed_pay_is_the_same_and_each_part_is_asked_once(policy, server, which):
    asked, engine = prompts(), engines(policy, server)[which]
    assert tells_of_groups(engine) and not tells_of_groups(Untold(engine))
    paid = {}
    for streamed in (False, True):
        JUDGED.clear(), SEEN.clear()
        with Rewards(workers=1, **PARTS) as rewards:
            one = engine if streamed else Untold(engine)
            found = paid_answers(one, payer(rewards), asked, SAMPLING, NOW)
            paid[streamed] = [(r.reward, r.parts) for r in found], list(SEEN), sorted(JUDGED)
            assert len(JUDGED) == len(SEEN) == 8
            metrics = rewards.metrics()
            assert ("time/reward_streamed" in metrics) <= streamed
            assert not rewards._begun._calls
    assert paid[True] == paid[False]


def test_what_was_begun_is_over_before_the_last_answer(policy):
    """The judge is asked about the first group while another is still drawn, and its time is told."""
    asked, first = threading.Event(), []

    async def slow(text):
        asked.set()
        return 1.0

    def begin(group):
        rewards.begin(group)
        first.append(asked.wait(30))

    with Rewards(judge=slow) as rewards:
        engine = HFEngine(policy, rows_at_once=2)
        rollouts = engine.generate(prompts(), SAMPLING, NOW, done=begin)
        assert first == [True] * 4, "answered while the engine waited for the next group"
        assert len(rewards(rollouts)) == 8
        assert rewards.metrics()["time/reward_streamed"] >= 0


def test_an_error_of_the_engine_leaves_nothing_behind(policy):
    class Breaks(HFEngine):
        def stream(self, requests, tell):
            super().stream(requests[:1], tell)
            raise MemoryError("no room")

    with Rewards(workers=1, **PARTS) as rewards:
        pay = payer(rewards)
        with pytest.raises(MemoryError, match="no room"):
            paid_answers(Breaks(policy), pay, prompts(), SAMPLING, NOW)
        assert not rewards._begun._calls
        # The workers serve whoever comes next.
        assert len(group_paid(policy, pay)) == 8


def group_paid(policy, pay):
    return paid_answers(HFEngine(policy), pay, prompts(), SAMPLING, NOW)


def test_stages_are_streamed_and_answers_of_other_numbers_are_not_confused(policy):
    with Rewards(workers=1, judge=judge) as rewards:
        pay = payer(rewards)
        stages = Stages(OneStep(HFEngine(policy)), pay, SAMPLING, NOW, policy.counters)
        JUDGED.clear()
        first, second = stages(prompts()), stages(prompts(), [1, 0, 2, 1])
    assert [len(group) for group in first] == [2] * 4
    assert [len(group) for group in second] == [1, 0, 2, 1] and len(JUDGED) == 12
    assert first[0][0].tokens.tolist() != second[0][0].tokens.tolist()


def trained(folder, output, rollout, engine_of):
    policy = Policy.load(folder, device="cpu", dtype="float32")
    run = Run(output=output, steps=2, prompts_per_step=4, save_every=0, eval_prompts=0)
    Trainer(
        policy,
        prompts=Drawn("lookup", size=40),
        rewards=Rewards(workers=1, **PARTS),
        engine=engine_of(policy),
        sampling=SAMPLING,
        rollout=rollout,
        optim=Optim(lr=1e-3),
        run=run,
    ).fit()
    rows = [
        {k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))}
        for row in read_metrics(output)
    ]
    return rows, [p.detach().clone() for p in policy.parameters()]


@pytest.mark.parametrize("rollout", [group_rollout, DynamicSampling("total", -1, 2.1)])
def test_a_streamed_run_is_bit_for_bit_the_run_that_waits(tiny_folder, tmp_path, rollout):
    few = {"rows_at_once": 3}
    streamed = trained(tiny_folder, tmp_path / "a", rollout, lambda p: HFEngine(p, **few))
    waiting = trained(
        tiny_folder, tmp_path / "b", rollout, lambda p: Untold(HFEngine(p, **few))
    )
    assert streamed[0] == waiting[0]
    for found, right in zip(streamed[1], waiting[1], strict=True):
        assert torch.equal(found, right)


@pytest.mark.parametrize("which", ["vllm", "server"])
def test_requests_of_no_answers_are_not_waited_for(policy, server, which):
    engine = engines(policy, server)[which]
    full = torch.arange(6) + 7  # a start that leaves no room is not asked at all
    groups = []
    found = engine.generate(prompts(1), SAMPLING, NOW, prefixes=[full], done=groups.append)
    assert [r.tokens.tolist() for r in found] == [full.tolist()] * 2 and not groups
    assert asked_of(policy, [], SAMPLING, NOW) == []
