"""A run that is made longer, and one that begins as another (`--run.from RUN`).

Extended, a run goes on from its last checkpoint under the schedules of its new length. Where nothing depends on the
length, it is bit by bit the run that would have been planned so, but for one more evaluation where it ended before.

A branch begins in a folder of its own with the weights, moments and step of the other run's newest whole checkpoint,
and with its metrics so far; its first checkpoint is this state, so it needs the other run no more. Of what rides in a
checkpoint it takes what still means the same: the position in the data where rows, seed and step size are the same,
the memory of an objective that is the same, the watch for an early stop likewise. The rest begins anew, and is named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmrl.ground.outputs import OutputError, marker_of, write_whole
from mmrl.ground.progress import Progress
from mmrl.losses.schedules import Cosine, Linear, Sigmoid
from mmrl.training import checkpoint
from mmrl.training.identity import changes
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.tracking import LOGS
from mmrl.types import Prompts

ANNEALED = (Linear.__name__, Cosine.__name__, Sigmoid.__name__)
"""Settings of these classes follow the share of the run that is done."""
CURVES = ("metrics.jsonl", "eval.jsonl")
"""Logs that a branch begins with."""
Found = tuple[Path | None, dict[str, Any]]
"""A checkpoint and its numbers; None and nothing without one."""


def say_extension(
    run: Run,
    optim: Optim,
    settings: Mapping[str, Any],
    prompts: Prompts,
    done: int,
    steps: tuple[int, int],
) -> None:
    """Say what becomes of the schedules of a run of `steps[0]` steps that now has `steps[1]`; `done`: by now.

    `prompts` that come in an order which depends on the length name it as `follows_length`.
    """
    (before, now), updates = steps, run.updates_per_step
    told = [
        f"The run is extended from {before} to {now} steps.",
        optim.when_extended(done * updates, before * updates, now * updates),
    ]
    names = [*_annealed(settings), *filter(None, [getattr(prompts, "follows_length", "")])]
    if names:
        told.append(f"What is annealed follows the new length, too: {', '.join(names)}.")
    Progress.say(" ".join(told))


def say_other_sums(state: Mapping[str, Any], threads: int, processes: int) -> None:
    """Say so if the run used another number of threads or processes: they add up in another order."""
    for name, now in {"threads": threads, "processes": processes}.items():
        if (before := state.get(name, 1)) != now:
            Progress.say(f"The run used {before} {name}, now {now}: last bits may differ.")


def refuse_missing_origin(run: Run) -> None:
    """Raise `OutputError` if the run to begin as has no checkpoint."""
    if run.from_run is not None:
        _newest_of(run.from_run)


def refuse_branching(run: Run, why: str) -> None:
    """For runs that another's checkpoint does not fit. Raises `OutputError`."""
    if run.from_run is not None:
        raise OutputError(
            f"--run.from {run.from_run} cannot be used here: {why}. --model {run.from_run} begins with its weights."
        )


def origin(run: Run, settings: Mapping[str, Any], steps: int) -> Found:
    """The state to begin with if `run` is a branch, with a note of where it comes from under "branched".

    `settings`, `steps`: those of the branch. Raises `OutputError` for another model, or if nothing would be left to do.
    """
    if run.from_run is None:
        return None, {}
    # Resolved now: runs/latest will lead to this run as soon as it has begun.
    folder = run.from_run.expanduser().resolve()
    newest, state = _newest_of(folder)
    if state["step"] >= steps:
        raise OutputError(
            f"--run.from {folder} is at step {state['step']}, and the branch shall have {steps} steps in all; set "
            f"--run.steps above {state['step']}."
        )
    theirs = state["settings"]
    other = changes({"policy": theirs["policy"]}, {"policy": settings["policy"]})
    if other:
        lines = "\n  ".join(other)
        raise OutputError(
            f"--run.from {folder} trained another model:\n  {lines}\nGive the same --model, adapter and frozen parts, "
            f"or --model {folder} in place of --run.from, which begins with its weights."
        )
    marker = marker_of(folder)
    note = {
        "folder": str(folder),
        "run": state.get("run") or (marker.id if marker else ""),
        "step": state["step"],
    }
    kept, anew = _what_still_fits(state, settings)
    told = f"Branching from {folder} after step {state['step']}."
    Progress.say(f"{told} Anew begin: {', '.join(anew)}." if anew else told)
    return newest, {**kept, "branched": note}


def begin_logs(folder: Path, branch_of: Path | None) -> None:
    """Start the logs of a run anew: empty, or with the curves of the run whose checkpoint it begins with."""
    for name in LOGS:
        (folder / name).unlink(missing_ok=True)
    if branch_of is None:
        return
    for name in CURVES:
        file = branch_of.parents[1] / name
        if file.is_file():
            write_whole(folder / name, file.read_text(encoding="utf-8", errors="replace"))


def _newest_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Newest whole checkpoint of a run, which is only read. Raises `OutputError` without any."""
    folder = folder.expanduser()
    newest, complaints = checkpoint.newest_whole(folder / "checkpoints")
    if newest is None:
        found = "holds no checkpoint" if folder.is_dir() else "is no folder"
        raise OutputError(
            f"--run.from is {folder}, which {found}; name the folder of a run that has saved one, for example "
            "runs/latest."
        )
    if complaints:
        Progress.say("\n".join([*complaints, f"{newest} is used."]))
    return newest, checkpoint.read_state(newest)


def _what_still_fits(
    state: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The numbers of a checkpoint that a branch takes over, and names of those that it begins anew."""
    theirs, kept, anew = state["settings"], dict(state), []
    ours = json.loads(json.dumps(settings))
    order = ("seed", "prompts_per_step")
    same_order = all(theirs["run"].get(name) == ours["run"].get(name) for name in order)
    if theirs.get("prompts") != ours.get("prompts") or not same_order:
        kept["supply"] = None
        anew.append("the order of the data")
    old, new = theirs.get("objectives") or [], ours.get("objectives") or []
    memories = dict(state["objectives"])
    for name in list(memories):
        place = int(name.split(":")[0])
        if old[place : place + 1] != new[place : place + 1]:
            anew += [f"the memory of {name.partition(':')[2]}"] * bool(memories.pop(name))
    kept["objectives"] = memories
    if theirs.get("early") != ours.get("early"):
        kept["plateau"] = None
        anew.append("the watch for an early stop")
    return kept, anew


def _annealed(value: Any, at: str = "") -> Iterator[str]:
    """Names of the settings that follow the progress of the run."""
    if isinstance(value, Mapping):
        if value.get("class") in ANNEALED:
            if value.get("start") != value.get("end"):  # else it is one value for the whole run
                yield at
            return
        for name, part in value.items():
            yield from _annealed(part, f"{at}.{name}" if at else str(name))
    elif isinstance(value, list):
        for part in value:
            # Readers know an objective by its class and not by its place.
            name = part.get("class") if isinstance(part, Mapping) else None
            yield from _annealed(part, str(name or at))
