"""Where a run's numbers go besides its own files: TensorBoard, Weights & Biases, Trackio, MLflow.

Each gets the metrics under their own names, the settings, and at each `run.sample_every` a table of answers with the
pictures they are about. A continued run goes on in the same curves: the id (of Trackio, which has none, the name) comes
from the run's own identity. Steps between the last checkpoint and a kill are logged again, with the same numbers:
TensorBoard forgets the first ones, the others draw over them.

A service that fails is told once and counted (`logger/failures`), and stops nothing: the run's files have it all. The
packages are imported when a session starts, by whoever asked for them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from PIL import Image

from mmrl.ground.faults import first_line
from mmrl.ground.progress import Progress, busy
from mmrl.report.pictures import reduced, spread

Logger = Literal["none", "tensorboard", "wandb", "trackio", "mlflow"]
PROJECT = "mmrl"
"""Project, or experiment, that runs go to unless it is said otherwise."""
LONGEST, FRAMES = 224, 4
"""Pixels on the longer side of a picture in a table; of a clip so many frames stand side by side."""
MLFLOW_VALUE, MLFLOW_BATCH = 6000, 100
"""Characters of a parameter, and parameters of one call, that MLflow takes."""
_NOT_MLFLOW = re.compile(r"[^\w\-. /:]")
"""Characters that MLflow allows in no name, such as the @ of pass@8."""
Numbers = Mapping[str, float | None]


@dataclass(frozen=True)
class Origin:
    """Which run speaks, and where to."""

    folder: Path
    name: str = ""
    identity: str = ""
    """The run's own id; empty where there is none, and the folder's name stands in."""
    project: str = PROJECT
    settings: Mapping[str, Any] = field(default_factory=dict)
    """As they stand in `config.json`."""

    @property
    def id(self) -> str:
        return self.identity or self.folder.name

    @property
    def label(self) -> str:
        """The name with the beginning of the id: the runs of a recipe all bear one name."""
        return f"{self.name or self.folder.name}-{self.id[:8]}"


@dataclass(frozen=True)
class Answered:
    """One row of a table of answers."""

    prompt: str
    picture: np.ndarray | None
    """uint8 [H, W, 3]; None for a question without one."""
    texts: Mapping[str, str]
    """question, answer, truth, stop."""
    reward: float | None


class Session(Protocol):
    """One run in one service."""

    where: str
    """What to open, in words."""

    def log(self, step: int, numbers: Numbers) -> None:
        """Metrics of a step; None is a number that is not finite."""
        ...

    def samples(self, step: int, rows: Sequence[Answered]) -> None:
        """Answers of a step."""
        ...

    def close(self, failed: bool) -> None:
        """The run ends here, or was stopped by an error."""
        ...


def refuse_missing_logger(logger: Logger) -> None:
    """Raise ValueError for a logger that is unknown, or whose package is not installed; nothing is imported for it."""
    if logger == "none":
        return
    if logger not in get_args(Logger):
        allowed = ", ".join(get_args(Logger))
        raise ValueError(f"--run.logger is {logger!r}; it must be one of {allowed}.")
    if importlib.util.find_spec(logger) is None:
        raise ValueError(
            f"--run.logger is {logger}, but that package is not installed: pip install 'mmrl[{logger}]', or leave "
            "--run.logger out; metrics.jsonl and report.html are written in any case."
        )


class Outside:
    """The session of a run, whose failures stop nothing; without a logger it does nothing."""

    def __init__(self, logger: Logger, origin: Origin) -> None:
        refuse_missing_logger(logger)
        self._logger = logger
        self._failed, self._said = 0, False
        self._session = None if logger == "none" else _started(logger, origin)

    def log(self, step: int, numbers: Numbers) -> None:
        """Metrics of a step."""
        self._try(lambda session: session.log(step, numbers))

    def samples(self, step: int, rows: Callable[[], Sequence[Answered]]) -> None:
        """Answers of a step; `rows` is asked only where somebody wants them."""
        self._try(lambda session: session.samples(step, rows()))

    def close(self, failed: bool) -> None:
        """End the session; nothing is logged afterwards."""
        self._try(lambda session: session.close(failed))
        self._session = None

    def failures(self) -> dict[str, float]:
        """`logger/failures` since the last call; nothing for none."""
        count, self._failed = self._failed, 0
        return {"logger/failures": float(count)} if count else {}

    def _try(self, act: Callable[[Session], None]) -> None:
        if self._session is None:
            return
        try:
            act(self._session)
        except Exception as error:
            self._failed += 1
            if not self._said:
                self._said = True
                Progress.say(
                    f"{self._logger} did not take what was logged ({type(error).__name__}: {first_line(error)}); "
                    "training goes on, further failures are counted as logger/failures; metrics.jsonl has every number."
                )


def _started(logger: Logger, origin: Origin) -> Session:
    """A session of the service. Raises ValueError where it cannot be had, since nothing has been computed yet."""
    start = {
        "tensorboard": TensorBoard,
        "wandb": WandB,
        "trackio": Trackio,
        "mlflow": MLflow,
    }[logger]
    try:
        with busy(f"Starting {logger}"):
            session: Session = start(origin)
    except Exception as error:
        raise ValueError(
            f"--run.logger {logger} could not be started ({type(error).__name__}: {first_line(error)}). "
            f"{MENDS[logger]} Or leave --run.logger out; metrics.jsonl and report.html are written in any case."
        ) from error
    Progress.say(f"Also logged to {session.where}.")
    return session


MENDS = {
    "tensorboard": "Check that the output folder can be written to.",
    "wandb": "Log in once (wandb login), or set WANDB_MODE=offline and send it later (wandb sync).",
    "trackio": "Check that TRACKIO_DIR can be written to.",
    "mlflow": "Check MLFLOW_TRACKING_URI, the address of your server.",
}
"""What helps when a service cannot be started."""


class TensorBoard:
    """Event files in the run's own folder."""

    def __init__(self, origin: Origin) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._make, self._origin = SummaryWriter, origin
        self._writer: Any = None
        folder = origin.folder / "tensorboard"
        self.where = f"TensorBoard: tensorboard --logdir {folder}"

    def log(self, step: int, numbers: Numbers) -> None:
        writer = self._at(step)
        for name, value in numbers.items():
            if value is not None:
                writer.add_scalar(name, value, step)
        writer.flush()

    def samples(self, step: int, rows: Sequence[Answered]) -> None:
        writer = self._at(step)
        for number, row in enumerate(rows):
            told = "\n\n".join(
                f"**{name}**\n\n{_quoted(text)}" for name, text in row.texts.items()
            )
            writer.add_text(f"samples/{number}", f"{told}\n\n**reward** {row.reward}", step)
        pictures = [row.picture for row in rows if row.picture is not None]
        # The answers of a group are about one picture.
        if pictures:
            writer.add_image("samples/picture", pictures[0], step, dataformats="HWC")

    def close(self, failed: bool) -> None:
        if self._writer is not None:
            self._writer.close()

    def _at(self, step: int) -> Any:
        """The writer, begun with the first step that is written: later ones of an earlier try are forgotten."""
        if self._writer is None:
            place = str(self._origin.folder / "tensorboard")
            self._writer = self._make(place, purge_step=step)
            settings = json.dumps(
                self._origin.settings, indent=1, ensure_ascii=False, default=str
            )
            self._writer.add_text("settings", _quoted(settings), step)
        return self._writer


class WandB:
    """A run of Weights & Biases, with the run's own id."""

    def __init__(self, origin: Origin) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._wandb = wandb
        self._run: Any = wandb.init(
            project=origin.project,
            name=origin.label,
            id=origin.id,
            dir=str(origin.folder),
            resume="allow",
            config=dict(origin.settings),
            # A continued run may have other limits that are free to change.
            allow_val_change=True,
            settings=wandb.Settings(silent=True, console="off"),
        )
        # By our step: the service refuses steps of its own that it has seen, and a continued run repeats some.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        place = origin.folder / "wandb"
        kept = f"{place} (offline; wandb sync sends it)"
        self.where = f"Weights & Biases: {kept if self._run.offline else self._run.url}"

    def log(self, step: int, numbers: Numbers) -> None:
        self._run.log({"step": step, **_finite(numbers)})

    def samples(self, step: int, rows: Sequence[Answered]) -> None:
        table = self._wandb.Table(
            columns=list(COLUMNS), data=_table(step, rows, self._wandb.Image)
        )
        self._run.log({"step": step, "samples": table})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class Trackio:
    """A run of Trackio, which knows runs by their names."""

    def __init__(self, origin: Origin) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self._trackio = trackio
        with _silent():
            self._run: Any = trackio.init(
                project=origin.project,
                name=origin.label,
                config=json.loads(json.dumps(dict(origin.settings), default=str)),
                resume="allow",
                # No page inside a notebook, no processes that watch the machine.
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self.where = f'Trackio: trackio show --project "{origin.project}"'

    def log(self, step: int, numbers: Numbers) -> None:
        self._run.log(_finite(numbers), step=step)

    def samples(self, step: int, rows: Sequence[Answered]) -> None:
        trackio = self._trackio
        table = trackio.Table(columns=list(COLUMNS), data=_table(step, rows, trackio.Image))
        self._run.log({"samples": table}, step=step)

    def close(self, failed: bool) -> None:
        with _silent():
            # Not of the run alone: what is left open is told about when the process ends.
            self._trackio.finish()


class MLflow:
    """A run of an MLflow experiment, found again by a tag that holds the run's own id."""

    def __init__(self, origin: Origin) -> None:
        # Its bars would be drawn over ours, at each table. It reads this when it is imported.
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        import mlflow  # pyright: ignore[reportMissingImports]

        self._mlflow, self._folder = mlflow, origin.folder
        self._client: Any = mlflow.MlflowClient()
        found = self._client.get_experiment_by_name(origin.project)
        experiment = (
            found.experiment_id if found else self._client.create_experiment(origin.project)
        )
        # Ids are its own to give; ours is hexadecimal or a folder's name.
        known = self._client.search_runs(
            [experiment], filter_string=f"tags.{TAG} = '{origin.id}'", max_results=1
        )
        if known:
            self._id = known[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            made = self._client.create_run(
                experiment, tags={TAG: origin.id}, run_name=origin.label
            )
            self._id = made.info.run_id
            self._parameters(origin.settings)
        self.where = f"MLflow: experiment {origin.project!r} at {mlflow.get_tracking_uri()}"

    def log(self, step: int, numbers: Numbers) -> None:
        named = {_NOT_MLFLOW.sub("_", name): value for name, value in _finite(numbers).items()}
        self._mlflow.log_metrics(named, step=step, run_id=self._id)

    def samples(self, step: int, rows: Sequence[Answered]) -> None:
        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS if name != "picture"}
        for row in _table(step, rows, lambda picture: None):
            for name, value in zip(COLUMNS, row, strict=True):
                if name != "picture":
                    columns[name].append(value)
        self._mlflow.log_table(columns, "samples.json", run_id=self._id)
        pictures = [row.picture for row in rows if row.picture is not None]
        if pictures:
            image = Image.fromarray(pictures[0])
            self._client.log_image(self._id, image, key="samples", step=step)

    def close(self, failed: bool) -> None:
        for name in ("config.json", "report.html"):
            if (self._folder / name).is_file():
                self._client.log_artifact(self._id, str(self._folder / name))
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")

    def _parameters(self, settings: Mapping[str, Any]) -> None:
        """Settings as parameters; once, for they cannot be changed."""
        flat = list(_flat(settings).items())
        for first in range(0, len(flat), MLFLOW_BATCH):
            batch = dict(flat[first : first + MLFLOW_BATCH])
            self._mlflow.log_params(batch, run_id=self._id)


TAG = "mmrl_run"
"""Tag of an MLflow run with the id of ours."""
COLUMNS = ("step", "prompt", "picture", "question", "answer", "truth", "reward", "stop")
"""Columns of a table of answers."""


def _table(step: int, rows: Sequence[Answered], shown: Callable[[Any], Any]) -> list[list[Any]]:
    """The cells of `COLUMNS`; `shown` makes a service's own picture of a PIL one."""
    cells: list[list[Any]] = []
    for row in rows:
        picture = None if row.picture is None else shown(Image.fromarray(row.picture))
        known = {
            "step": step,
            "prompt": row.prompt,
            "picture": picture,
            "reward": row.reward,
            **row.texts,
        }
        cells.append([known.get(name) for name in COLUMNS])
    return cells


def side_by_side(clips: Sequence[np.ndarray]) -> np.ndarray | None:
    """Media uint8 [F, H, W, 3] as one small picture, frames from left to right; None without any."""
    chosen: list[np.ndarray] = []
    for frames in clips:
        for place in spread(len(frames), FRAMES):
            chosen.append(reduced(frames[place], LONGEST))
    if not chosen:
        return None
    height = max(each.shape[0] for each in chosen)
    width = sum(each.shape[1] for each in chosen)
    canvas = np.zeros((height, width, 3), dtype=np.uint8)
    left = 0
    for each in chosen:
        canvas[: each.shape[0], left : left + each.shape[1]] = each
        left += each.shape[1]
    return canvas


def _finite(numbers: Numbers) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if value is not None}


def _flat(value: Any, at: str = "") -> dict[str, str]:
    """Nested settings as names with dots and short texts, as MLflow takes parameters."""
    if isinstance(value, Mapping):
        found: dict[str, str] = {}
        for name, part in value.items():
            found |= _flat(part, f"{at}.{name}" if at else str(name))
        return found
    return {_NOT_MLFLOW.sub("_", at): str(value)[:MLFLOW_VALUE]}


def _quoted(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "\n".join(f"    {line}" for line in text.split("\n"))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what a library prints: standard output is the command's own."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
