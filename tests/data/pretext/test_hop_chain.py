"""Hop chains: the executor against a plain oracle, and what every accepted program must keep."""

from collections import Counter
from dataclasses import replace
from math import dist

import numpy as np
import pytest

from mmrl.data.pretext.contract import Sample
from mmrl.data.pretext.craft.hop_programs import (
    ARITHS,
    READS,
    SIDES,
    draw_program,
    matters,
    run,
)
from mmrl.data.pretext.craft.scene_objects import Thing, shape_colour_pairs, spread_out
from mmrl.data.pretext.stream.samples import make
from mmrl.data.pretext.surface import Surface
from mmrl.data.pretext.tasks.hop_chain import MATTERS, HopChainTask

TASK = HopChainTask()


def scene(seed: int, count: int = 9) -> list[Thing]:
    rng = np.random.default_rng(seed)
    sizes = rng.uniform(20, 50, size=count)
    places = spread_out(sizes.tolist(), 288, 384, rng)
    assert places is not None
    return [
        Thing(shape, colour, x, y, float(size), int(rng.integers(1, count + 1)))
        for (shape, colour), (x, y), size in zip(
            shape_colour_pairs(count, rng), places, sizes, strict=True
        )
    ]


def oracle(program, things: list[Thing]) -> list[int]:
    """Results without any margin, written independently; raises where nothing fits."""
    out: list[int] = []
    for name, argument in program:
        here = things[out[-1]] if out and out[-1] < len(things) else None
        along = (lambda t: t.y) if argument in ("above", "below") else (lambda t: t.x)
        sign = SIDES[argument][1] if argument in SIDES else 0
        colour_count = sum(t.colour == argument for t in things)
        if name in ("largest", "smallest"):
            chosen = (max if name == "largest" else min)(things, key=lambda t: t.size)
        elif name == "edge":
            chosen = (max if sign > 0 else min)(things, key=along)
        elif name == "object":
            (chosen,) = [t for t in things if t.name == argument]
        elif name == "nearest":
            beyond = [
                t for t in things if t is not here and sign * along(t) > sign * along(here)
            ]
            chosen = min(beyond, key=lambda t: dist((t.x, t.y), (here.x, here.y)))
        elif name == "same":
            (chosen,) = [
                t
                for t in things
                if t is not here and getattr(t, argument) == getattr(here, argument)
            ]
        elif name == "index":
            chosen = sorted(things, key=along)[here.digit - 1]
        elif name == "digit":
            out.append(here.digit)
            continue
        elif name == "count same":
            out.append(sum(getattr(t, argument) == getattr(here, argument) for t in things))
            continue
        elif name == "count side":
            out.append(sum(sign * along(t) > sign * along(here) for t in things))
            continue
        else:
            now = out[-1]
            out.append(
                {"plus": now + colour_count, "minus": abs(now - colour_count)}.get(
                    name, now * colour_count if name == "times" else max(now, colour_count)
                )
            )
            continue
        out.append(next(i for i, t in enumerate(things) if t is chosen))
    return out


def test_executor_equals_the_oracle():
    clear = 0
    for seed in range(200):
        things, rng = scene(seed), np.random.default_rng(seed)
        for _ in range(3):
            program = draw_program(int(rng.integers(3, 7)), int(rng.integers(0, 2)), rng)
            results = run(program, things)
            if results is not None:
                clear += 1
                assert results == oracle(program, things)
    assert clear > 50


def samples(count: int = 12, **knobs) -> list[Sample]:
    made = [make(TASK, (), knobs, index=index) for index in range(count)]
    assert all(isinstance(sample, Sample) for sample in made)
    return [sample for sample in made if isinstance(sample, Sample)]


def rebuilt(sample: Sample) -> tuple[list, list[Thing]]:
    """Program and scene of a sample, drawn again."""
    from mmrl.data.pretext.tasks import hop_chain
    from mmrl.ground.seeds import Streams

    rng = Streams(dict(sample.recipe))
    things = hop_chain._scene(int(sample.knobs["objects"]), rng.geometry)
    assert things is not None
    target = int(rng.selection.integers(1, int(sample.knobs["most"]) + 1))
    found = hop_chain._program(things, sample.knobs, target, rng.selection)
    assert found is not None
    return found[0], found[1]


@pytest.mark.parametrize("hops", [2, 4, 6])
def test_accepted_programs_are_clear_matter_and_have_the_asked_length(hops):
    for sample in samples(8, hops=hops, objects=10):
        program, things = rebuilt(sample)
        results = run(program, things)
        assert results is not None and results == sample.meta["results"]
        assert len(program) == hops and results[-1] == sample.truth["answer"]
        assert matters(program, results, things, MATTERS)
        rng = np.random.default_rng(0)
        for _ in range(5):
            moved = [
                replace(t, x=t.x + float(rng.uniform(-3, 3)), y=t.y + float(rng.uniform(-3, 3)))
                for t in things
            ]
            assert oracle(program, moved) == results


def test_unvisited_digits_do_not_matter():
    for sample in samples(8):
        program, things = rebuilt(sample)
        visited = {
            r
            for hop, r in zip(program, sample.meta["results"], strict=True)
            if hop[0] not in READS + ARITHS
        }
        other = [
            t if i in visited else replace(t, digit=t.digit % 9 + 1)
            for i, t in enumerate(things)
        ]
        assert run(program, other) == sample.meta["results"]


@pytest.mark.parametrize("part", ["second-half", "last-hop"])
def test_suffixes_of_the_same_scene_keep_the_answer(part):
    for index in range(6):
        knobs = {"hops": 5, "objects": 10}
        whole = make(TASK, (), knobs, index=index)
        assert isinstance(whole, Sample)
        program, things = rebuilt(whole)
        from mmrl.data.pretext.tasks.hop_chain import _asked

        asked, start = _asked(program, list(whole.meta["results"]), things, part)
        results = run(asked, things)
        assert results is not None and results[-1] == whole.truth["answer"]
        assert start == (2 if part == "second-half" else 3) and len(asked) == 5 - start


def test_answers_are_balanced():
    counts = Counter(sample.truth["answer"] for sample in samples(120, objects=10))
    assert set(counts) == set(range(1, 10)) and max(counts.values()) / 120 <= 0.2


def test_numbers_are_read_in_several_forms():
    truth = {"answer": 7, "least": 1, "most": 9}
    for text in ("7", "7.0", "seven", "Seven.", "+7"):
        assert TASK.score(Surface().wrap(text), truth).correct
    for text in ("7 8", "7, 7", "seventy", "7.5", "the answer is 7"):
        assert TASK.score(Surface().wrap(text), truth).reward == 0.0


def test_trace_pays_the_right_prefix():
    sample = samples(1, trace=True)[0]
    first, *rest = sample.truth["trace"]
    wrong = sample.truth["answer"] % 9 + 1
    assert TASK.score(
        Surface().wrap(f"{first}, grey blob, {wrong}"), sample.truth
    ).reward == pytest.approx(0.2 / 4)
    full = ", ".join([first, *rest, str(wrong)])
    assert TASK.score(Surface().wrap(full), sample.truth).reward == pytest.approx(0.2 * 3 / 4)
    assert TASK.score(Surface().wrap(str(sample.truth["answer"])), sample.truth).correct


def test_too_short_chains_are_refused():
    with pytest.raises(ValueError, match="arith"):
        make(TASK, (), {"hops": 2, "arith": 1})
