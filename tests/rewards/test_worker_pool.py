"""Isolation: whatever a reward does costs one answer, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import itertools
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmrl.rewards import worker_output
from mmrl.rewards.parts import Call, Failure
from mmrl.rewards.timeouts import AsyncLoop, guarded
from mmrl.rewards.worker import Unavailable
from mmrl.rewards.worker_pool import LoadError, WorkerPool

PRINTED = {
    "prints": "hello from a reward",
    "prints_orders": "a\x1b]52;c;cm0=\x07b",
    "prints_much": "much " * 100_000,
    "prints_bytes": "\udcff\ufffd",
}
RETURNED = {
    "long text": lambda: "x" * (64 << 20),
    "long name": lambda: type("n" * (1 << 20), (), {})(),
    "no end": itertools.count,
    "large number": lambda: 10**5000,
}
WRITTEN = {
    "too long": b"",
    "too deep": b"[" * 200_000,
    "list": b"[1]",
    "no values": b"{}",
    "values that are none": b'{"values": 7}',
    "nested values": b'{"values": [[1.0]]}',
    "whole numbers": b'{"values": [1]}',
    "unknown failure": b'{"failure": "love", "message": "x"}',
    "failure without words": b'{"failure": "exit", "message": 7}',
    "no JSON": b"\xff\xfe",
}
"""What a reward might write on the socket itself, in place of a reply."""


def misbehave(kind: str) -> object:
    """Do what rewards must not do; `kind` says what."""
    if kind == "fine":
        return 0.5
    if kind == "loop":
        while True:
            pass
    if kind == "c_loop":
        return 9**9**9
    if kind == "catches_all":
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(1)
    if kind == "memory":
        return len([bytearray(1 << 20) for _ in range(100_000)])
    if kind == "raise":
        raise KeyError("gold")
    if kind == "deep":
        return misbehave(kind)
    if kind == "os_exit":
        os._exit(3)
    if kind == "sys_exit":
        sys.exit("bye")
    if kind == "signal":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "kills_group":
        os.killpg(0, signal.SIGKILL)
    if kind == "fork":
        os.fork()  # both sides return; only one may answer
        return 0.25
    if kind == "unavailable":
        raise Unavailable("the judge is down")
    if kind == "text":
        return "0.5"
    if kind in PRINTED:
        print(PRINTED[kind], flush=True)
        return 0.5
    if kind == "prints_without_end":
        while True:
            os.write(1, b"spam " * 1000)
    if kind == "closes_its_output":
        os.close(1)
        os.close(2)
        return 0.5
    if kind in RETURNED:
        return RETURNED[kind]()
    if kind in WRITTEN:
        length = 1 << 60 if kind == "too long" else len(WRITTEN[kind])
        own = length.to_bytes(8, "big") + WRITTEN[kind]
        for descriptor in sorted(map(int, os.listdir("/proc/self/fd"))):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as ours:
                ours.sendall(own)
        time.sleep(30)
    raise AssertionError(kind)


def sleeper(file: str, seconds: float) -> float:
    """Start a process of its own, note its id and wait."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(file).write_text(str(child.pid))
    time.sleep(seconds)
    return 1.0


def modules() -> float:
    return float("torch" in sys.modules)


def resident() -> float:
    import math_verify  # noqa: F401

    with open("/proc/self/status") as status:
        return next(
            float(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS")
        )


FUNCTIONS = {
    "misbehave": misbehave,
    "sleeper": sleeper,
    "modules": modules,
    "resident": resident,
}
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the memory limit needs Linux")


@pytest.fixture(scope="module")
def pool():
    """Two workers with a limit of 256 MiB each; torch runs in this process."""
    torch.ones(64, 64) @ torch.ones(64, 64)
    pool = WorkerPool(FUNCTIONS, workers=2, memory_limit=256 << 20)
    yield pool
    pool.close()


def call(pool: WorkerPool, kind: str, limit: float = 5.0) -> object:
    return pool.run([Call("misbehave", (kind,), limit=limit)])[0][0]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("loop", "timeout"),
        ("c_loop", "timeout"),
        ("catches_all", "timeout"),
        pytest.param("memory", "memory", marks=LINUX),
        ("raise", "exception"),
        ("deep", "exception"),
        ("os_exit", "exit"),
        ("sys_exit", "exit"),
        ("signal", "exit"),
        ("kills_group", "exit"),
        ("unavailable", "unavailable"),
    ],
)
def test_each_misdeed_has_a_name_and_costs_one_answer(
    pool: WorkerPool, kind: str, reason: str
) -> None:
    limits = {kind: 0.4} if reason == "timeout" else {}
    calls = [
        Call("misbehave", (one,), limit=limits.get(one, 20.0))
        for one in ("fine", "fine", kind, "fine", "fine")
    ]
    outcomes = [outcome for outcome, _ in pool.run(calls)]
    bad = outcomes.pop(2)
    assert outcomes == [[0.5]] * 4
    assert isinstance(bad, Failure) and bad.reason == reason


def test_messages_say_what_happened(pool: WorkerPool) -> None:
    assert "exit code 3" in call(pool, "os_exit").message  # type: ignore[attr-defined]
    assert "signal 11" in call(pool, "signal").message  # type: ignore[attr-defined]
    assert "KeyError: 'gold'" in call(pool, "raise").message  # type: ignore[attr-defined]
    assert "0.3 s" in call(pool, "loop", 0.3).message  # type: ignore[attr-defined]


def test_a_forked_child_does_not_answer_twice(pool: WorkerPool) -> None:
    outcomes = pool.run([Call("misbehave", (kind,)) for kind in ("fork", "fine") * 6])
    assert [outcome for outcome, _ in outcomes] == [[0.25], [0.5]] * 6


def test_what_is_no_number_comes_back_described(pool: WorkerPool) -> None:
    assert call(pool, "text") == ["str '0.5'"]


def printed(capfd: pytest.CaptureFixture[str], what: str) -> str:
    """Stderr up to where `what` has come; nothing may have come on stdout."""
    seen = ""

    def arrived() -> bool:
        nonlocal seen
        out, err = capfd.readouterr()
        assert not out
        seen += err
        return what in seen

    wait_until(arrived)
    return seen


def test_what_a_reward_prints_is_shown_without_power(
    pool: WorkerPool, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(pool, "prints") == [0.5]
    assert "hello from a reward\n" in printed(capfd, "hello")
    assert call(pool, "prints_orders") == [0.5]
    assert "a\\u001b]52;c;cm0=\\u0007b\n" in printed(capfd, "cm0=")


def test_what_a_reward_prints_is_bounded(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_output, "WORKER_LIMIT", 10_000)
    pool = WorkerPool(FUNCTIONS, workers=1, memory_limit=None)
    assert call(pool, "prints_much") == [0.5]
    first = printed(capfd, "not shown]")
    assert "more than 4096 bytes in one call" in first and first.count("much ") <= 820
    assert call(pool, "prints") == [0.5]
    assert "hello" in printed(capfd, "hello"), "another call may print again"
    outcome = call(pool, "prints_without_end", 0.5)
    assert isinstance(outcome, Failure) and outcome.reason == "timeout"
    for _ in range(3):  # also beyond the restart that the endless call has cost
        assert call(pool, "prints_much") == [0.5]
    rest = printed(capfd, "in one run")
    assert len(first) + len(rest) < 11_000
    assert call(pool, "prints") == [0.5]
    pool.close()
    time.sleep(0.3)
    assert "hello" not in rest + capfd.readouterr().err


def test_output_that_is_no_text_or_has_nowhere_to_go_harms_nobody(pool: WorkerPool) -> None:
    assert isinstance(call(pool, "prints_bytes"), Failure | list)
    assert call(pool, "closes_its_output") == [0.5]
    assert call(pool, "fine") == [0.5]


@pytest.mark.parametrize("kind", RETURNED)
@pytest.mark.parametrize("several", [True, False])
def test_what_a_reward_returns_is_bounded(pool: WorkerPool, kind: str, several: bool) -> None:
    ((outcome, _),) = pool.run([Call("misbehave", (kind,), several=several, limit=10.0)])
    if isinstance(outcome, Failure):
        assert len(outcome.message) <= 4000
    else:
        assert sum(len(str(value)) for value in outcome) < 300
    assert call(pool, "fine") == [0.5]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="finds the socket in /proc")
@pytest.mark.parametrize("kind", WRITTEN)
def test_a_reward_that_answers_for_the_worker_costs_one_answer(
    pool: WorkerPool, kind: str
) -> None:
    outcome = call(pool, kind, 10.0)
    assert isinstance(outcome, Failure) and outcome.reason == "exit"
    assert "something else than a reply" in outcome.message
    assert call(pool, "fine") == [0.5]


def test_workers_hold_no_torch_and_stay_small(pool: WorkerPool) -> None:
    assert pool.run([Call("modules")] * 4)[0][0] == [0.0]
    outcome = pool.run([Call("resident")])[0][0]
    if sys.platform == "linux":
        assert (
            isinstance(outcome, list) and isinstance(outcome[0], float) and outcome[0] < 150
        )  # MiB with sympy


def test_a_worker_that_died_while_idle_costs_nothing(pool: WorkerPool) -> None:
    assert call(pool, "fine") == [0.5]
    for worker in pool._workers:
        if worker._child is not None:
            os.killpg(worker._child.pid, signal.SIGKILL)
    assert [outcome for outcome, _ in pool.run([Call("misbehave", ("fine",))] * 4)] == [
        [0.5]
    ] * 4


def test_large_arguments_and_unsendable_ones(pool: WorkerPool) -> None:
    class Lock:
        def __reduce__(self) -> object:
            raise TypeError("cannot pickle this")

    outcomes = pool.run(
        [Call("misbehave", ("fine" + " " * (8 << 20),)), Call("misbehave", (Lock(),))]
    )
    assert isinstance(outcomes[0][0], Failure) and outcomes[0][0].reason == "exception"
    assert isinstance(outcomes[1][0], Failure) and "cannot be sent" in outcomes[1][0].message
    assert call(pool, "fine") == [0.5]


def test_starting_is_quick_and_restarting_too() -> None:
    pool = WorkerPool(FUNCTIONS, workers=1, memory_limit=None)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        assert call(pool, "fine") == [0.5]
        seconds.append(time.perf_counter() - began)
        pool.close()
    assert min(seconds) < 2.0, seconds  # 0.15 s where nothing else runs


def test_functions_that_cannot_travel_or_load_are_refused() -> None:
    lock = __import__("threading").Lock()
    with pytest.raises(LoadError, match=r"'held'.*@in_process"):
        WorkerPool({"held": lambda rollout: lock.locked()}, workers=1, memory_limit=None)

    class Bomb:
        def __reduce__(self) -> object:
            return int, ("no number",)

        def __call__(self, rollout: object) -> float:
            return 1.0

    pool = WorkerPool({"bomb": Bomb()}, workers=1, memory_limit=None)
    with pytest.raises(LoadError, match="invalid literal"):
        pool.run([Call("bomb")])


def test_functions_of_a_file_that_no_name_leads_to_travel_by_value(tmp_path: Path) -> None:
    file = tmp_path / "loose.py"
    file.write_text("FACTOR = 3\n\ndef pay(x):\n    return FACTOR * x\n")
    spec = importlib.util.spec_from_file_location("loose_rewards", file)
    assert spec is not None and spec.loader is not None
    loose = importlib.util.module_from_spec(spec)
    sys.modules["loose_rewards"] = loose
    spec.loader.exec_module(loose)
    pool = WorkerPool({"pay": functools.partial(loose.pay, 2)}, workers=1, memory_limit=None)
    assert pool.run([Call("pay")])[0][0] == [6.0]
    pool.close()
    del sys.modules["loose_rewards"]


def alive(pid: int) -> bool:
    """Does the process run (a zombie does not)?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@LINUX
def test_processes_of_a_reward_end_with_it(pool: WorkerPool, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    outcome = pool.run([Call("sleeper", (str(file), 60.0), limit=1.5)])[0][0]
    assert isinstance(outcome, Failure) and outcome.reason == "timeout"
    assert wait_until(lambda: not alive(int(file.read_text())))


SCRIPT = """
    import sys, time
    sys.path.insert(0, {root!r})
    from mmrl.rewards.worker_pool import Call, WorkerPool

    def stay(file, seconds):
        import os, pathlib, subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        pathlib.Path(file).write_text(f"{{os.getpid()}} {{os.getppid()}} {{child.pid}}")
        if seconds:
            9**9**9
        return 1.0

    pool = WorkerPool({{"stay": stay}}, workers=1, memory_limit=None)
    pool.run([Call("stay", ({file!r}, {seconds}), limit=600.0)])
    {after}
"""


@LINUX
@pytest.mark.parametrize("busy", [True, False])
def test_nothing_survives_kill_9_of_the_trainer(tmp_path: Path, busy: bool) -> None:
    file = tmp_path / "pids"
    root = str(Path(__file__).parents[2])
    code = SCRIPT.format(root=root, file=str(file), seconds=int(busy), after="time.sleep(600)")
    trainer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    assert wait_until(lambda: file.exists() and len(file.read_text().split()) == 3)
    pids = [int(pid) for pid in file.read_text().split()]
    time.sleep(0.3)
    assert all(alive(pid) for pid in pids)
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    assert wait_until(lambda: not any(alive(pid) for pid in pids))


@LINUX
def test_nothing_survives_the_end_of_a_script(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    root = str(Path(__file__).parents[2])
    code = SCRIPT.format(root=root, file=str(file), seconds=0, after="")
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=30)
    assert wait_until(lambda: not any(alive(int(pid)) for pid in file.read_text().split()))


async def patience(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return 1.0


def test_coroutines_run_together_under_deadlines() -> None:
    loop = AsyncLoop()
    calls = [Call("patience", (seconds,), limit=0.5) for seconds in (0.2, 0.2, 60.0, 0.2)]
    began = time.perf_counter()
    outcomes = loop.finish(loop.begin(lambda call: patience(*call.args), calls), calls)
    assert time.perf_counter() - began < 2.0
    assert [
        outcome if isinstance(outcome, list) else outcome.reason for outcome, _ in outcomes
    ] == [
        [1.0],
        [1.0],
        "timeout",
        [1.0],
    ]
    loop.close()


def test_functions_in_this_process_fail_by_name_too() -> None:
    assert guarded(lambda: torch.tensor(0.5), several=False)[0] == [0.5]
    assert guarded(lambda: torch.tensor([0.0, 1.0]), several=True)[0] == [0.0, 1.0]
    outcome = guarded(lambda: 1 / 0, several=False)[0]
    assert isinstance(outcome, Failure) and outcome.reason == "exception"
