"""Pay answers: `Rewards` sums named, weighted parts under limits.

reward = Σ weight · value over the parts that are available. A part that is not available for one answer (None, or a
judge that is down) is dropped for the whole group with the other weights unchanged, so that answers of one prompt are
always compared by the same sum; a group without any part is left out.

A part runs in a killable worker (`isolation`), an `async` part in the trainer's process under a deadline. What goes
wrong costs one answer and is counted as `reward_failures/<part>_<reason>` with the reasons timeout, memory, exception,
exit, nonfinite, not_a_number and unavailable. The policy `on_failure` says what the answer then gets:
"zero" (this part pays 0), "drop" (the answer is left out of the batch) or "stop" (`RewardStopped`).
`on_unavailable` says what an outage does: "stop" (default) or "drop" (the part, for the whole group). A deadline that
an async part misses counts as an outage. A part that fails for `FAILED_IN_A_ROW` answers one after the other stops the
run under every policy: it is broken, and the run would learn from nothing.

The functions of `reward_functions` are found here too. No torch is imported.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mmrl.rewards.functions import (
    RepetitionPenalty,
    answer_format,
    boxed_accuracy,
    choice_accuracy,
    exact_accuracy,
    number_accuracy,
    tagged_accuracy,
    think_format,
)
from mmrl.rewards.parts import (
    Call,
    Failure,
    Outcome,
    Part,
    batch,
    in_process,
    needs,
    parse_part,
    preloads,
    seen,
)
from mmrl.rewards.timeouts import AsyncLoop, guarded
from mmrl.rewards.worker import Unavailable
from mmrl.rewards.worker_pool import WorkerPool

if TYPE_CHECKING:
    from mmrl.types import Rollout

__all__ = [
    "RepetitionPenalty",
    "RewardStopped",
    "Rewards",
    "Unavailable",
    "answer_format",
    "batch",
    "boxed_accuracy",
    "choice_accuracy",
    "exact_accuracy",
    "in_process",
    "needs",
    "number_accuracy",
    "preloads",
    "tagged_accuracy",
    "think_format",
]

FAILED_IN_A_ROW = 64
"""So many failures of one part without a single value between them stop the run."""
RewardFunction = Callable[..., Any]
Cell = float | Failure | None
_LOG = logging.getLogger(__name__)


class RewardStopped(RuntimeError):
    """A reward can or shall not go on. The trainer saves a checkpoint and shows the message."""


@dataclass(frozen=True)
class _Job:
    """One call: a part and the answers that it scores."""

    part: Part
    rows: tuple[int, ...]


class Rewards:
    """Named, weighted parts: `Rewards(accuracy=(0.9, boxed_accuracy), format=(0.1, think_format))`."""

    def __init__(
        self,
        *,
        time_limit: float = 10.0,
        batch_time_limit: float = 120.0,
        async_time_limit: float = 600.0,
        memory_limit: int | None = 2 << 30,
        on_failure: Literal["zero", "drop", "stop"] = "zero",
        on_unavailable: Literal["stop", "drop"] = "stop",
        workers: int | None = None,
        isolate: bool = True,
        **parts: RewardFunction | tuple[float, RewardFunction],
    ) -> None:
        """Limits: seconds for one answer, for a batch call, and for an async call; bytes of memory of one worker.

        `workers` is the number of processes (4, or fewer cores). `isolate=False` runs plain functions here, without
        limits. Raises ValueError for a part that fits no calling convention.
        """
        if not parts:
            raise ValueError(
                "Rewards needs at least one part, for example accuracy=(0.9, boxed_accuracy)."
            )
        for name, value, allowed in (
            ("on_failure", on_failure, ("zero", "drop", "stop")),
            ("on_unavailable", on_unavailable, ("stop", "drop")),
        ):
            if value not in allowed:
                raise ValueError(
                    f"Rewards.{name} is {value!r}; it must be one of {list(allowed)}."
                )
        self._parts = {name: parse_part(name, part, isolate) for name, part in parts.items()}
        self._limits = {"one": time_limit, "batch": batch_time_limit, "async": async_time_limit}
        self._on_failure, self._on_unavailable = on_failure, on_unavailable
        functions = {
            name: part.function for name, part in self._parts.items() if _isolated(part)
        }
        count = workers or min(4, os.cpu_count() or 1)
        self._pool = WorkerPool(functions, count, memory_limit) if functions else None
        self._loop = AsyncLoop()
        self._counts: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._in_a_row: Counter[str] = Counter()
        self._warned: set[tuple[str, str]] = set()

    @property
    def weights(self) -> dict[str, float]:
        """Part name -> weight."""
        return {name: part.weight for name, part in self._parts.items()}

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """New records with `reward` and `parts`; answers of whole groups, in order, without those that are dropped.

        Raises RewardStopped by policy, and ValueError if a part asks for a column that the rows do not have.
        """
        if not rollouts:
            return []
        began = time.monotonic()
        table = self._score(rollouts)
        self._seconds["time/reward"] += time.monotonic() - began
        for name, cells in table.items():
            self._apply_policies(self._parts[name], cells, rollouts)
        paid = self._pay(rollouts, table)
        if not paid:
            raise RewardStopped(
                f"None of the {len(rollouts)} answers of this step got a reward; counts: {dict(self._counts)}."
            )
        return paid

    def metrics(self) -> dict[str, float]:
        """Counts of failures and dropped parts, and seconds, since the last call.

        A part that is an object with a `metrics()` of its own (one that holds a judge) adds what this returns.
        """
        values: dict[str, float] = {**self._counts, **self._seconds}
        self._counts.clear()
        self._seconds.clear()
        for part in self._parts.values():
            own = getattr(part.function, "metrics", None)
            values |= own() if own is not None else {}
        return {name: float(value) for name, value in values.items()}

    def start(self) -> None:
        """Start the workers now rather than at the first call. Raises LoadError."""
        if self._pool is not None:
            self._pool.start()

    def close(self) -> None:
        """End the worker processes; the trainer's end does it too. A later call starts them again."""
        if self._pool is not None:
            self._pool.close()
        self._loop.close()

    def __enter__(self) -> Rewards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _score(self, rollouts: Sequence[Rollout]) -> dict[str, list[Cell]]:
        """Part -> one cell per answer. Failed batch calls are repeated for each group, then for each answer."""
        table: dict[str, list[Cell]] = {name: [None] * len(rollouts) for name in self._parts}
        everything = tuple(range(len(rollouts)))
        jobs: list[_Job] = []
        for part in self._parts.values():
            jobs += (
                [_Job(part, everything)]
                if part.several
                else [_Job(part, (row,)) for row in everything]
            )
        seen_by = {
            part.needs: seen(rollouts, part.needs)
            for part in self._parts.values()
            if _isolated(part)
        }
        while jobs:
            again: list[_Job] = []
            for job, outcome in self._run(jobs, rollouts, seen_by):
                cells = _cells(outcome, len(job.rows))
                if (
                    isinstance(cells, Failure)
                    and len(job.rows) > 1
                    and cells.reason != "unavailable"
                ):
                    self._counts[f"reward_failures/{job.part.name}_repeated_batches"] += 1
                    self._warn(
                        job.part,
                        cells,
                        f"{len(job.rows)} answers at once; they are scored again in parts",
                    )
                    again += [_Job(job.part, rows) for rows in _smaller(job.rows, rollouts)]
                    continue
                for index, row in enumerate(job.rows):
                    table[job.part.name][row] = (
                        cells if isinstance(cells, Failure) else cells[index]
                    )
            jobs = again
        return table

    def _run(
        self, jobs: Sequence[_Job], rollouts: Sequence[Rollout], seen_by: dict
    ) -> list[tuple[_Job, Outcome]]:
        """All jobs at once: coroutines on their loop, plain functions in the workers, marked ones here."""
        places: dict[str, list[tuple[_Job, Call]]] = {"async": [], "worker": [], "here": []}
        for job in jobs:
            place = (
                "worker" if _isolated(job.part) else "async" if job.part.is_async else "here"
            )
            source = seen_by[job.part.needs] if place == "worker" else rollouts
            args, kwargs = job.part.arguments([source[row] for row in job.rows])
            limit = self._limits[
                "async" if place == "async" else "batch" if len(job.rows) > 1 else "one"
            ]
            places[place].append(
                (job, Call(job.part.name, args, kwargs, job.part.several, limit))
            )
        coroutines, isolated, here = (
            [call for _, call in places[place]] for place in ("async", "worker", "here")
        )
        futures = self._loop.begin(self._perform, coroutines) if coroutines else []
        results = (
            list(zip(places["worker"], self._pool.run(isolated), strict=True))
            if self._pool
            else []
        )
        results += [
            (pair, guarded(lambda call=call: self._perform(call), call.several))
            for pair, call in zip(places["here"], here, strict=True)
        ]
        results += zip(places["async"], self._loop.finish(futures, coroutines), strict=True)
        for (job, _), (_, seconds) in results:
            self._seconds[f"time/reward_{job.part.name}"] += seconds
        return [(job, outcome) for (job, _), (outcome, _) in results]

    def _perform(self, call: Call) -> Any:
        return self._parts[call.part].function(*call.args, **call.kwargs)

    def _apply_policies(
        self, part: Part, cells: list[Cell], rollouts: Sequence[Rollout]
    ) -> None:
        """Count the failures of a part and apply the policies; a failure that remains is an answer to drop."""
        for row, cell in enumerate(cells):
            self._in_a_row[part.name] = (
                self._in_a_row[part.name] + 1 if isinstance(cell, Failure) else 0
            )
            if not isinstance(cell, Failure):
                continue
            self._counts[f"reward_failures/{part.name}_{cell.reason}"] += 1
            outage = cell.reason == "unavailable" or (
                part.is_async and cell.reason == "timeout"
            )
            where = f"answer {row} (prompt {rollouts[row].prompt.id!r})"
            what = f"The reward part {part.name!r} failed ({cell.reason}) for {where}"
            if (self._on_unavailable if outage else self._on_failure) == "stop":
                raise RewardStopped(f"{what}: {cell.message}")
            if self._in_a_row[part.name] >= FAILED_IN_A_ROW and not outage:
                raise RewardStopped(
                    f"{what} and for the {FAILED_IN_A_ROW - 1} answers before: {cell.message}"
                )
            self._warn(part, cell, where)
            if outage:
                cells[row] = None
            elif self._on_failure == "zero":
                cells[row] = 0.0

    def _warn(self, part: Part, failure: Failure, where: str) -> None:
        """Show the first failure of each kind; the counters show how many there are."""
        if (part.name, failure.reason) not in self._warned:
            self._warned.add((part.name, failure.reason))
            _LOG.warning(
                "The reward part %r failed (%s) for %s. %s",
                part.name,
                failure.reason,
                where,
                failure.message,
            )

    def _pay(self, rollouts: Sequence[Rollout], table: dict[str, list[Cell]]) -> list[Rollout]:
        """Weighted sums; a part that one answer lacks is dropped for its group."""
        lacking = {
            (name, rollouts[row].group)
            for name, cells in table.items()
            for row, cell in enumerate(cells)
            if cell is None
        }
        self._counts.update(f"reward_failures/{name}_dropped_groups" for name, _ in lacking)
        paid: list[Rollout] = []
        for row, rollout in enumerate(rollouts):
            cells = {
                n: None if (n, rollout.group) in lacking else column[row]
                for n, column in table.items()
            }
            failed = any(isinstance(cell, Failure) for cell in cells.values())
            values = {name: cell for name, cell in cells.items() if isinstance(cell, float)}
            if failed or not values:
                self._counts[
                    "reward_failures/"
                    + ("dropped_answers" if failed else "answers_without_reward")
                ] += 1
                continue
            total = math.fsum(
                self._parts[name].weight * value for name, value in values.items()
            )
            parts = {name: values.get(name) for name in cells}
            paid.append(dataclasses.replace(rollout, reward=total, parts=parts))
        return paid


def _isolated(part: Part) -> bool:
    return not part.is_async and not part.in_process


def _smaller(rows: tuple[int, ...], rollouts: Sequence[Rollout]) -> list[tuple[int, ...]]:
    """The rows of each group, or, if there is only one group, each row alone."""
    groups: dict[int, tuple[int, ...]] = {}
    for row in rows:
        groups[rollouts[row].group] = (*groups.get(rollouts[row].group, ()), row)
    return list(groups.values()) if len(groups) > 1 else [(row,) for row in rows]


def _cells(outcome: Outcome, expected: int) -> list[Cell] | Failure:
    """Values, with those that are no finite number turned into failures."""
    if isinstance(outcome, Failure):
        return outcome
    if len(outcome) != expected:
        return Failure("exception", f"it returned {len(outcome)} values for {expected} answers")
    return [_cell(value) for value in outcome]


def _cell(value: float | str | None) -> Cell:
    if isinstance(value, str):
        return Failure("not_a_number", f"it returned {value}; a reward is a number or None")
    if value is not None and not math.isfinite(value):
        return Failure("nonfinite", f"it returned {value}")
    return value
