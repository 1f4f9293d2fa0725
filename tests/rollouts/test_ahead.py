"""`--run.staleness 1`: the next step's answers are drawn while this step updates, a step older and never more."""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.grpo import GRPO
from mmrl.model.policy import Policy
from mmrl.rewards.pay import Rewards, in_process
from mmrl.rollouts import ahead
from mmrl.rollouts.ahead import AskedAhead, UnderWay, _Ahead, key_of
from mmrl.rollouts.ead import EADRollout
from mmrl.rollouts.engine import HFEngine
from mmrl.rollouts.groups import DynamicSampling, group_rollout
from mmrl.rollouts.request import asked_of
from mmrl.rollouts.streaming import paid_answers
from mmrl.rollouts.vllm_client import RemoteVLLM
from mmrl.rollouts.vllm_engine import VLLMEngine
from mmrl.training.checkpoint import plain
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.tracking import read_metrics
from mmrl.training.trainer import Trainer, TrainingError
from mmrl.types import Now, Sampling
from tests.rollouts.made_up_vllm import MadeUp, loopback

SAMPLING = Sampling(2, max_tokens=3)
BROKEN = []
"""Steps in which the reward fails, once each."""
STEPS = 4


class Slow(MadeUp):
    """Answers what was asked ahead only after the weights have moved: who waits for it before, waits for ever."""

    alone = True

    def answer_in_turn(self, questions, version, tell):
        # The first one comes at once, whoever still waits for the others.
        if self.early:
            tell(0, self._reply(questions[0], ""))
        return super().answer_in_turn(questions, version, tell)

    def answer(self, questions, version):
        self.asked_at = getattr(self, "asked_at", [])
        self.asked_at.append(self.policy.version)
        if self.ahead and len(self.asked_at) > 1:
            asked, end = self._number(), time.monotonic() + 600
            while self.policy.version == asked and not self.ended:
                assert time.monotonic() < end, "nobody updated while this was asked"
                time.sleep(0.002)
        return super().answer(questions, version)

    ahead, ended, early = True, False, False


@in_process
def pay(rollout):
    return float(int(rollout.tokens.sum()) % 7) / 7


def trainer(folder, output, make, staleness=1, **more):
    policy = Policy.load(folder, device="cpu", dtype="float32")
    made_up = make(policy)
    engine = VLLMEngine(policy, made_up)
    run = Run(
        output=output,
        steps=STEPS,
        prompts_per_step=2,
        save_every=1,
        eval_prompts=0,
        staleness=staleness,
    )
    given = {
        "prompts": Drawn("lookup", size=40),
        "rewards": Rewards(accuracy=pay),
        "sampling": SAMPLING,
        "optim": Optim(lr=1e-3),
        **more,
    }
    return Trainer(policy, engine=engine, run=run, **given), made_up


def seeds(made_up):
    return [sorted(q.params["seed"] for q in asked) for asked in made_up.asked]


def weights(run):
    return [p.detach().clone() for _, p in run.policy.named_parameters()]


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory):
    """A run that nobody stops."""
    output = tmp_path_factory.mktemp("whole")
    run, made_up = trainer(tiny_folder, output, Slow)
    run.fit()
    return run, made_up, output


def plain_vllm(policy):
    made_up = Slow(policy)
    made_up.ahead = False
    return made_up


def test_answers_are_drawn_during_the_update_by_the_weights_before_it(
    whole, tiny_folder, tmp_path
):
    run, made_up, output = whole
    assert made_up.asked_of == [0, 0, 1, 2], "weights that answer steps 1, 2, 3, 4"
    waiting, plainly = trainer(tiny_folder, tmp_path, plain_vllm, staleness=0)
    waiting.fit()
    assert plainly.asked_of == [0, 1, 2, 3]
    # The same prompts and draws as a run that waits, though other weights answer.
    assert seeds(made_up) == seeds(plainly)
    rows = read_metrics(output)
    assert [row.get("rollout/ahead", 0) for row in rows] == [0, 4, 4, 4]
    assert not any("rollout/ahead_unused" in row or "rollout/ahead_lost" in row for row in rows)
    assert run.grpo.mismatch == "truncate"


def timeless(row):
    return {k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))}


def test_a_run_that_was_stopped_goes_on_with_the_answers_that_were_under_way(
    whole, tiny_folder, tmp_path
):
    calls = []

    @in_process
    def breaks(rollout):
        calls.append(1)
        if len(calls) == 9 and not BROKEN:  # the first answer of step 3
            BROKEN.append(3)
            raise MemoryError("stopped")
        return pay(rollout)

    # As one part of one name: the continued run is the same run.
    stopped, _ = trainer(
        tiny_folder, tmp_path, Slow, rewards=Rewards(on_failure="stop", accuracy=breaks)
    )
    with pytest.raises(TrainingError, match="Step 3 failed"):
        stopped.fit()
    again, made_up = trainer(
        tiny_folder, tmp_path, Slow, rewards=Rewards(on_failure="stop", accuracy=breaks)
    )
    again.fit()
    # Of the steps that were left only the last one is asked for: step 3's answers were kept.
    assert made_up.asked_of == [2]
    seen = [[timeless(row) for row in read_metrics(o)] for o in (tmp_path, whole[2])]
    assert seen[0] == seen[1]
    for found, right in zip(weights(again), weights(whole[0]), strict=True):
        assert torch.equal(found, right)


def test_answers_that_a_server_loses_are_asked_for_anew(tiny_folder, tmp_path):
    class Forgetful(Slow):
        def answer(self, questions, version):
            if len(self.asked) == 1 and not self.faults:
                self.faults = ["gone"]
                self.held = ""
            return [] if not self.held else super().answer(questions, version)

    run, made_up = trainer(tiny_folder, tmp_path, Forgetful)
    made_up.ahead = False
    run.fit()
    rows = read_metrics(tmp_path)
    assert [row.get("rollout/ahead_lost", 0) for row in rows] == [0, 4, 0, 0]
    assert [row.get("rollout/ahead", 0) for row in rows] == [0, 0, 4, 4]


def test_over_http_a_lost_server_and_new_weights_wait_for_what_is_under_way(tiny_folder):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32")
    drawn = Drawn("lookup", size=4)
    prompts, now = [drawn[0], drawn[1]], Now(1, 0.5, 3)
    made_up = MadeUp(policy)
    with loopback(made_up) as (url, faults):
        engine = VLLMEngine(policy, RemoteVLLM(url, slow=30))
        assert engine.answers_alone and not VLLMEngine(policy, made_up).answers_alone
        faults["/answer"] = ["slow"]
        flight = engine.begin(asked_of(policy, prompts, SAMPLING, now))
        policy.stepped()
        later = engine.generate(prompts, SAMPLING, replace(now, step=2))
        first = engine.landed(flight)
    assert {r.version for r in first} == {0} and {r.version for r in later} == {1}
    assert made_up.asked_of == [0, 1]


class Listening:
    """Notes whose answers are given to it while others are on their way."""

    def __init__(self, made_up):
        self.made_up, self.begun, self.paid = made_up, [], []

    def begin(self, answers):
        self.begun.append((answers[0].prompt.id, len(self.made_up.asked)))
        # The rest comes only when somebody was told of the first: else this waits for ever.
        self.made_up.ended = True

    def __call__(self, answers):
        self.paid += [id(one) for one in answers]
        return list(answers)

    def forget(self):
        pass


@pytest.mark.parametrize("lost", [False, True])
def test_groups_that_were_asked_ahead_are_paid_as_they_come(tiny_folder, lost):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32")
    drawn = Drawn("lookup", size=4)
    prompts, now = [drawn[0], drawn[1], drawn[2]], Now(1, 0.5, 3)
    made_up = Slow(policy)
    made_up.asked_at, made_up.early = [0], True
    engine, under_way = VLLMEngine(policy, made_up), UnderWay()
    under_way.begin(engine, asked_of(policy, prompts[:2], SAMPLING, now))
    made_up.faults = ["drop a reply"] if lost else []
    pay = Listening(made_up)
    found = paid_answers(_Ahead(engine, under_way), pay, prompts, SAMPLING, now)
    first = drawn[0].id
    assert pay.begun[0] == (first, 0), "told before the others were drawn"
    names = [name for name, _ in pay.begun]
    # After a loss all are asked again, and what was told of the first one counts no more.
    assert names == [first, *([first] if lost else []), drawn[1].id, drawn[2].id]
    assert pay.paid == [id(one) for one in found] and len(found) == 6
    right = VLLMEngine(policy, plain_vllm(policy)).generate(prompts, SAMPLING, now)
    assert [r.tokens.tolist() for r in found] == [r.tokens.tolist() for r in right]
    assert policy.counters["rollout/ahead_lost"] == (4 if lost else 0)


def test_only_what_was_asked_exactly_so_is_taken(tiny_folder):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32")
    drawn = Drawn("lookup", size=4)
    prompts, now = [drawn[0], drawn[1]], Now(1, 0.5, 3)
    made_up = plain_vllm(policy)
    engine = VLLMEngine(policy, made_up)
    under_way = UnderWay()
    asked = asked_of(policy, prompts, SAMPLING, now)
    under_way.begin(engine, asked)
    others = [
        *asked_of(policy, prompts[:1], SAMPLING, replace(now, seed=4)),
        *asked_of(policy, prompts[:1], SAMPLING, replace(now, step=2)),
        *asked_of(policy, prompts[:1], replace(SAMPLING, temperature=0.5), now),
        *asked_of(policy, prompts[:1], SAMPLING, now, counts=[1]),
        *asked_of(policy, prompts[:1], SAMPLING, now, first=[2]),
        *asked_of(policy, prompts[:1], SAMPLING, now, branch="noisy"),
        *asked_of(policy, prompts[:1], SAMPLING, now, prefixes=[torch.tensor([7])]),
        *asked_of(policy, prompts[:1], SAMPLING, now, temperature_at=lambda t: 1.0),
    ]
    assert len({key_of(one) for one in [*others, *asked]}) == len(others) + 2
    assert all(under_way.take(one) is None for one in others)
    kept = UnderWay()
    kept.load(plain(under_way.state()))
    for one in asked:
        (found, second), (copy, _) = under_way.take(one), kept.take(one)
        assert found == copy and found != second
        assert under_way.take(one) is None, "an answer is learned from once"
    assert under_way.drop() == 0


def test_a_checkpoint_waits_for_answers_but_not_longer_than_a_signal_leaves(
    tiny_folder, monkeypatch
):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32")
    asked = asked_of(policy, [Drawn("lookup", size=4)[0]], SAMPLING, Now(1, 0.5, 3))
    made_up = Slow(policy)
    made_up.asked_at = [0]
    engine, under_way = VLLMEngine(policy, made_up), UnderWay()
    under_way.begin(engine, asked)
    monkeypatch.setattr(ahead, "is_late", lambda: True)
    assert plain(under_way.state()) == {"answers": {}}
    monkeypatch.undo()
    made_up.ended = True  # now they may come
    before = copy.deepcopy(under_way.state())
    assert under_way.take(asked[0]) is not None and under_way.drop() == 0
    # What was taken meanwhile is in the state from before all the same.
    assert len(plain(before)["answers"][key_of(asked[0])]) == 2


def test_another_round_is_asked_of_the_present_weights(tiny_folder, tmp_path):
    """DynamicSampling drops groups and asks again; the surplus of what was asked ahead is counted."""
    run, made_up = trainer(
        tiny_folder, tmp_path, plain_vllm, rollout=DynamicSampling("total", -1, 0.3, rounds=9)
    )
    run.fit()
    rows = read_metrics(tmp_path)
    taken = sum(row.get("rollout/ahead", 0) for row in rows)
    assert taken == 4 * (STEPS - 1) and len(made_up.asked) > STEPS


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"rollout": EADRollout()}, "EADRollout decides in each step how its prompts"),
        ({"grpo": GRPO(mismatch="off"), "correct": False}, "answers of older weights are not"),
    ],
)
def test_what_cannot_be_asked_ahead_is_refused(tiny_folder, tmp_path, more, message):
    def make(policy):
        made_up = plain_vllm(policy)
        return made_up

    correct = more.pop("correct", True)
    with pytest.MonkeyPatch.context() as patch:
        if not correct:
            patch.setattr(VLLMEngine, "mismatch", "off")
        with pytest.raises(ValueError, match=f"--run.staleness is 1, but {message}"):
            trainer(tiny_folder, tmp_path, make, **more)


def test_an_engine_that_needs_this_process_is_refused(tiny_folder, tmp_path):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32")
    for engine in (HFEngine(policy), VLLMEngine(policy, MadeUp(policy))):
        with pytest.raises(ValueError, match=r"cannot answer while.*--load.engine http://"):
            Trainer(
                policy,
                prompts=Drawn("lookup", size=4),
                rewards=Rewards(accuracy=pay),
                engine=engine,
                run=Run(output=tmp_path, steps=1, staleness=1),
            )
    with pytest.raises(ValueError, match=r"staleness.*0 or 1"):
        Run(staleness=2)
    assert AskedAhead().inner is group_rollout
