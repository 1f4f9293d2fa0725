"""One training run: where it writes, how long it is, how big its steps are."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl.ground.declared import added
from mmrl.ground.require import require
from mmrl.training.loggers import PROJECT, Logger
from mmrl.types import Prompts

RUNS, LATEST = "runs", "latest"
"""Where runs go by default, and the link in it that leads to the one that was started last."""


@dataclass(frozen=True)
class Run:
    """One training run."""

    name: str = "run"
    """Names the default output folder."""
    output: Path | None = None
    """Folder for metrics, checkpoints and the model; by default runs/NAME-SETTINGS, where the same command finds its
    run again (from Python runs/NAME). An unfinished run in it is continued, a finished one extended by more steps."""
    from_run: Path | None = None
    """--run.from RUN: begin where the newest checkpoint of that run stands, with its weights, moments and step, in a
    folder of one's own; `steps` counts from its beginning."""
    overwrite: bool = False
    """Delete what an old run of mmrl wrote into the output folder, and start anew; other files in it stay."""
    seed: int = 0
    """Seeds data order, answers and views."""
    steps: int | None = None
    """Training steps (rollouts); None counts `epochs`. More than a run in the folder has extend it."""
    epochs: float = 1.0
    """Passes over the data, if `steps` is None."""
    prompts_per_step: int = 16
    """Prompts per rollout (P)."""
    updates_per_step: int = 1
    """Optimizer steps per rollout; each takes a share of the groups."""
    staleness: int = added(0)
    """Steps by which answers may be older than the weights. 1: a server (--load.engine http://…) draws the next step's
    answers while this one updates; they are corrected by importance weights."""
    tokens_per_pass: int = 16384
    """Most tokens of one packed row; larger batches are split, which does not change the result."""
    rows_at_once: int = 256
    """Most answers that are sampled side by side; fewer take less memory and more time."""
    eval_every: int = 0
    """Evaluate each so many steps, and at the start and the end; 0 only there."""
    eval_prompts: int = 256
    """Held-out prompts per evaluation."""
    save_every: int = 50
    """Write a checkpoint each so many steps, and at the end; 0 only at the end."""
    keep: int = 2
    """Checkpoints to keep; 0 keeps all."""
    sample_every: int = 10
    """Write the answers of one prompt each so many steps; 0 never."""
    grace: float = 20.0
    """Seconds that a step has left after SIGTERM, SIGHUP or SIGUSR1; then the state before it is saved."""
    phase_limit: float = 7200.0
    """Of several processes: seconds that one may work at one phase of a step (its rollouts, an update, an evaluation, a
    save); one that takes longer hangs, says so, and all end. Waiting for others does not count. 0: no limit."""
    on_bad: str = "skip"
    """A row that cannot be used is skipped and counted ("skip") or ends the run ("stop")."""
    logger: Logger = "none"
    """Also log to TensorBoard, Weights & Biases, Trackio or MLflow; a continued run goes on in the same curves."""
    project: str = PROJECT
    """Project (MLflow: experiment) that the logger files the run under."""

    def __post_init__(self) -> None:
        has_length = self.steps is None or self.steps >= 1
        # Each update takes whole groups, so there cannot be more updates than prompts.
        updates_fit = 1 <= self.updates_per_step <= self.prompts_per_step
        # It becomes a path below runs/, and must stay there.
        parts = Path(self.name).parts
        inside = bool(parts) and ".." not in parts and not Path(self.name).is_absolute()
        require(
            self,
            name=(inside, "the name of a folder below runs/"),
            steps=(has_length, "at least 1, or None to count epochs"),
            epochs=(self.epochs > 0, "positive"),
            prompts_per_step=(self.prompts_per_step >= 1, "at least 1"),
            updates_per_step=(updates_fit, "1 to prompts_per_step"),
            staleness=(self.staleness in (0, 1), "0 or 1"),
            tokens_per_pass=(1 <= self.tokens_per_pass <= 10**8, "1 to 100,000,000"),
            rows_at_once=(self.rows_at_once >= 1, "at least 1"),
            eval_every=(self.eval_every >= 0, "0 (only at the start and the end) or positive"),
            eval_prompts=(self.eval_prompts >= 0, "0 (no evaluation) or positive"),
            save_every=(self.save_every >= 0, "0 (only at the end) or positive"),
            keep=(self.keep >= 0, "0 (all) or positive"),
            grace=(0 <= self.grace < float("inf"), "0 or positive seconds"),
            phase_limit=(
                0 <= self.phase_limit < float("inf"),
                "0 (no limit) or positive seconds",
            ),
            sample_every=(self.sample_every >= 0, "0 (never) or positive"),
            on_bad=(self.on_bad in ("skip", "stop"), "'skip' or 'stop'"),
        )

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        if self.output is None:
            return Path(RUNS) / self.name
        return Path(self.output).expanduser()  # from Python it may be given as text


FREE_TO_CHANGE = (
    "output",
    "name",
    "overwrite",
    "eval_every",
    "eval_prompts",
    "save_every",
    "keep",
    "sample_every",
    "grace",
    "phase_limit",
    "logger",
    "project",
)
"""Fields of `Run` that a continued run may set differently: they do not touch the weights."""


def planned_steps(run: Run, prompts: Prompts) -> int:
    """Steps of the run."""
    if run.steps is not None:
        return run.steps
    if prompts.size is None:
        raise ValueError("The data is endless, so the run needs a length: set --run.steps.")
    return _steps_of_epochs(run.epochs, prompts.size, run.prompts_per_step)


def described_steps(settings: Mapping[str, Any]) -> int | None:
    """Steps of a run by its settings as they stand in a file; None where they do not say."""
    run, size = settings.get("run", {}), settings.get("prompts", {}).get("size")
    if run.get("steps") is not None:
        return run["steps"]
    if size is None or "epochs" not in run or "prompts_per_step" not in run:
        return None
    return _steps_of_epochs(run["epochs"], size, run["prompts_per_step"])


def _steps_of_epochs(epochs: float, size: int, per_step: int) -> int:
    # Rounded down: a last step with fewer prompts would weigh its few answers as much as a full one.
    rows = int(size * epochs)
    return max(1, rows // per_step)


def refuse_several_processes(what: str) -> None:
    """For work that one process does by itself: several would do it several times. Raises ValueError."""
    world = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun
    if world > 1:
        raise ValueError(
            f"WORLD_SIZE is {world}, but {what} runs in one process; start it without torchrun."
        )


def due(step: int, every: int) -> bool:
    """Is it the turn of what happens each so many steps (0: never)?"""
    return every > 0 and step % every == 0


class PhaseTimer:
    """Seconds of named phases."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._phases: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        # Not in a finally: the time of a phase that raised says nothing about the step.
        self._phases[name] += time.monotonic() - began

    def read(self) -> dict[str, float]:
        """`time/<phase>` and `time/total` in seconds."""
        times = {f"time/{phase}": seconds for phase, seconds in self._phases.items()}
        times["time/total"] = time.monotonic() - self._began
        return times
