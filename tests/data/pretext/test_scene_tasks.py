"""Drawn scenes, mazes, clocks, charts and tables: the truth is what the picture shows."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from mmrl.data.pretext.contract import Sample, Task
from mmrl.data.pretext.stream.samples import make
from mmrl.data.pretext.surface import Surface
from mmrl.data.pretext.tasks import charts, scene_count
from mmrl.data.pretext.tasks.charts import (
    ASKS,
    ChartReadingTask,
    TableReadingTask,
    draw_numbers,
    pose,
)
from mmrl.data.pretext.tasks.clock import ClockTask
from mmrl.data.pretext.tasks.maze import STEPS, MazeExitTask, MazePathTask
from mmrl.data.pretext.tasks.scene_count import SceneCompareTask, SceneCountTask, kind_name
from mmrl.ground.seeds import Streams


def drawn(task: Task, index: int = 0, **knobs) -> Sample:
    sample = make(task, (), knobs, index=index)
    assert isinstance(sample, Sample), sample
    return sample


def matches(thing, asked) -> bool:
    size = "large" if thing.size == scene_count.DIAMETERS["large"] else "small"
    look = {"colour": thing.colour, "shape": thing.shape, "size": size}
    return all(look[name] == value for name, value in asked.items())


@pytest.mark.parametrize("properties", [1, 2, 3])
def test_exactly_the_chosen_objects_match(properties):
    rng = np.random.default_rng(properties)
    for _ in range(40):
        places = [(20.0 + 28 * i, 20.0 + 20 * (i * 7 % 12)) for i in range(12)]
        asked = scene_count._asked(properties, rng)
        assert len(asked) == properties
        found = scene_count._side(places, 3, rng)
        assert found is not None
        named, inside, side = found
        axis, sign = scene_count.SIDES[side]
        assert (
            all(sign * (places[i][axis] - places[named][axis]) > 0 for i in inside)
            and named not in inside
        )
        chosen = set(inside[:3])
        things = scene_count._objects(places, asked, chosen, set(inside), named, rng)
        assert {i for i in inside if matches(things[i], asked)} == chosen
        looks = [(thing.colour, thing.shape) for thing in things]
        assert looks.count(looks[named]) == 1


def test_counts_are_uniform_and_marked():
    counts = Counter()
    for index in range(140):
        sample = drawn(SceneCountTask(), index, most=6, side=index % 2 == 0)
        counts[sample.truth["answer"]] += 1
        boxes = sample.evidence[0].boxes
        assert len(boxes) == sample.truth["answer"]
    assert set(counts) == set(range(7)) and max(counts.values()) < 2.2 * 140 / 7


def test_comparisons_follow_the_counts():
    seen = set()
    for index in range(30):
        sample = drawn(SceneCompareTask(), index)
        first, second = sample.meta["counts"]
        assert sample.truth["answer"] == (
            "more" if first > second else "fewer" if first < second else "equal"
        )
        assert min(first, second) >= 1 and max(first, second) <= 6 and abs(first - second) <= 2
        seen.add(sample.truth["answer"])
    assert seen == {"more", "fewer", "equal"}


def test_kinds_are_named():
    assert (
        kind_name({"size": "small", "colour": "red", "shape": "cross"}, plural=True)
        == "small red crosses"
    )
    assert kind_name({"colour": "blue"}) == "blue object"


def regions(sample: Sample) -> np.ndarray:
    """Connected parts of the picture that are not wall."""
    pixels = sample.visuals[0].pixels
    walls = (pixels < 60).all(axis=-1)
    return ndimage.label(~walls)[0]


def test_only_the_right_exit_is_connected_in_the_picture():
    for index in range(5):
        sample = drawn(MazeExitTask(), index, exits=3)
        parts = regions(sample)
        inner = np.unique(parts[20:-20, 20:-20])
        assert len(inner[inner > 0]) == 3
        (sx0, sy0, _, _), (ex0, ey0, _, _) = sample.evidence[0].boxes
        assert parts[sy0 + 5, sx0 + 5] == parts[ey0 + 5, ex0 + 5]


def test_maze_paths_walk_through_white():
    task = MazePathTask()
    for index in range(5):
        sample = drawn(task, index, size=6, steps=7)
        truth = sample.truth
        assert len(truth["answer"]) == 7
        boxes = sample.evidence[0].boxes
        walls = (sample.visuals[0].pixels < 60).all(axis=-1)
        for a, b in pairwise(boxes):
            start = (
                ((a[1] + a[3]) // 2, a[0] + 5)
                if a[0] == b[0]
                else (a[1] + 5, (a[0] + a[2]) // 2)
            )
            end = (start[0] + b[1] - a[1], start[1] + b[0] - a[0])
            line = walls[
                min(start[0], end[0]) : max(start[0], end[0]) + 1,
                min(start[1], end[1]) : max(start[1], end[1]) + 1,
            ]
            assert not line.any()


def test_maze_answers():
    task, sample = MazePathTask(), drawn(MazePathTask(), 1)
    way, truth = sample.truth["answer"], sample.truth
    opposite = {"up": "down", "down": "up", "left": "right", "right": "left"}
    detour = [way[0], opposite[way[0]], *way]
    assert task.score(Surface().wrap(", ".join(detour)), truth).correct
    assert task.score(Surface().wrap(" ".join(way)), truth).correct
    assert task.score(Surface().wrap(", ".join(way[:3])), truth).reward == pytest.approx(
        0.2 * 3 / 6
    )
    assert task.score(Surface().wrap(", ".join(way * 5)), truth).reward == 0.0
    assert task.score(Surface().wrap("north"), truth).reward == 0.0
    blocked = next(move for move in STEPS if not _opens(truth, move))
    assert (
        task.score(Surface().wrap(", ".join([blocked, opposite[blocked], *way])), truth).reward
        == 0.0
    )


def _opens(truth, move: str) -> bool:
    row, column = truth["start"]
    after = (row + STEPS[move][0], column + STEPS[move][1])
    return [*min((row, column), after), *max((row, column), after)] in truth["open"]


def test_clock_times():
    task, truth = ClockTask(), {"answer": 535, "step": 5, "gamma": 0.2}
    for text in ("8:55", "08:55", "20:55", "8.55"):
        assert task.score(Surface().wrap(text), truth).correct
    assert task.format({"answer": 0}) == "12:00" and task.format({"answer": 45}) == "12:45"
    near, far = (task.score(Surface().wrap(text), truth).reward for text in ("9:00", "2:55"))
    assert 0.19 > near > far == 0.0
    for text in ("8:60", "24:10", "855", "five to nine"):
        assert task.score(Surface().wrap(text), truth).reward == 0.0


def test_clock_hands_point_where_they_should():
    sample = drawn(ClockTask(), 3, step=15, numerals="none", tilt=0)
    again = drawn(ClockTask(), 3, step=15, numerals="none", tilt=0)
    assert np.array_equal(sample.visuals[0].pixels, again.visuals[0].pixels)


@pytest.mark.parametrize("kind", ASKS)
def test_chart_answers_follow_from_the_numbers(kind):
    answers = Counter()
    for seed in range(200):
        rng = Streams("chart", kind, seed)
        numbers, question = pose(draw_numbers(5, 2, 10, rng), kind, 10, "in", rng.selection)
        read = [int(numbers.values[entry]) for entry in question.entries]
        if kind == "above":
            bound = int(question.text.split("more than ")[1].split()[0])
            expected = sum(value > bound for value in read)
        else:
            expected = {
                "value": read[0],
                "difference": abs(read[0] - read[-1]),
                "largest": max(read),
            }[kind]
        assert question.answer == expected and 0 <= expected <= question.most
        assert all(0 <= value <= 10 for value in numbers.values.ravel())
        answers[expected] += 1
    assert max(answers.values()) <= 200 * (0.30 if kind == "above" else 0.18)


def test_bars_are_as_high_as_their_numbers():
    rng = Streams("bars")
    numbers = draw_numbers(4, 1, 20, rng)
    picture, boxes = charts._chart(numbers, 20, True, rng.appearance)
    for row in range(4):
        x0, _, x1, base = boxes[row, 0]
        column = picture[:, (x0 + x1) // 2].astype(int)
        coloured = (column.max(axis=-1) - column.min(axis=-1) > 60)[25:base]
        assert abs(coloured.sum() - 12 * numbers.values[row, 0]) <= 2


@pytest.mark.parametrize(
    "task", [ChartReadingTask(), TableReadingTask()], ids=["chart", "table"]
)
def test_chart_chance_depends_on_the_question(task):
    rows = int(task.defaults()["categories" if task.name == "chart-reading" else "rows"])
    top = int(task.defaults()["top"])
    assert task.chance(task.complete({"ask": "value"})) == pytest.approx(1 / (top + 1))
    assert task.chance(task.complete({"ask": "above"})) == pytest.approx(1 / (rows + 1))


def test_redrawn_boards_pay_likeness_and_only_boards():
    from mmrl.data.pretext.tasks.redraw import GROUND, RedrawTask, drawing

    task = RedrawTask()
    truth = {
        "answer": [["large", "red", "circle", 1, 1], ["small", "blue", "star", 3, 2]],
        "cells": 3,
    }

    def pay(body):
        return task.score(f"<answer>{body}</answer>", truth)

    assert pay("Small blue star 3 2; large, red, circle, 1, 1").correct
    near, half, wrong = (
        pay("large red circle 1 1; small blue star 3 3").reward,
        pay("large red circle 1 1").reward,
        pay("large red circle 3 3; small blue star 1 3").reward,
    )
    assert 1.0 > half > near > 0.3 and wrong == 0.0
    recoloured = pay("large red circle 1 1; small cyan star 3 2")
    assert half < recoloured.reward < 1.0 and not recoloured.correct
    for bad in (
        "large red circle 1 1; small blue star 1 1",
        "large red circle 4 1",
        "large red circle 0 1",
        "red circle",
    ):
        assert pay(bad).reward == 0.0 and not pay(bad).correct
    board = drawing([("large", "red", "square", 2, 1)], 3, 40, lines=True)
    assert tuple(board[20, 60]) == (214, 48, 49) and tuple(board[20, 20]) == (GROUND,) * 3
