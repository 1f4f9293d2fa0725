"""The killable worker: time limits, crashes, forks, and no orphans."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mmrl.data.video.decode_worker import DecodeWorker
from mmrl.data.video.video import ClipReader
from mmrl.ground.faults import BadMedia
from mmrl.ground.process import KEEPER_INTERVAL

ROOT = Path(__file__).parents[3]
LONG = [i / 30 for i in range(500)]


@pytest.fixture()
def slow_clip(make_clip: Any) -> str:
    """Half a minute of larger frames: about a second of decoding."""
    return str(make_clip("slow.mp4", LONG, size=(240, 320), gop=250))


def gone(pid: int, within: float) -> bool:
    """Has the process ended (or become a zombie) within so many seconds?"""
    limit = time.monotonic() + within
    while time.monotonic() < limit:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def child_of(worker: DecodeWorker) -> int:
    worker.describe()
    assert worker._child is not None
    return worker._child.pid


def test_worker_gives_what_the_decoder_gives(make_clip: Any) -> None:
    path = make_clip("cfr.mp4", [i / 30 for i in range(60)])
    here, there = ClipReader("pyav", isolate=False), ClipReader("pyav")
    for size in (None, (28, 56)):
        ours, seconds = there.read(path, [59, 0, 7, 7], size)
        reference, expected = here.read(path, [59, 0, 7, 7], size)
        np.testing.assert_array_equal(ours, reference)
        np.testing.assert_array_equal(seconds, expected)
    assert there.probe(path).n == 60 and np.array_equal(
        there.probe(path).keys, here.probe(path).keys
    )
    there.close()


def test_timeout_kills_the_child_and_the_next_clip_is_read(
    slow_clip: str, make_clip: Any
) -> None:
    worker = DecodeWorker("pyav")
    info = worker.probe(slow_clip)
    first = child_of(worker)
    worker.timeout = 0.05
    with pytest.raises(BadMedia, match="timeout") as caught:
        worker.read(info, range(info.n))
    assert caught.value.reason == "timeout" and gone(first, 2)
    worker.timeout = 60
    assert worker.read(info, [0])[0].shape == (1, 3, 240, 320)
    assert worker.starts == 2
    worker.close()


def test_crash_is_tried_once_more_and_then_blamed(slow_clip: str) -> None:
    worker = DecodeWorker("pyav")
    info = worker.probe(slow_clip)
    killed: list[int] = []

    def kill_two_readers() -> None:
        while len(killed) < 2:
            time.sleep(0.02)
            child = worker._child
            if child is not None and child.pid not in killed and worker._served >= 1:
                killed.append(child.pid)
                os.kill(child.pid, signal.SIGKILL)

    worker._served = 0
    killer = threading.Thread(target=kill_two_readers)
    killer.start()
    with pytest.raises(BadMedia, match=r"decoder crashed.*-9"):
        worker.read(info, range(info.n))
    killer.join()
    assert worker.starts == 2
    assert worker.read(info, [0])[0].shape[0] == 1
    worker.close()


def test_child_killed_while_idle_is_replaced_in_silence(make_clip: Any) -> None:
    worker = DecodeWorker("pyav")
    path = str(make_clip("cfr.mp4", [i / 30 for i in range(60)]))
    worker.probe(path)
    os.kill(child_of(worker), signal.SIGKILL)
    assert worker.probe(path).n == 60
    worker.close()


def test_children_are_recycled(make_clip: Any) -> None:
    worker = DecodeWorker("pyav", recycle_after=2)
    path = str(make_clip("cfr.mp4", [i / 30 for i in range(60)]))
    for _ in range(5):
        worker.probe(path)
    assert worker.starts == 3
    worker.close()


def test_pickled_and_forked_copies_start_their_own_child(make_clip: Any) -> None:
    worker = DecodeWorker("pyav")
    path = str(make_clip("cfr.mp4", [i / 30 for i in range(60)]))
    mine = child_of(worker)
    copy = pickle.loads(pickle.dumps(worker))
    assert copy.probe(path).n == 60 and child_of(copy) != mine
    copy.close()
    pid = os.fork()
    if pid == 0:
        good = worker.probe(path).n == 60 and child_of(worker) != mine
        worker.close()
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert worker.probe(path).n == 60 and child_of(worker) == mine
    worker.close()


@pytest.mark.parametrize("decoding", [False, True])
def test_no_orphan_when_the_parent_is_killed(decoding: bool, slow_clip: str) -> None:
    code = f"""
        import sys, threading
        from mmrl.data.video.decode_worker import DecodeWorker
        worker = DecodeWorker("pyav")
        info = worker.probe({slow_clip!r})
        print(worker._child.pid, flush=True)
        while {decoding}:
            worker.read(info, range(info.n))
        threading.Event().wait()
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.2)
    assert psutil.pid_exists(child)
    parent.kill()
    parent.wait()
    assert gone(child, KEEPER_INTERVAL + 2)


def test_no_orphan_while_a_forked_sibling_holds_the_pipe(slow_clip: str) -> None:
    code = f"""
        import os, time
        from mmrl.data.video.decode_worker import DecodeWorker
        worker = DecodeWorker("pyav")
        worker.probe({slow_clip!r})
        sibling = os.fork()
        if sibling == 0:
            time.sleep(20)
            os._exit(0)
        print(worker._child.pid, sibling, flush=True)
        time.sleep(60)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child, sibling = map(int, parent.stdout.readline().split())
    parent.kill()
    parent.wait()
    try:
        assert gone(child, KEEPER_INTERVAL + 2)
    finally:
        os.kill(sibling, signal.SIGKILL)


def test_clips_in_memory_hold_no_descriptor_and_are_unmapped(make_clip: Any) -> None:
    worker = DecodeWorker("pyav")
    info = worker.probe(str(make_clip("cfr.mp4", [i / 30 for i in range(60)])))
    before = psutil.Process().num_fds()
    clips = [worker.read(info, [0, 1], (64, 64))[0] for _ in range(50)]
    assert psutil.Process().num_fds() == before
    maps = Path("/proc/self/maps").read_text().count("/memfd:clip")
    assert maps >= 1
    part = clips[0][1:].transpose(0, 2, 3, 1)
    kept = part.copy()
    del clips
    assert np.array_equal(part, kept), "a view keeps the pages"
    del part
    assert Path("/proc/self/maps").read_text().count("/memfd:clip") == 0
    worker.close()


@pytest.mark.parametrize("wrong", [{"timeout": 0}, {"recycle_after": 0}])
def test_impossible_limits_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="allowed are"):
        DecodeWorker("pyav", **wrong)
