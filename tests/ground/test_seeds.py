"""Keyed random numbers: separate streams, no shift, the same on every machine."""

import numpy as np

from mmrl.ground.seeds import Streams, digest, philox


def test_a_stream_does_not_move_when_another_is_read() -> None:
    plain, disturbed = Streams("sample", 7), Streams("sample", 7)
    disturbed.geometry.random(1000)
    assert np.array_equal(plain.selection.random(8), disturbed.selection.random(8))
    assert not np.array_equal(plain.geometry.random(8), disturbed.geometry.random(8))


def test_a_stream_continues_when_asked_for_again() -> None:
    streams, whole = Streams("a"), Streams("a").appearance.random(6)
    assert np.array_equal(
        np.concatenate([streams.appearance.random(2), streams["appearance"].random(4)]), whole
    )


def test_identity_type_and_order_matter() -> None:
    values = {
        digest("1"),
        digest(1),
        digest(1.0),
        digest("1", "2"),
        digest("2", "1"),
        digest("12"),
        digest(["1", "2"]),
    }
    assert len(values) == 7
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})


def test_numbers_are_those_of_philox_on_any_machine() -> None:
    assert digest("golden").hex() == "563ae022a481636a160b4b093ac755eb"
    assert philox("golden", 0).integers(0, 2**31, size=4).tolist() == [
        467709714,
        1796461127,
        19499082,
        938096990,
    ]


def test_children_differ_from_their_parent_and_each_other() -> None:
    parent = Streams("x")
    draws = [
        parent.child("a").wording.random(),
        parent.child("b").wording.random(),
        parent.wording.random(),
    ]
    assert len(set(draws)) == 3
