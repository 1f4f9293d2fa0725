"""Ranks: what they exchange is the same for all, a problem of one is a problem of all, and none waits for the dead."""

import os
import signal
import time

import pytest

from mmrl.ground.printable import show, tell
from mmrl.ground.stopping import GivenUp
from mmrl.model import watch
from mmrl.model.ranks import RankFailed, Ranks
from tests.several import several, values


def test_alone_everything_is_its_own():
    ranks = Ranks.start("cpu")
    assert (ranks.rank, ranks.world, ranks.several, ranks.first) == (0, 1, False, True)
    assert ranks.total([2, 0.5]) == [2, 0.5] and ranks.most(7) == 7
    assert ranks.gathered("x") == ["x"] and ranks.broadcast("y") == "y"
    ranks.wait("update")
    ranks.agree(None)
    with ranks.together("pay"), pytest.raises(RankFailed, match="row 3"):
        ranks.agree("row 3")
    with pytest.raises(KeyError), ranks.together():
        raise KeyError("own")


def exchanged():
    ranks = Ranks.start("cpu")
    mine = float(ranks.rank)
    tell(f"message of {mine}")
    show(f"result of {mine}")
    found = {
        "gathered": ranks.gathered({"rank": ranks.rank}),
        "sum": ranks.total([ranks.rank + 1, 0.1, 1e16, -mine * 1e16]),
        "whole": ranks.total([2**60 + ranks.rank]),
        "most": ranks.most(-ranks.rank),
        "said": ranks.broadcast(f"by {ranks.rank}", source=1),
        "local": (ranks.local_rank, ranks.local_world, Ranks.here() is ranks),
    }
    with ranks.first_before_others():
        found["when"] = time.monotonic()
        time.sleep(0.05)
    ranks.wait("end")
    ranks.end()
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_all_know_the_same(world):
    outcomes = several(world, exchanged)
    found = values(outcomes)
    numbers = range(world)
    for rank, each in enumerate(found):
        assert each["gathered"] == [{"rank": rank} for rank in numbers]
        assert each["most"] == 0 and each["said"] == "by 1"
        assert each["whole"] == [world * 2**60 + sum(numbers)]
        assert each["sum"][0] == sum(numbers) + world
        assert each["sum"] == found[0]["sum"]
        assert each["local"] == (rank, world, True)
        assert rank == 0 or each["when"] >= found[0]["when"] + 0.05
        # One speaks for all.
        assert (
            ("message" in outcomes[rank].said)
            == (rank == 0)
            == ("result" in outcomes[rank].said)
        )


def failing(how):
    ranks = Ranks.start("cpu")
    heard = []
    for step in range(3):
        try:
            with ranks.together("rollout"), ranks.together("pay"):
                if step == 1 and ranks.rank == 1 and how == "before a message":
                    raise ValueError("row 7 is bad")
                ranks.gathered(step)
                if step == 1 and ranks.rank == 1 and how == "after the last message":
                    raise ValueError("row 7 is bad")
        except (RankFailed, ValueError) as error:
            heard.append((step, type(error).__name__, str(error)))
    ranks.wait()
    ranks.end()
    return heard


@pytest.mark.parametrize("how", ["before a message", "after the last message"])
def test_the_problem_of_one_is_a_problem_of_all(how):
    first, second = values(several(2, failing, how))
    assert second == [(1, "ValueError", "row 7 is bad")]
    assert first == [(1, "RankFailed", "process 1 of 2: ValueError: row 7 is bad")]


def left_behind(what, busy):
    watch.BEAT, watch.SILENCE = 0.1, 2.0
    ranks = Ranks.start("cpu")
    ranks.place.step, ranks.place.kept = 5, lambda: "the last checkpoint is step-4"
    ranks.wait("update")
    time.sleep(0.3)  # until the next sign of life has said so
    if ranks.rank == 1:
        if what == "exception":
            ranks.end("ValueError: no room")
            os._exit(3)
        os.kill(os.getpid(), signal.SIGKILL if what == "killed" else signal.SIGSTOP)
    if busy:
        time.sleep(50)
    ranks.gathered(1)


@pytest.mark.parametrize("what", ["killed", "stopped", "exception"])
@pytest.mark.parametrize("busy", [True, False], ids=["at work", "waiting"])
def test_nobody_waits_for_the_dead(what, busy):
    first, second = several(2, left_behind, what, busy, limit=30.0)
    assert second.code == {"killed": -9, "stopped": None, "exception": 3}[what]
    assert first.code == 1 and first.seconds < 20
    reason = (
        "ended: ValueError: no room"
        if what == "exception"
        else "ended or hangs; it was at step 5, update"
    )
    assert f"process 1 {reason}" in first.said
    assert "Process 0 ends at step 5, update" in first.said
    assert (
        "the last checkpoint is step-4, and the same command goes on from there" in first.said
    )


def hanging(where):
    """Rank 1 hangs at its work, while its thread still writes; the other waits, or works less long than it may."""
    watch.BEAT = 0.2
    ranks = Ranks.start("cpu")
    ranks.place.step, ranks.place.limit = 5, 2.0
    ranks.wait("rollout")
    if ranks.rank == 1:
        time.sleep(0.5)
        ranks.wait()  # after which the phase goes on: the time before counts as well
        the_work_that_hangs(40)
    time.sleep(0.7)
    ranks.wait()
    if where == "further":
        ranks.place.enter("update")
        time.sleep(0.5)
    ranks.gathered(1)


def the_work_that_hangs(seconds):
    time.sleep(seconds)


@pytest.mark.parametrize("where", ["the same phase", "further"])
def test_work_that_hangs_is_named_by_its_process(where):
    first, second = several(2, hanging, where, limit=30.0)
    assert first.code == second.code == 1 and first.seconds < 25, first.said + second.said
    assert "Process 1 hangs at step 5, rollout" in second.said
    assert "the_work_that_hangs" in second.said and "--run.phase-limit allows 2" in second.said
    assert "process 1 ended: it hangs at step 5, rollout: it has been there for" in first.said
    assert "Process 0 hangs" not in first.said


def given_up(how):
    """Rank 1 breaks its work off; what each raises, and that they understand each other afterwards."""
    ranks = Ranks.start("cpu")
    found = ""
    try:
        with ranks.together("rollout"), ranks.together():
            if ranks.rank == 1:
                raise GivenUp
            if how == "with a problem":
                raise ValueError("row 7 is bad")
            if how == "waiting":
                ranks.gathered(0)
    except (GivenUp, RankFailed, ValueError) as error:
        found = type(error).__name__
    assert ranks.gathered(ranks.rank) == [0, 1]
    try:
        ranks.give_up_if(ranks.rank == 0)
    except GivenUp:
        found += " late"
    ranks.end()
    return found


@pytest.mark.parametrize("how", ["at its end", "waiting", "with a problem"])
def test_what_one_gives_up_all_give_up(how):
    found = values(several(2, given_up, how))
    problem = how == "with a problem"
    assert found == [
        f"{'ValueError' if problem else 'AllGiveUp'} late",
        f"{'RankFailed' if problem else 'AllGiveUp'} late",
    ]


def test_a_broken_environment_is_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match=r"WORLD_SIZE is 2, but RANK.* torchrun"):
        Ranks.start("cpu")
