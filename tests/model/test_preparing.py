"""Prompts that worker processes read ahead: the same numbers, and no worker can hurt the run."""

from __future__ import annotations

import gc
import os
import pickle
import socket
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.ground.process import HEADER
from mmrl.losses.schedules import Linear
from mmrl.model import preparing
from mmrl.model.branches import render_branch
from mmrl.model.policy import Policy
from mmrl.model.preparing import Ahead, default_workers, read_ahead
from mmrl.model.preparing_worker import Load, Prepared, prepared
from mmrl.model.ranks import Ranks
from mmrl.objectives.base import Objective
from mmrl.objectives.papo import PAPO
from mmrl.perception.masking import PatchMask, SaliencyMask
from mmrl.perception.noise import GaussianNoise
from mmrl.perception.perturb import ViewChain
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.groups import DynamicSampling, group_rollout
from mmrl.rollouts.prompt_order import Supply
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.supplied import supply_of
from mmrl.training.trainer import Trainer
from mmrl.types import Now, Sampling, View, VisualBranch
from tests.model.spoiled import Spoiled


def spoiled(**rows):
    return Spoiled(trainer=os.getpid(), **rows)


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return Policy.load(tiny_folder, device="cpu", dtype="float64")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Workers import `Spoiled` by its name, also where `pytest` itself has not put the checkout on the path."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


def settled(ahead, seconds=400):
    """Wait until the workers have done all that is expected."""
    desk, until = ahead._desk, time.monotonic() + seconds
    with desk.changed:
        while any(job.reply is None for job in desk.jobs.values()):
            assert time.monotonic() < until, "the workers hang"
            desk.changed.wait(1.0)


class Here:
    """Stands for a worker, without a process."""

    def __init__(self, load, limit):
        self.load = pickle.loads(load)

    def start(self):
        pass

    end = start

    def prepare(self, row, now):
        return prepared(self.load, row, now)


class Starting(Here):
    """One that takes its time to come up."""

    def start(self):
        time.sleep(60)


def all_of(supply, policy, steps, log, ahead=None):
    """Everything that a run sees of its prompts."""
    supply.log = log
    seen = []
    for _ in range(steps):
        with policy.vision.step():
            if ahead is not None:
                ahead.expect(supply._coming(supply.per_step, Ranks.alone()))
                settled(ahead)
            for prompt in supply.take():
                encoded = policy.encode(prompt)
                pictures = [(p.key, p.grid, p.values, medium.frames) for p, medium in zip(
                    encoded.visual, prompt.media, strict=True)]  # fmt: skip
                seen.append(
                    (prompt.id, prompt.answer, encoded.ids, encoded.positions, pictures)
                )
    counters = {k: v for k, v in supply.counters.items() if not k.startswith("time/")}
    return seen, counters, log.read_text(), supply.state()


def same(first, second):
    """Equal to the last bit, through tuples, lists and dicts."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def test_what_workers_prepare_is_what_would_have_been_read_here(policy, tmp_path):
    prompts = spoiled(bad=(1, 4))
    plain = Supply(prompts, 3, 0, check=policy.encode)
    alone = all_of(plain, policy, 3, tmp_path / "alone")
    ahead = Ahead(prompts, policy, 1)
    helped = Supply(prompts, 3, 0, check=policy.encode, ahead=ahead)
    found = all_of(helped, policy, 3, tmp_path / "helped", ahead)
    child = ahead._desk.workers[0]._child
    assert child.alive
    thread = next(t for t in threading.enumerate() if t.name.startswith("mmrl-prompts"))
    del ahead, helped  # without `close`
    gc.collect()
    thread.join(20)
    assert not thread.is_alive() and not child.alive
    drains = [counters.pop("data/drains") for _, counters, *_ in (alone, found)]
    assert drains[1] == drains[0] + 9, "a worker's counts come with the rows that are taken"
    assert alone[1] == found[1] == {"data/skipped": 2}
    for ours, theirs in zip(alone, found, strict=True):
        assert same(ours, theirs)


def test_a_worker_that_ends_or_hangs_costs_itself(policy):
    """Another comes up in its place, and its row is read here."""
    prompts = spoiled(fatal=(0,), endless=(2,))
    ahead = Ahead(prompts, policy, 1, limit=4.0)
    with policy.vision.step():
        ahead.expect(dict.fromkeys(range(3)))
        settled(ahead)
        replies = [job.reply for job in ahead._desk.jobs.values()]
        assert [isinstance(reply, Prepared) for reply in replies] == [False, True, False]
        began = time.monotonic()
        found = [ahead.read(row) for row in range(3)]
    assert [prompt.id for prompt in found] == [prompts[row].id for row in range(3)]
    assert time.monotonic() - began < 4 and ahead.drain()["data/worker_failures"] == 2
    ahead.close()


def test_rows_that_no_worker_has_begun_are_read_here(policy, monkeypatch):
    """Nobody waits for a process to start, and what is not expected is read all the same."""
    monkeypatch.setattr(preparing, "_Worker", Starting)
    ahead = Ahead(spoiled(), policy, 1)
    with policy.vision.step():
        ahead.expect({0: None, 1: None})
        assert ahead.read(0).id == Drawn("lookup")[0].id
        assert ahead.read(77).id == Drawn("lookup")[77].id
    ahead.close()
    assert ahead.drain() == {}


def test_no_failure_of_a_worker_leaves_somebody_waiting(policy, monkeypatch, caplog):
    class Odd(Here):
        def prepare(self, row, now):
            raise KeyError("odd")

    monkeypatch.setattr(preparing, "_Worker", Odd)
    ahead = Ahead(spoiled(), policy, 1)
    rows = range(preparing.PATIENCE + 2)
    with policy.vision.step():
        ahead.expect(dict.fromkeys(rows))
        found = [ahead.read(row).id for row in rows]
    assert found == [Drawn("lookup")[row].id for row in rows]
    failures = ahead.drain().get("data/worker_failures", 0)
    told = [record.getMessage() for record in caplog.records]
    assert sum("KeyError: 'odd'" in text for text in told) == failures <= preparing.PATIENCE
    ahead.close()


def test_a_reply_that_cannot_be_read_costs_the_worker(monkeypatch):
    """Bytes that are no pickle, as a class that only the worker knows would give."""
    ours, theirs = socket.socketpair()
    worker = preparing._Worker(b"", 5.0)
    ended = []
    worker._child = SimpleNamespace(channel=ours, alive=True, end=ended.append)
    parts = (HEADER.pack(1), HEADER.pack(4), b"torn")
    theirs.sendall(b"".join(parts))
    with pytest.raises(preparing._Lost, match="cannot be read"):
        worker.prepare(0, None)
    assert ended and worker._child is None
    ours.close(), theirs.close()


def test_the_desk_keeps_to_its_rows_and_bytes(policy, monkeypatch):
    """Workers wait while what lies ready is not fetched; rows that are expected no more give their room back."""
    monkeypatch.setattr(preparing, "_Worker", Here)
    ahead = Ahead(spoiled(), policy, 1, held=1)
    ahead.expect(dict.fromkeys(range(8)))
    desk = ahead._desk
    with desk.changed:
        assert desk.changed.wait_for(lambda: desk.held > 0, 90)
        time.sleep(0.5)
        assert [row for row, job in desk.jobs.items() if job.begun] == [0]
    ahead.expect({20: None, 21: None})
    assert set(desk.jobs) == {20, 21}
    with policy.vision.step():
        with desk.changed:
            assert desk.changed.wait_for(lambda: desk.jobs[20].reply is not None, 90)
        size = desk.held
        assert size > 0 and ahead.read(20).id == Drawn("lookup")[20].id
    assert desk.held < size or desk.jobs[21].begun
    ahead.close()


def test_what_cannot_be_sent_is_said_and_read_here(policy, caplog):
    @dataclass(frozen=True)
    class Locked(Spoiled):
        lock: object = None

    ahead = Ahead(Locked(trainer=os.getpid(), lock=threading.Lock()), policy, 1)
    with policy.vision.step():
        ahead.expect({0: None})
        ahead.expect({0: None})
        assert ahead.read(0).id == Drawn("lookup")[0].id and ahead._desk is None
    (record,) = caplog.records
    assert "Locked cannot be sent" in record.getMessage()
    assert "--load.workers 0" in record.getMessage()


def test_who_decides_in_the_step_what_comes_next_reads_nothing_ahead(policy, monkeypatch):
    class Curriculum(Objective):
        moves_prompts = True

    monkeypatch.setattr(policy, "workers", 2)
    assert read_ahead(spoiled(), policy, [Objective()]) is not None
    assert read_ahead(spoiled(), policy, [Objective(), Curriculum()]) is None
    monkeypatch.setattr(policy, "workers", 0)
    assert read_ahead(spoiled(), policy, []) is None
    assert default_workers(policy) == 0, "a tiny model on a CPU"
    with pytest.raises(ValueError, match="workers is 0"):
        Ahead(spoiled(), policy, 0)


class Later(View):
    """May not run before its step."""

    def __call__(self, frames, context, rng, now):
        return 255 - frames


BRANCHES = {
    "masked": VisualBranch(PatchMask(0.5, 8)),
    "noisy": VisualBranch(GaussianNoise(0.4, anneal=Linear(1.0, 0.0)), stage="resized"),
    "each": VisualBranch(PatchMask(0.5, 8), share_in_group=False),
    "later": VisualBranch(Later()),
    "salient": VisualBranch(SaliencyMask(0.5)),
    "both": VisualBranch(ViewChain((PatchMask(0.5, 8), Later()))),
}


def test_views_are_drawn_for_the_step_that_asks(policy, monkeypatch):
    """What a worker drew is what would be drawn here; what it drew for another step, or another branch, is not used."""
    monkeypatch.setattr(preparing, "_Worker", Here)
    ahead = Ahead(spoiled(), policy, 1, BRANCHES)
    assert set(ahead.branches) == {"masked", "noisy"}
    now, other = Now(3, 0.3, 7), Now(4, 0.4, 7)
    assert now.following() == other and Now(1, 0.0, 0).following() == Now(2, 0.0, 0)
    with policy.vision.step():
        ahead.expect({0: now, 1: now})
        settled(ahead)
        prompt, untold = ahead.read(0), spoiled()[1]
        ready = policy.vision._drawn[prompt.id][1].shown
        assert set(ready) == {"masked", "noisy"}
        for name, shown in ready.items():
            branch = BRANCHES[name]
            assert render_branch(policy, prompt, name, branch, now) is shown
            assert policy.vision.drawn(prompt, name, branch, other) is None
            assert policy.vision.drawn(prompt, name, replace(branch), now) is None
            assert policy.vision.drawn(untold, name, branch, now) is None
        policy.vision._drawn.clear()
        for name, shown in ready.items():
            anew = render_branch(policy, prompt, name, BRANCHES[name], now)
            assert anew is not shown and [p.key for p in anew] == [p.key for p in shown]
            assert same([p.values for p in anew], [p.values for p in shown])
    ahead.close()
    assert not policy.vision._drawn


@pytest.mark.parametrize("rollout", [group_rollout, DynamicSampling(low=-1, high=2)])
def test_views_are_not_drawn_ahead_where_the_step_is_unknown(policy, rollout):
    run = Run(steps=3, prompts_per_step=2)
    policy.workers = 1
    try:
        supply = supply_of(policy, spoiled(), run, [], BRANCHES, rollout, Ranks.alone())
    finally:
        policy.workers = 0
    dropped = isinstance(rollout, DynamicSampling)
    assert set(supply._ahead.branches) == (set() if dropped else {"masked", "noisy"})


@pytest.mark.parametrize(
    ("cuda", "large", "cores", "ranks", "workers"),
    [
        (True, True, 16, 1, 8),
        (True, True, 64, 1, 8),
        (True, True, 64, 8, 4),
        (True, True, 2, 8, 1),
        (True, False, 16, 1, 0),
        (False, True, 16, 1, 0),
    ],
)
def test_how_many_workers_a_run_gets(monkeypatch, cuda, large, cores, ranks, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    where = torch.device("cuda" if cuda else "cpu")
    assert default_workers(SimpleNamespace(device=where, is_large=large)) == workers


def pixels_in_memory():
    """Bytes of all pixels that this process has got since the test began and still holds."""
    gc.collect()
    found = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
    held = [thing.untyped_storage() for thing in found if thing.dtype == torch.uint8]
    return sum({storage.data_ptr(): storage.nbytes() for storage in held}.values())


@pytest.mark.usefixtures("only_new_objects")
@pytest.mark.parametrize("workers", [0, 1])
def test_pixels_in_memory_are_flat(policy, monkeypatch, workers):
    """Step after step, in it and after it: its prompts and views, and with workers the next step's."""
    monkeypatch.setattr(preparing, "_Worker", Here)
    with policy.vision.no_update():  # leaving it forgets what other tests have encoded
        shown = policy.encode(Drawn("lookup")[0]).visual[0].pixels.nbytes
    before, per_step = pixels_in_memory(), 3
    ahead = Ahead(Drawn("lookup"), policy, 1, BRANCHES) if workers else None
    supply = Supply(Drawn("lookup"), per_step, 0, check=policy.encode, ahead=ahead)
    inside, after = [], []
    for step in range(1, 6):
        with policy.vision.step():
            supply.now = Now(step, step / 5, 0)
            prompts = supply.take()
            for prompt in prompts:
                policy.vision.sampling_features(policy.encode(prompt).visual)
                render_branch(policy, prompt, "masked", BRANCHES["masked"], supply.now)
            if ahead is not None:
                settled(ahead)
            inside.append(pixels_in_memory() - before)
            del prompts, prompt
        after.append(pixels_in_memory() - before)
    policy.vision.clear()
    picture = Drawn("lookup")[0].media[0].frames.nbytes
    # Ready are frames, patches, and those of two views.
    ready = per_step * (picture + 3 * shown) if workers else 0
    assert after[1:] == [ready] * 4, after
    assert (
        max(inside[1:]) <= per_step * (picture + 3 * shown) + ready
        and len(set(inside[2:])) == 1
    )
    if ahead is not None:
        ahead.close()


def test_a_run_is_the_same_with_workers(tiny_folder, tmp_path, monkeypatch):
    taken = []
    take = preparing._Desk.take

    def watched(desk, row):
        reply = take(desk, row)
        taken.extend([reply] if isinstance(reply, Prepared) else [])
        return reply

    monkeypatch.setattr(preparing._Desk, "take", watched)

    def run(workers):
        policy = Policy.load(tiny_folder, device="cpu", dtype="float64")
        policy.workers = workers
        box = Trainer(
            policy,
            prompts=spoiled(bad=(2,)),
            rewards=Rewards(accuracy=lambda rollout: len(rollout.tokens) % 2, isolate=False),
            sampling=Sampling(2, max_tokens=3),
            branches={"masked": BRANCHES["masked"]},
            objectives=[PAPO()],
            optim=Optim(lr=1e-3),
            run=Run(steps=3, prompts_per_step=2, output=tmp_path / str(workers)),
        )
        steps = []
        for number in (1, 2, 3):
            if workers and number > 1:
                settled(box.supply._ahead)
            steps.append(box.step(Now(number, number / 3, 0)))
            drawn = any(reply.views for reply in taken)
            assert drawn == bool(workers) or number == 1, "nobody waits for the first step"
            taken.clear()
        box.supply.close()
        keep = [
            {k: v for k, v in step.items() if not k.startswith(("time/", "memory/"))}
            for step in steps
        ]
        for step in keep:
            step.pop("data/drains")
        return keep, [p.detach() for p in policy.parameters()]

    (metrics, weights), (others, other_weights) = run(0), run(1)
    assert metrics == others and same(weights, other_weights)


def test_a_load_is_small_enough_to_be_sent(policy):
    """What travels is the collection and the processing, never the model."""
    import cloudpickle

    size = len(cloudpickle.dumps(Load(spoiled(), policy.processing)))
    assert size < 4 << 20, size
