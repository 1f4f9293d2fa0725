"""NP-Engine's ten problems (arXiv 2510.16476) as tasks, in a picture or in words.

Each problem draws an instance, values an answer (None if it is no solution), and knows a reference: the exact optimum
at the default sizes, a good heuristic above (`np_solvers`). With ratio = reference/value where less is better, else
value/reference:

    reward = 0.1 + 0.9 · min(1, ratio)²  for a valid solution, 0 otherwise;  1, and correct, if as good as the reference

Departures from NP-Engine's validators (`compat_np`): repeated entries, empty answers, cycles of one or two nodes are no
solutions; no attendee sits in two meetings at once; a bisection names one half; everything counts from 1; cities lie in
the plane; instances are small enough to draw. The paper's reconstructed reward pays 0.1 also for readable answers that
are no solution; here these earn nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator

from mmrl.data.pretext.contract import (
    Array,
    Draft,
    Evidence,
    Knob,
    Knobs,
    Proposal,
    RawMedia,
    Reject,
    Score,
    Task,
    Truth,
    Visual,
)
from mmrl.data.pretext.craft import np_graphs as graphs
from mmrl.data.pretext.craft import np_pictures as pictures
from mmrl.data.pretext.craft import np_selection as selection
from mmrl.data.pretext.craft.answer_forms import all_or_error, listed
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.ground.seeds import Streams, philox

FLOOR = 0.1
"""Pay for any valid solution."""
POWER = 2.0
SIMULATED, GUESSES, EXACT = 400, 5, 12
"""Instances (a fifth above size `EXACT`) and guesses per instance for the chance levels."""

Instance = dict[str, Any]


@dataclass(frozen=True)
class NPProblem:
    """What one problem can do."""

    rule: str
    """The question, for a reader who sees the instance."""
    form: str
    """What an answer looks like."""
    smaller: bool
    """Is less better?"""
    draw: Callable[[int, Generator], tuple[Instance, Sequence[Any]]]
    """An instance of this size, and its reference solution."""
    value: Callable[[Instance, Sequence[Any]], float | None]
    guess: Callable[[Instance, Generator], Sequence[Any]]
    canonical: Callable[[Instance, Sequence[Any]], tuple[Any, ...]]
    write: Callable[[Instance], str]
    picture: Callable[[Instance, Generator], Array | None]


class NPTask(Task):
    """A problem as a task."""

    problem: ClassVar[NPProblem]
    least: ClassVar[int] = 4
    """Smallest size."""
    kinds = ("none",)
    knobs: ClassVar = {
        "size": Knob(
            7,
            (5, 6, 7, 8, 10),
            help="Nodes, items or subsets; 4 to 16 as a picture, to 50 in words.",
        ),
        "show": Knob("picture", help="How the instance is given.", allowed=("picture", "text")),
    }
    wordings = (
        "{given}{rule}",
        "{given}Solve this. {rule}",
        "{given}{rule} Look for the best solution you can find.",
    )
    hint = "{form}"

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        size, drawn = int(knobs["size"]), knobs["show"] == "picture"
        most = pictures.LARGEST if drawn else 50
        if not self.least <= size <= most:
            raise ValueError(
                f"{self.name}: size {size} must be {self.least} to {most} with show={knobs['show']!r}."
            )
        problem = self.problem
        instance, answer = problem.draw(size, rng.geometry)
        reference = problem.value(instance, answer)
        if reference is None:
            return Reject("no-solution")
        picture = problem.picture(instance, rng.appearance) if drawn else None
        if drawn and picture is None:
            return Reject("drawing-not-clear")
        # The whole instance stays in the truth: an answer is valued, not compared with the reference.
        return Draft(
            visuals=() if picture is None else (Visual(picture),),
            truth={"answer": _plain(answer), "instance": instance, "reference": reference},
            key=problem.canonical(instance, answer),
            fields={
                "given": "" if drawn else f"{problem.write(instance)} ",
                "rule": problem.rule,
                "form": problem.form,
            },
            evidence=() if picture is None else (Evidence(0),),
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        return parsing.integers(body)

    def verify(self, value: Any, truth: Truth) -> Score:
        problem, instance = self.problem, truth["instance"]
        worth = problem.value(instance, value)
        if worth is None:
            return Score(0.0, parts={"feasible": 0.0})
        ratio = quality(worth, truth["reference"], problem.smaller)
        # Lengths of tours are sums of roots: the same tour from another city differs in the last digits.
        right = ratio >= 1.0 - 1e-9
        reward = 1.0 if right else FLOOR + (1.0 - FLOOR) * ratio**POWER
        key = problem.canonical(instance, value)
        return Score(reward, right, {"feasible": 1.0, "ratio": ratio}, key)

    def format(self, truth: Truth) -> str:
        return listed(truth["answer"])

    def guess(self, truth: Truth, rng: Generator) -> str:
        return self.format({"answer": self.problem.guess(truth["instance"], rng)})

    def chance(self, knobs: Knobs) -> float:
        return _simulated(type(self), int(knobs["size"]))[0]

    def chance_reward(self, knobs: Knobs) -> float:
        return _simulated(type(self), int(knobs["size"]))[1]


def quality(worth: float, reference: float, smaller: bool) -> float:
    """How near to the reference, at most 1."""
    above, below = (reference, worth) if smaller else (worth, reference)
    return min(1.0, above / below) if below else float(above == below)


@lru_cache(maxsize=128)
def _simulated(task: type[NPTask], size: int) -> tuple[float, float]:
    """Share of right guesses and their mean reward, over instances of this size."""
    rng, problem, one = philox("np chance", task.name, size), task.problem, task()
    # Large instances take the solvers long; a fifth of them is enough.
    instances = SIMULATED if size <= EXACT else SIMULATED // 5
    scores = []
    for _ in range(instances):
        instance, answer = problem.draw(size, rng)
        reference = problem.value(instance, answer)
        if reference is None:
            continue
        truth = {"instance": instance, "reference": reference}
        scores += [one.verify(problem.guess(instance, rng), truth) for _ in range(GUESSES)]
    correct = float(np.mean([score.correct for score in scores]))
    reward = float(np.mean([score.reward for score in scores]))
    return correct, reward


def _plain(answer: Sequence[Any]) -> list[Any]:
    return [list(entry) if isinstance(entry, tuple) else int(entry) for entry in answer]


def _graph_picture(instance: Instance, rng: Generator) -> Array | None:
    return pictures.drawn_graph(instance["n"], instance["edges"], rng)


def _load_picture(instance: Instance, rng: Generator) -> Array:
    rows = []
    pairs = zip(instance["weights"], instance["values"], strict=True)
    for item, (weight, value) in enumerate(pairs, 1):
        rows.append([str(item), str(weight), str(value)])
    foot = f"Capacity: {instance['capacity']}"
    return pictures.drawn_rows(("item", "weight", "value"), rows, foot, rng)


def _map_picture(instance: Instance, rng: Generator) -> Array:
    return pictures.drawn_map(instance["points"], rng)


def _cover_picture(instance: Instance, rng: Generator) -> Array:
    return pictures.drawn_subsets(instance["elements"], instance["subsets"], rng)


def _cards_picture(instance: Instance, rng: Generator) -> Array:
    return pictures.drawn_cards(instance["numbers"], instance["target"], rng)


def _canonical_schedule(instance: Instance, answer: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(sorted(tuple(slot) for slot in answer))


class TravellingSalesmanTask(NPTask):
    name = "np-tsp"
    problem = NPProblem(
        "Find the shortest closed tour through all numbered cities (straight-line distances), visiting each once.",
        "the city numbers in order, ending with the first city again, separated by commas",
        True,
        graphs.tour_instance,
        graphs.tour_value,
        graphs.guess_closed,
        graphs.canonical_cycle,
        graphs.written_graph,
        _map_picture,
    )


class LongestCycleTask(NPTask):
    name = "np-longest-cycle"
    problem = NPProblem(
        "Find the longest closed cycle along edges of the graph that visits no node twice.",
        "the node numbers in order, ending with the first node again, separated by commas",
        False,
        graphs.cycle_instance,
        graphs.cycle_value,
        graphs.guess_closed,
        graphs.canonical_cycle,
        graphs.written_graph,
        _graph_picture,
    )


class GraphColouringTask(NPTask):
    name = "np-colouring"
    problem = NPProblem(
        "Colour the nodes of the graph with as few colours as possible; joined nodes must differ.",
        "one colour number (from 1) for each node, in the order of the node numbers, separated by commas",
        True,
        graphs.colour_instance,
        graphs.colour_value,
        graphs.guess_colours,
        graphs.canonical_colours,
        graphs.written_graph,
        _graph_picture,
    )


class MaxCliqueTask(NPTask):
    name = "np-clique"
    problem = NPProblem(
        "Find the largest set of nodes of the graph in which every two are joined by an edge.",
        "the node numbers, separated by commas",
        False,
        graphs.clique_instance,
        graphs.clique_value,
        graphs.guess_few,
        graphs.canonical_set,
        graphs.written_graph,
        _graph_picture,
    )


class MaxIndependentSetTask(NPTask):
    name = "np-independent-set"
    problem = NPProblem(
        "Find the largest set of nodes of the graph in which no two are joined by an edge.",
        "the node numbers, separated by commas",
        False,
        graphs.independent_instance,
        graphs.independent_value,
        graphs.guess_few,
        graphs.canonical_set,
        graphs.written_graph,
        _graph_picture,
    )


class MinBisectionTask(NPTask):
    name = "np-bisection"
    problem = NPProblem(
        "Split the nodes of the graph into two halves of equal size so that as few edges as possible run between them.",
        "the node numbers of one half, separated by commas",
        True,
        graphs.bisection_instance,
        graphs.bisection_value,
        graphs.guess_half,
        graphs.canonical_half,
        graphs.written_graph,
        _graph_picture,
    )


class SetCoverTask(NPTask):
    name = "np-set-cover"
    problem = NPProblem(
        "Choose as few of the numbered subsets as possible so that together they hold every element.",
        "the subset numbers, separated by commas",
        True,
        selection.cover_instance,
        selection.cover_value,
        selection.guess_subsets,
        graphs.canonical_set,
        selection.written_selection,
        _cover_picture,
    )


class SubsetSumTask(NPTask):
    name = "np-subset-sum"
    problem = NPProblem(
        "Choose as many of the numbers as possible so that they add up exactly to the target.",
        "the places (counted from 1) of the chosen numbers, separated by commas",
        False,
        selection.sum_instance,
        selection.sum_value,
        selection.guess_numbers,
        graphs.canonical_set,
        selection.written_selection,
        _cards_picture,
    )


class KnapsackTask(NPTask):
    name = "np-knapsack"
    problem = NPProblem(
        "Choose items of the greatest total value whose total weight is at most the capacity.",
        "the item numbers, separated by commas",
        False,
        selection.knapsack_instance,
        selection.knapsack_value,
        selection.guess_items,
        graphs.canonical_set,
        selection.written_selection,
        _load_picture,
    )


class MeetingScheduleTask(NPTask):
    name = "np-meetings"
    least = 3
    knobs: ClassVar = {
        **NPTask.knobs,
        "size": Knob(4, (3, 3, 4, 5, 6), help="Meetings, 3 to 16."),
    }
    problem = NPProblem(
        "Schedule meetings so that as many seats as possible are taken, summed over the meetings. A room holds one"
        " meeting at a time and needs enough seats; everybody invited must be free throughout and be in one meeting at"
        " a time. Meetings start on the hour; some may be left out.",
        "meeting, room and start hour of each meeting that takes place, as numbers, meetings separated by semicolons",
        False,
        selection.meeting_instance,
        selection.meeting_value,
        selection.guess_schedule,
        _canonical_schedule,
        selection.written_selection,
        pictures.drawn_plan,
    )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        parts = [part for part in body.split(";") if part.strip()]
        if len(parts) > len(truth["instance"]["durations"]):
            return ParseError("length", body[:40])
        return all_or_error([parsing.integers(part, 3) for part in parts])

    def format(self, truth: Truth) -> str:
        return "; ".join(listed(slot) for slot in truth["answer"])


NP_TASKS: Mapping[str, NPTask] = {
    task.name: task
    for task in (
        TravellingSalesmanTask(),
        LongestCycleTask(),
        GraphColouringTask(),
        MaxCliqueTask(),
        MaxIndependentSetTask(),
        MinBisectionTask(),
        SetCoverTask(),
        SubsetSumTask(),
        KnapsackTask(),
        MeetingScheduleTask(),
    )
}
