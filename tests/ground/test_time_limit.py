"""What never returns is ended, what returns pays nothing, and nothing is left over."""

import threading
import time

import pytest

from mmrl.ground.time_limit import GivenUp, TimeLimit, TooLong


def endless() -> None:
    while True:
        pass


def test_an_endless_block_is_ended() -> None:
    limit = TimeLimit(seconds=0.2)
    began = time.monotonic()
    with (
        pytest.raises(TooLong, match=r"The loop did not return within 0\.2 s"),
        limit.hold("The loop"),
    ):
        endless()
    assert time.monotonic() - began < 20
    # Nothing comes later.
    for _ in range(100_000):
        pass
    time.sleep(0.3)


def test_nothing_on_the_way_swallows_it() -> None:
    def stubborn() -> None:
        while True:
            try:
                endless()
            except Exception:
                continue

    with pytest.raises(TooLong), TimeLimit(seconds=0.2).hold("It"):
        stubborn()


def test_it_is_given_up_after_several_in_a_row() -> None:
    limit = TimeLimit(seconds=0.1, patience=2)
    for error in (TooLong, None, TooLong, GivenUp):
        if error is None:
            with limit.hold("It"):
                pass
            continue
        with pytest.raises(error), limit.hold("It"):
            endless()


def test_memory_without_end_is_ended() -> None:
    def swell() -> None:
        held = []
        while True:
            held.append(bytes(bytearray(b"x" * 5_000_000)))

    began = time.monotonic()
    with pytest.raises(TooLong), TimeLimit(seconds=60).hold("It"):
        swell()
    assert time.monotonic() - began < 50


def test_errors_of_the_block_pass_and_other_threads_are_left_alone() -> None:
    limit = TimeLimit(seconds=0.2)
    with pytest.raises(KeyError), limit.hold("It"):
        raise KeyError
    done = []

    def other() -> None:
        until = time.monotonic() + 1
        while time.monotonic() < until:
            pass
        done.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(TooLong), limit.hold("It"):
        endless()
    thread.join()
    assert done


def test_waiting_is_not_running() -> None:
    """A machine that is busy with others makes nobody late."""
    with TimeLimit(seconds=0.1).hold("It"):
        time.sleep(0.5)


def test_it_costs_next_to_nothing() -> None:
    limit = TimeLimit()
    began = time.process_time()
    for _ in range(2000):
        with limit.hold("It"):
            pass
    assert time.process_time() - began < 0.5
