"""Questions about random causal models: what is seen, what is done, what would have been.

After the causal reasoning testbed (arXiv 2512.20760): a random acyclic model of binary variables with random names,
whose tables are given in words and whose graph in words or as a picture; one question of the three levels; the exact
answer by variable elimination, on the twin network for counterfactuals (`craft/causal_models`). Answer: p(x = 0) and
p(x = 1) with two decimals.

    reward = 0.8 · 1[TV ≤ 0.01] + 0.2          for two numbers;   TV half of the sum of absolute differences

both rounded to two decimals. `truth["relevant"]` counts the ancestors of what is asked and seen after surgery, the
testbed's difficulty.

What is the paper's: levels, reward, rounding, binary variables with random tables, difficulty. Ours: the picture of the
graph, at most `parents` parents (the tables are written out), probabilities away from 0 and 1, and that answers lie in
[0.02, 0.98], so that guessing is the same everywhere. The paper pays 0.1 for numbers of another count; here they earn
nothing, as in every task. The paper's models have ten variables: `variables` 10.
"""

from __future__ import annotations

from itertools import product
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator

from mmrl.data.pretext.contract import (
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
from mmrl.data.pretext.craft.causal_models import (
    LEVELS,
    Level,
    Model,
    Query,
    answer,
    draw_model,
    draw_query,
    relevant_count,
)
from mmrl.data.pretext.craft.causal_pictures import drawn_arrows
from mmrl.data.pretext.craft.draws import some_of
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.ground.seeds import Streams

SOUNDS = tuple(f"{a}{e}{o}" for a, e, o in product("bdfgklmnprstvz", "aeiou", "bdgklmnprstvz"))
"""Words without a meaning, so that nothing is known of them beforehand."""
RIGHT, FORM, SLACK = 0.8, 0.2, 0.01
LOWEST, HIGHEST = 0.02, 0.98
ARROWS = (
    "Arrows in the picture lead from causes to effects. Behind the bar stand the values of a variable's causes, in "
    "alphabetical order of their names."
)


class CausalQueryTask(Task):
    name = "causal-query"
    kinds = ("none",)
    knobs: ClassVar = {
        "variables": Knob(5, (3, 4, 5, 7, 10), help="Variables of the model, 3 to 12."),
        "parents": Knob(2, help="Most parents of a variable, 1 to 3."),
        "level": Knob("association", LEVELS, help="Kind of question.", allowed=LEVELS),
        "show": Knob("picture", help="How the graph is given.", allowed=("picture", "text")),
    }
    wordings = (
        "All variables are 0 or 1. {graph}{tables} {question} Give both probabilities.",
        "{graph}{tables} Every variable is either 0 or 1. {question} Answer with both probabilities.",
        "A causal model of variables that are 0 or 1: {graph}{tables} {question} State the two probabilities.",
    )
    hint = "the probability of 0 and that of 1 with two decimals, separated by a comma"

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        count, most = int(knobs["variables"]), int(knobs["parents"])
        if not 3 <= count <= 12 or not 1 <= most <= 3:
            raise ValueError(
                f"{self.name}: variables {count} must be 3 to 12, and parents {most} 1 to 3."
            )
        level: Level = next(one for one in LEVELS if one == knobs["level"])
        model = draw_model(count, most, rng.selection)
        query = draw_query(model, level, rng.geometry)
        rate = answer(model, query)
        if rate is None:
            return Reject("cannot-be-seen")
        rounded = _rounded(rate)
        if not LOWEST <= rounded <= HIGHEST:
            return Reject("nearly-certain")
        names = [name.capitalize() for name in some_of(SOUNDS, count, rng["names"])]
        picture = None
        edges = [(a, b) for b, above in enumerate(model.parents) for a in above]
        if knobs["show"] == "picture":
            picture = drawn_arrows(names, edges, rng.appearance)
            if picture is None:
                return Reject("drawing-not-clear")
        # In the order of the model causes would always be written first.
        order = some_of(range(count), count, rng["order"])
        pair = [_rounded(1.0 - rounded), rounded]
        return Draft(
            visuals=() if picture is None else (Visual(picture),),
            truth={"answer": pair, "relevant": relevant_count(model, query)},
            key=tuple(pair),
            fields={
                "graph": f"{_causes(model, names, order) if picture is None else ARROWS} ",
                "tables": _tables(model, names, order, named=picture is None),
                "question": _asked(query, names),
            },
            evidence=() if picture is None else (Evidence(0),),
            meta={"level": level, "exact": rate},
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        return parsing.numbers(body)

    def verify(self, value: Any, truth: Truth) -> Score:
        given = [_rounded(number) for number in value]
        if len(given) != 2:
            return Score(0.0, False, {"length": 0.0})
        away = 0.5 * sum(abs(a - b) for a, b in zip(given, truth["answer"], strict=True))
        # Rounded numbers differ from their decimals by rounding errors of their own.
        right = away <= SLACK + 1e-9
        # The key of a right answer is the truth's: within the slack they are one answer.
        key = tuple(truth["answer"]) if right else tuple(given)
        parts = {"length": 1.0, "away": min(away, 1.0)}
        return Score(RIGHT * right + FORM, right, parts, key)

    def format(self, truth: Truth) -> str:
        return ", ".join(f"{number:.2f}" for number in truth["answer"])

    def guess(self, truth: Truth, rng: Generator) -> str:
        rate = int(rng.integers(101)) / 100
        return self.format({"answer": [1.0 - rate, rate]})

    def chance(self, knobs: Knobs) -> float:
        return 3 / 101  # the number itself and its two neighbours

    def chance_reward(self, knobs: Knobs) -> float:
        return FORM + RIGHT * self.chance(knobs)


def _rounded(number: float) -> float:
    """To two decimals, half up in magnitude as in decimals."""
    return float(np.round(number + 1e-12, 2))


def _causes(model: Model, names: list[str], order: list[int]) -> str:
    """The graph in words."""
    lines = []
    for variable in order:
        above = model.parents[variable]
        causes = " and ".join(names[parent] for parent in above) or "nothing else"
        lines.append(f"{names[variable]} depends on {causes}.")
    return " ".join(lines)


def _tables(model: Model, names: list[str], order: list[int], named: bool) -> str:
    """All conditional tables in words; causes by their names, or by their order alone, for the picture to be read."""
    lines = []
    for variable in order:
        above = model.parents[variable]
        # In alphabetical order, so that a reader of the picture knows whose value stands where.
        sorted_above = sorted(above, key=names.__getitem__)
        for values in product((0, 1), repeat=len(above)):
            value_of = dict(zip(sorted_above, values, strict=True))
            given = [f"{names[p]} = {v}" if named else str(v) for p, v in value_of.items()]
            rate = model.rate(variable, [value_of[parent] for parent in above])
            condition = f" | {', '.join(given)}" if given else ""
            lines.append(f"P({names[variable]} = 1{condition}) = {rate:.2f}.")
    return " ".join(lines)


def _asked(query: Query, names: list[str]) -> str:
    """The question."""
    seen = " and ".join(f"{names[v]} = {value}" for v, value in query.seen.items())
    done = " and ".join(f"{names[v]} = {value}" for v, value in query.done.items())
    asked = names[query.asked]
    if query.level == "association":
        return f"You observe that {seen}. How likely is {asked} to be 0, and to be 1?"
    if query.level == "intervention":
        return f"Somebody sets {done}, whatever else holds. How likely is {asked} then to be 0, and to be 1?"
    return (
        f"You observe that {seen}. Had somebody set {done} instead, all chance events being the same, how likely would "
        f"{asked} have been 0, and 1?"
    )
