"""Pay answers: `Rewards` sums named, weighted parts under limits.

reward = Σ weight · value over the parts that are available. A part that is not available for one answer (None, or a
judge that is down) is dropped for the whole group with the other weights unchanged, so that answers of one prompt are
always compared by the same sum; a group without any part is left out.

A part runs in a killable worker (`worker_pool`), an `async` part in the trainer's process under a deadline. What goes
wrong costs one answer and is counted as `reward_failures/<part>_<reason>` with the reasons timeout, memory, exception,
exit, nonfinite, not_a_number and unavailable. The policy `on_failure` says what the answer then gets:
"zero" (this part pays 0), "drop" (the answer is left out of the batch) or "stop" (`RewardStopped`).
`on_unavailable` says what an outage does: "stop" (default) or "drop" (the part, for the whole group). A deadline that
an async part misses counts as an outage. A part that fails for `FAILED_IN_A_ROW` answers one after the other stops the
run under every policy: it is broken, and the run would learn from nothing.

The functions of `functions` are found here too. No torch is imported.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from mmrl.ground.printable import logger
from mmrl.ground.require import require
from mmrl.rewards.begun import Begun, Running, all_running, collected
from mmrl.rewards.cells import (
    Cell,
    Table,
    completed,
    enter,
    gated,
    groups_in,
    lacks,
    values_of,
)
from mmrl.rewards.contract import own_metrics
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
    Seen,
    batch,
    correct_by,
    grouped,
    in_process,
    needs,
    parse_part,
    preloads,
    seen,
)
from mmrl.rewards.timeouts import AsyncLoop, guarded
from mmrl.rewards.worker import Unavailable, marker
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
    "grouped",
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
Place = Literal["worker", "here", "async"]
Needs = tuple[str, ...]
"""Attributes that an isolated part asks for."""
FAILURES = ("zero", "drop", "stop")
OUTAGES = ("stop", "drop")
_LOG = logger(__name__)


class RewardStopped(RuntimeError):
    """A reward can or shall not go on. The trainer saves a checkpoint and shows the message."""


class Unpaid(RewardStopped):
    """No answer of a step got a reward."""


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
        correct: str | tuple[str, float] | None = None,
        gate: str | None = None,
        **parts: RewardFunction | tuple[float, RewardFunction],
    ) -> None:
        """Limits: seconds for one answer, for a batch call, and for an async call; bytes of memory of one worker.

        `workers` is the number of processes on a machine (4, or fewer cores), divided among the ranks of a run there.
        `isolate=False` runs plain functions here, without limits. `correct` declares which part says whether an answer
        is right: where its value exceeds 0.5, or the number of ("accuracy", 0.8). `gate` names a part, usually the
        format: where it pays nothing, all others pay nothing either. Raises ValueError for a part that fits no calling
        convention.
        """
        if not parts:
            raise ValueError(
                "Rewards needs at least one part, for example accuracy=(0.9, boxed_accuracy)."
            )
        self.on_failure = on_failure
        self.on_unavailable = on_unavailable
        require(
            self,
            on_failure=(on_failure in FAILURES, f"one of {list(FAILURES)}"),
            on_unavailable=(on_unavailable in OUTAGES, f"one of {list(OUTAGES)}"),
        )
        self._parts: dict[str, Part] = {}
        for name, part in parts.items():
            self._parts[name] = parse_part(name, part, isolate)
        self.correct = correct_by(correct, self._parts)
        """(part, number that its value must exceed) of a right answer; None if nothing is declared."""
        self.gate = gate
        require(self, gate=(gate is None or gate in parts, f"one of {sorted(parts)}, or None"))
        self._limits = {"one": time_limit, "batch": batch_time_limit, "async": async_time_limit}
        # The cores of a machine are shared by all processes of the run on it.
        sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
        here = (workers or min(4, os.cpu_count() or 1)) // sharing
        self._pool = self._workers(max(1, here), memory_limit)
        self._loop = AsyncLoop()
        self._begun = Begun()
        # Failures, dropped parts and seconds since `metrics` was last asked.
        self._counts: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        # Over the whole run: a part that fails again and again, and what has been warned of.
        self._in_a_row: Counter[str] = Counter()
        self._warned: set[tuple[str, str]] = set()

    @property
    def needs_tags(self) -> tuple[str, ...]:
        """Tags without which some part pays nothing."""
        found = (marker(part.function, "needs_tags", ()) for part in self._parts.values())
        return tuple(dict.fromkeys(itertools.chain(*found)))

    @property
    def weights(self) -> dict[str, float]:
        """Part name -> weight."""
        return {name: part.weight for name, part in self._parts.items()}

    @property
    def functions(self) -> dict[str, RewardFunction]:
        """Part name -> its function."""
        return {name: part.function for name, part in self._parts.items()}

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """New records with `reward` and `parts`; answers of whole groups, in order, without those that are dropped.

        Raises RewardStopped by policy, and ValueError if a part asks for a column that the rows do not have.
        """
        if not rollouts:
            return []
        began = time.monotonic()
        table = self._score(rollouts)
        self._seconds["time/reward"] += time.monotonic() - began
        if self._begun.early:
            self._seconds["time/reward_streamed"] += self._begun.early
            self._begun.early = 0.0
        # Policies come after all parts have run: one that stops the run does not hide what others counted.
        for name, cells in table.items():
            self._apply_policies(self._parts[name], cells, rollouts)
        paid = self._pay(rollouts, table)
        if not paid:
            raise Unpaid(
                f"None of the {len(rollouts)} answers of this step got a reward; counts: {dict(self._counts)}."
            )
        return paid

    def begin(self, rollouts: Sequence[Rollout]) -> None:
        """Begin to score these very answers, which a later call will pay, and do not wait (`begun`).

        Raises ValueError as a call does.
        """
        isolated = self._isolated_records(rollouts)
        for part in self._parts.values():
            place = _place(part)
            if part.several or place == "here":
                continue
            records = isolated[part.needs] if place == "worker" else rollouts
            for row, rollout in enumerate(rollouts):
                calls = [self._call(_Job(part, (row,)), records)]
                if place == "async":
                    (running,) = self._loop.begin(self._perform, calls)
                else:
                    assert self._pool is not None
                    (running,) = self._pool.begin(calls)
                self._begun.add(part.name, rollout, running)

    def forget(self) -> None:
        """The answers that were begun will not be paid."""
        self._begun.forget()

    def metrics(self) -> dict[str, float]:
        """Counts of failures and dropped parts, and seconds, since the last call.

        A part that is an object with a `metrics()` of its own (one that holds a judge) adds what this returns.
        """
        values: dict[str, float] = {**self._counts, **self._seconds}
        self._counts.clear()
        self._seconds.clear()
        for part in self._parts.values():
            values |= own_metrics(part.function)
        return {name: float(value) for name, value in values.items()}

    def start(self) -> None:
        """Start the workers now rather than at the first call. Raises LoadError."""
        if self._pool is not None:
            self._pool.start()

    def close(self) -> None:
        """End the worker processes; the trainer's end does it too. A later call starts them again."""
        if self._pool is not None:
            self._pool.close()
        self._loop.close()  # a later async call opens another

    def __enter__(self) -> Rewards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _workers(self, count: int, memory_limit: int | None) -> WorkerPool | None:
        """Processes for the parts that run isolated; None if no part does."""
        functions: dict[str, RewardFunction] = {}
        for name, part in self._parts.items():
            if _place(part) == "worker":
                functions[name] = part.function
        return WorkerPool(functions, count, memory_limit) if functions else None

    def _score(self, rollouts: Sequence[Rollout]) -> Table:
        """Part -> one cell per answer. Failed batch calls are repeated for each group, then for each answer."""
        table: Table = {name: [None] * len(rollouts) for name in self._parts}
        jobs = self._first_jobs(rollouts)
        isolated = self._isolated_records(rollouts)
        while jobs:
            again: list[_Job] = []
            for job, outcome in self._run(jobs, rollouts, isolated):
                outcome = completed(outcome, len(job.rows))
                if isinstance(outcome, Failure) and _worth_repeating(job, outcome):
                    # One bad answer fails the call for all: smaller calls find out whose fault it was.
                    self._note_repetition(job, outcome)
                    again += [_Job(job.part, rows) for rows in _smaller(job.rows, rollouts)]
                else:
                    enter(outcome, job.rows, table[job.part.name])
            jobs = again
        return table

    def _first_jobs(self, rollouts: Sequence[Rollout]) -> list[_Job]:
        """One call for all answers where the part takes several, else one call per group or answer."""
        everything = tuple(range(len(rollouts)))
        jobs: list[_Job] = []
        for part in self._parts.values():
            if part.convention == "group":
                jobs += [_Job(part, rows) for rows in groups_in(everything, rollouts)]
            elif part.several:
                jobs.append(_Job(part, everything))
            else:
                jobs += [_Job(part, (row,)) for row in everything]
        return jobs

    def _isolated_records(self, rollouts: Sequence[Rollout]) -> dict[Needs, list[Seen]]:
        """The rollouts without tensors, once for each set of attributes that isolated parts need."""
        records: dict[Needs, list[Seen]] = {}
        for part in self._parts.values():
            # Once for all parts with the same needs, since pictures are large.
            if _place(part) == "worker" and part.needs not in records:
                records[part.needs] = seen(rollouts, part.needs)
        return records

    def _run(
        self,
        jobs: Sequence[_Job],
        rollouts: Sequence[Rollout],
        isolated: Mapping[Needs, Sequence[Seen]],
    ) -> list[tuple[_Job, Outcome]]:
        """All jobs at once: coroutines on their loop, plain functions in the workers, marked ones here."""
        waiting: dict[Place, list[_Job]] = {"worker": [], "here": [], "async": []}
        calls: dict[Place, list[Call]] = {"worker": [], "here": [], "async": []}
        for job in jobs:
            place = _place(job.part)
            records = isolated[job.part.needs] if place == "worker" else rollouts
            waiting[place].append(job)
            calls[place].append(self._call(job, records))
        running: dict[Place, list[Running | None]] = {
            place: [self._begun_for(job, rollouts) for job in waiting[place]]
            for place in ("worker", "async")
        }
        # Coroutines begin first and end last: they wait for a network while the others compute.
        begin = partial(self._loop.begin, self._perform)
        futures = all_running(begin, calls["async"], running["async"])
        if self._pool is not None:
            timed = collected(all_running(self._pool.begin, calls["worker"], running["worker"]))
        else:
            timed = []
        timed += [guarded(partial(self._perform, call), call.several) for call in calls["here"]]
        timed += self._loop.finish(futures, calls["async"])
        # Every place gives its outcomes in the order of its calls, so the lists run side by side.
        ended = [*waiting["worker"], *waiting["here"], *waiting["async"]]
        outcomes: list[tuple[_Job, Outcome]] = []
        for job, (outcome, seconds) in zip(ended, timed, strict=True):
            self._seconds[f"time/reward_{job.part.name}"] += seconds
            outcomes.append((job, outcome))
        return outcomes

    def _begun_for(self, job: _Job, rollouts: Sequence[Rollout]) -> Running | None:
        """The call of a job, if it was begun."""
        if job.part.several:
            return None
        return self._begun.take(job.part.name, rollouts[job.rows[0]])

    def _call(self, job: _Job, records: Sequence[Any]) -> Call:
        """The call of a job, with the time limit of its kind."""
        kind = "batch" if len(job.rows) > 1 else "one"
        if job.part.is_async:
            kind = "async"
        args, kwargs = job.part.arguments([records[row] for row in job.rows])
        return Call(job.part.name, args, kwargs, job.part.several, self._limits[kind])

    def _perform(self, call: Call) -> Any:
        function = self._parts[call.part].function
        return function(*call.args, **call.kwargs)

    def _note_repetition(self, job: _Job, failure: Failure) -> None:
        """Count and show a call that failed for several answers at once."""
        self._counts[f"reward_failures/{job.part.name}_repeated_batches"] += 1
        where = f"{len(job.rows)} answers at once; they are scored again in parts"
        self._warn(job.part, failure, where)

    def _apply_policies(
        self, part: Part, cells: list[Cell], rollouts: Sequence[Rollout]
    ) -> None:
        """Count the failures of a part and apply the policies; a failure that remains is an answer to drop."""
        for row, cell in enumerate(cells):
            if not isinstance(cell, Failure):
                self._in_a_row[part.name] = 0
                continue
            self._in_a_row[part.name] += 1
            self._counts[f"reward_failures/{part.name}_{cell.reason}"] += 1
            where = f"answer {row} (prompt {rollouts[row].prompt.id!r})"
            outage = _is_outage(part, cell)
            self._stop_if_asked(part, cell, where, outage)
            self._warn(part, cell, where)
            if outage:
                cells[row] = None  # not available, so that the whole group loses the part
            elif self.on_failure == "zero":
                cells[row] = 0.0

    def _stop_if_asked(self, part: Part, failure: Failure, where: str, outage: bool) -> None:
        """Raise RewardStopped if the policy says so, or if the part fails for everybody."""
        policy = self.on_unavailable if outage else self.on_failure
        what = f"The reward part {part.name!r} failed ({failure.reason}) for {where}"
        if policy == "stop":
            raise RewardStopped(f"{what}: {failure.message}")
        # An outage is nobody's fault and may end; a function that fails 64 times in a row is broken.
        if self._in_a_row[part.name] >= FAILED_IN_A_ROW and not outage:
            raise RewardStopped(
                f"{what} and for the {FAILED_IN_A_ROW - 1} answers before: {failure.message}"
            )

    def _warn(self, part: Part, failure: Failure, where: str) -> None:
        """Show the first failure of each kind; the counters show how many there are."""
        kind = (part.name, failure.reason)
        if kind in self._warned:
            return
        self._warned.add(kind)
        _LOG.warning(
            "The reward part %r failed (%s) for %s. %s",
            part.name,
            failure.reason,
            where,
            failure.message,
        )

    def _pay(self, rollouts: Sequence[Rollout], table: Table) -> list[Rollout]:
        """Weighted sums; a part that one answer lacks is dropped for its group."""
        alone = {name for name, part in self._parts.items() if part.lacks_alone}
        lacking = lacks(rollouts, table, alone)
        for name, _ in lacking:
            self._counts[f"reward_failures/{name}_dropped_groups"] += 1
        paid: list[Rollout] = []
        for row, rollout in enumerate(rollouts):
            cells: dict[str, Cell] = {}
            for name, column in table.items():
                # Also where this answer has a value: its group is compared by the same sum.
                cells[name] = None if (name, rollout.group) in lacking else column[row]
            if any(cells[name] is None for name in alone):
                self._counts["reward_failures/answers_without_reward"] += 1
                continue
            parts = gated(values_of(cells), self.gate)
            if parts is None:
                self._counts["reward_failures/dropped_answers"] += 1
                continue
            known = {name: value for name, value in parts.items() if value is not None}
            if not known:
                self._counts["reward_failures/answers_without_reward"] += 1
                continue
            paid.append(
                dataclasses.replace(
                    rollout,
                    reward=self._total(known),
                    parts=parts,
                    correct=self._is_correct(known),
                )
            )
        return paid

    def _is_correct(self, values: Mapping[str, float]) -> bool | None:
        """Is an answer right, by the declared part; None without one, or where it is not available."""
        if self.correct is None or self.correct[0] not in values:
            return None
        part, above = self.correct
        return values[part] > above

    def _total(self, values: Mapping[str, float]) -> float:
        # fsum rounds once, so that the order of the parts does not decide the last bit.
        return math.fsum(self._parts[name].weight * value for name, value in values.items())


def _place(part: Part) -> Place:
    """Where a part runs: coroutines share a loop, marked functions stay here, all others are killable."""
    if part.is_async:
        return "async"
    return "here" if part.in_process else "worker"


def _is_outage(part: Part, failure: Failure) -> bool:
    """Is something else to blame than the answer? A coroutine that is late waited for a judge."""
    late = part.is_async and failure.reason == "timeout"
    return late or failure.reason == "unavailable"


def _worth_repeating(job: _Job, failure: Failure) -> bool:
    """Did a call for several answers fail in a way that may concern one of them only?"""
    # A judge that is down stays down: asking it once per answer would wait for every one of them. And an answer alone
    # cannot be compared with its group.
    alone = len(job.rows) == 1 or job.part.convention == "group"
    return not alone and failure.reason != "unavailable"


def _smaller(rows: tuple[int, ...], rollouts: Sequence[Rollout]) -> list[tuple[int, ...]]:
    """The rows of each group, or, if there is only one group, each row alone."""
    # Groups first: answers of one prompt share its columns, which are the likeliest to be at fault.
    groups = groups_in(rows, rollouts)
    return [(row,) for row in rows] if len(groups) == 1 else groups
