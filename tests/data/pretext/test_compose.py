"""Composed tasks keep the contract, and mean what they say."""

from functools import cache

import numpy as np
import pytest

from mmrl.data.pretext.audit.conformance import CHECKS, Case, drawn_cases
from mmrl.data.pretext.catalogue import find
from mmrl.data.pretext.compose import BlindTask, LocatedTask, NoisyTask, OptionsTask
from mmrl.data.pretext.compose_several import BatchedTask, ChainedTask, InvertedTask
from mmrl.data.pretext.contract import Reject, Sample
from mmrl.data.pretext.craft.procedural import landscape, scene
from mmrl.data.pretext.stream.samples import make

COMPOSED = (
    NoisyTask(find("rotation")),
    BatchedTask(find("relative-position"), 2),
    OptionsTask(find("overlay-count"), 4),
    LocatedTask(find("odd-tile")),
    InvertedTask(find("rotation"), 3),
    ChainedTask(find("mosaic"), find("overlay-count")),
)


@cache
def cases(place: int) -> list[Case]:
    return drawn_cases(COMPOSED[place], levels=(None,), each=3)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("place", range(len(COMPOSED)))
def test_composed_tasks_keep_the_contract(place: int, check) -> None:
    check(COMPOSED[place], cases(place))


def test_names_tell_the_parts() -> None:
    assert [task.name for task in COMPOSED][:3] == [
        "noise-rotation",
        "batch2-relative-position",
        "choice4-overlay-count",
    ]
    assert (
        COMPOSED[-1].name == "chain-mosaic-overlay-count" and "then_most" in COMPOSED[-1].knobs
    )


def test_noise_changes_pixels_only() -> None:
    plain, noisy = find("rotation"), NoisyTask(find("rotation"))
    media = [scene(0, 1)]
    recipe = lambda task: task.propose(media, task.defaults(), streams())  # noqa: E731

    def streams():
        from mmrl.ground.seeds import Streams

        return Streams("same")

    first, second = recipe(plain), recipe(noisy)
    assert first.truth == second.truth
    apart = np.abs(first.visuals[0].pixels.astype(int) - second.visuals[0].pixels)
    assert 5 < apart.mean() < 15


def test_blind_pictures_show_nothing() -> None:
    sample = make(BlindTask(find("mosaic")), [scene(0, index) for index in range(4)])
    assert isinstance(sample, Sample) and all(
        (visual.pixels == 128).all() for visual in sample.visuals
    )


def test_batches_pay_the_mean() -> None:
    task = BatchedTask(find("rotation"), 2)
    truth = {
        "answer": None,
        "parts": [
            {"answer": 90, "step": 90, "near": 0.0},
            {"answer": 180, "step": 90, "near": 0.0},
        ],
    }
    pay = lambda body: task.score(f"<answer>{body}</answer>", truth)  # noqa: E731
    assert pay("90 | 180").correct and pay("90 | 0").reward == 0.5 and not pay("90 | 0").correct
    assert pay("90 | x").reward == 0.5 and pay("90").reward == pay("90 | 180 | 0").reward == 0.0


def test_choices_hold_the_truth_once_and_no_second_truth() -> None:
    task, inner = OptionsTask(find("overlay-count"), 4), find("overlay-count")
    for index in range(6):
        sample = make(task, [landscape(0, index)], index=index)
        assert isinstance(sample, Sample)
        text = sample.messages[0]["content"][-1]["text"]
        options = (
            text.split("Options: ")[-1]
            .split("right? ")[-1]
            .split(". The answer")[0]
            .split("; ")
        )
        bodies = [option.split(": ", 1)[1] for option in options]
        assert len(set(bodies)) == 4
        counts = inner.format(
            {"answer": [sample.meta["painted"].count(name) for name in sample.meta["asked"]]}
        )
        assert bodies["ABCD".index(sample.truth["answer"])] == counts


def test_chains_ask_about_the_chosen_picture_only() -> None:
    task = ChainedTask(find("mosaic"), find("overlay-count"))
    truth = {
        "answer": None,
        "first": {"answer": "B", "options": ["A", "B"]},
        "second": {"answer": [3], "most": 5},
    }
    pay = lambda body: task.score(f"<answer>{body}</answer>", truth).reward  # noqa: E731
    assert (
        pay("B | 3") == 1.0
        and pay("A | 3") == 0.0
        and 0.5 < pay("B | 2") < 1.0
        and pay("B") == 0.0
    )


def test_locate_asks_for_the_place_too() -> None:
    task = LocatedTask(find("odd-tile"))
    truth = {
        "answer": None,
        "inner": {"answer": "2", "options": ["1", "2"]},
        "box": [0, 0, 500, 500],
    }
    pay = lambda body: task.score(f"<answer>{body}</answer>", truth).reward  # noqa: E731
    assert pay("2 | 0, 0, 500, 500") == 1.0 and pay("2 | 600, 600, 700, 700") == 0.5
    assert pay("1 | 0, 0, 500, 250") == pytest.approx(0.25) and pay("2") == 0.0


def test_inversion_and_places_refuse_what_they_cannot_show() -> None:
    found = make(InvertedTask(find("quality-order")), [scene(0, 1)])
    assert isinstance(found, Reject) and found.reason == "several-visuals"
    sample = make(InvertedTask(find("rotation"), 3), [scene(0, 1)])
    assert isinstance(sample, Sample) and len(sample.visuals) == 3
    many = [
        make(
            LocatedTask(find("overlay-count")),
            [landscape(0, i)],
            {"asked": 3, "most": 9},
            index=i,
        )
        for i in range(4)
    ]
    assert all(isinstance(entry, Reject) and entry.reason == "no-single-box" for entry in many)


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="at least two"):
        BatchedTask(find("rotation"), 1)
    with pytest.raises(ValueError, match="2 to 10"):
        OptionsTask(find("overlay-count"), 11)
