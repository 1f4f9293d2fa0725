"""Plain lines without a terminal, a bar with one; how rate and time left are told after a resume."""

from __future__ import annotations

import io
import sys

import pytest

from mmrl.ground import progress as module
from mmrl.ground.progress import Progress

METRICS = {"reward/total": 0.25, "loss/total": -1.0, "time/total": 3.0}


class Clock:
    """Time that passes only when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock)
    return clock


def lines(capsys):
    return capsys.readouterr().err.splitlines()


def test_lines_come_at_the_start_the_end_and_after_a_while(clock, capsys):
    with Progress(10) as progress:
        for step in range(1, 11):
            clock.now += 4.0
            progress.update(step, METRICS)
    found = lines(capsys)
    assert [line.split()[1] for line in found] == ["1/10", "4/10", "7/10", "10/10"]
    assert (
        found[1] == "step 4/10  0.25 steps/s  24 s left  reward/total 0.250  loss/total -1.000"
    )


def test_an_evaluation_is_always_shown(clock, capsys):
    with Progress(10) as progress:
        for step in (1, 2, 3):
            clock.now += 0.1
            progress.update(step, {**METRICS, "eval/accuracy": 0.5} if step == 2 else METRICS)
    assert [line.split()[1] for line in lines(capsys)] == ["1/10", "2/10"]


def test_the_rate_counts_only_this_process(clock, capsys):
    with Progress(100, done=90) as progress:
        clock.now += 2.0
        progress.update(91, METRICS)
    assert lines(capsys) == [
        "step 91/100  0.50 steps/s  18 s left  reward/total 0.250  loss/total -1.000"
    ]


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    with Progress(3, done=1) as progress:
        progress.update(2, METRICS)
        progress.update(3, METRICS)
    assert "3/3" in screen.getvalue() and "reward/total 0.250" in screen.getvalue()
    assert "steps/s" not in screen.getvalue(), "no plain lines beside the bar"
