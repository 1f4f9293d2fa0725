"""Plain lines without a terminal, a bar with one; how rate and time left are told after a resume."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest

from mmrl.ground import progress as module
from mmrl.ground.progress import Progress, busy, in_steps, in_time

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
    assert "s left  reward" not in screen.getvalue(), "no plain lines beside the bar"


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_a_bar_never_wraps_and_shows_what_the_run_watches_first(monkeypatch, columns):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    metrics = {f"watched/{n}": 0.5 for n in range(6)}
    with Progress(12_000, watch=tuple(metrics)) as progress:
        for step in range(1, 41):
            progress.update(step, {"reward/total": 0.01 * step, "loss/total": 1.0, **metrics})
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    widths = [len(line.rstrip()) for line in re.split(r"[\r\n]", drawn)]
    assert max(widths) <= columns
    assert "reward/total 0.400 ↑" in drawn if columns > 80 else "reward/total" in drawn
    assert ("watched/0" in drawn) == (columns >= 100) and ("loss/total" in drawn) == (
        columns >= 200
    )


@pytest.mark.parametrize(
    ("rewards", "trend"),
    [
        ([0.1] * 19, ""),
        ([0.1] * 20, " →"),
        ([0.1] * 10 + [0.2] * 10, " ↑"),
        ([0.2] * 10 + [0.1] * 10, " ↓"),
        ([0.0] * 50 + [0.1] * 10, " ↑"),
    ],
)
def test_the_trend_compares_ten_steps_with_the_ten_before(capsys, rewards, trend):
    progress = Progress(len(rewards))
    for step, reward in enumerate(rewards, 1):
        progress.update(step, {"reward/total": reward})
    assert progress.trend == trend
    assert lines(capsys)[-1].endswith(f"reward/total {rewards[-1]:.3f}{trend}")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (119.4, "119 s"),
        (120, "2 min"),
        (3599, "1 h 0 min"),
        (86_400 * 2, "2 d 0 h"),
    ],
)
def test_times_read_like_times(seconds, text):
    assert in_time(seconds) == text


def test_slow_steps_are_told_in_seconds():
    assert in_steps(0.5) == "0.50 steps/s" and in_steps(0.02) == "50 s/step"
    assert in_steps(0.0) == "0.00 steps/s"


def test_what_is_slow_is_not_silent_and_what_is_quick_is(monkeypatch, capsys):
    monkeypatch.setattr(module, "QUIET", 0.05)
    with busy("Loading", seconds=0.05):
        time.sleep(0.3)
    told = lines(capsys)
    assert len(told) >= 2 and all(line.startswith("Loading … ") for line in told)
    monkeypatch.setattr(module, "QUIET", 5.0)
    began = time.monotonic()
    with pytest.raises(KeyError), busy("Loading"):
        raise KeyError
    assert lines(capsys) == [] and time.monotonic() - began < 2
