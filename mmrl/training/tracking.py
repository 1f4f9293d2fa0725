"""What a run leaves behind: metrics, samples, configuration, progress.

`metrics.jsonl` holds one object per step with two-level names. Only `time/*` and `memory/*` may differ between a run
and the same run killed and continued. `samples.jsonl` holds answers, `config.json` every setting, `skipped.jsonl` bad
rows.
TensorBoard and Weights & Biases are fed with the same numbers if they are asked for.
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from mmrl.ground.faults import BadRow
from mmrl.ground.version import __version__
from mmrl.types import Prompts, Rollout

Logger = Literal["none", "tensorboard", "wandb"]


class OutputError(ValueError):
    """The output folder cannot be used for this run."""


class Tracker:
    """Writes the files of one run."""

    def __init__(self, folder: Path, logger: Logger = "none", name: str = "") -> None:
        self.folder = folder
        self._sinks = _sinks(folder, logger, name)

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one object; numbers that are not finite are written as null."""
        clean = {
            k: (float(v) if math.isfinite(v) else None) for k, v in sorted(metrics.items())
        }
        _append(self.metrics_file, {"step": step, **clean})
        for sink in self._sinks:
            sink(step, clean)

    def sample(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Append answers with their rewards."""
        for r in rollouts:
            row = {
                "step": step,
                "prompt": r.prompt.id,
                "question": question_text(r.prompt.messages),
                "answer": r.text,
                "truth": r.prompt.answer
                if isinstance(r.prompt.answer, (str, int, float, list))
                else str(r.prompt.answer),
                "reward": r.reward,
                "parts": dict(r.parts),
                "stop": r.stop,
            }
            _append(self.folder / "samples.jsonl", row)

    def truncate(self, step: int) -> None:
        """Forget what was written after this step."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            file = self.folder / name
            if not file.is_file():
                continue
            kept = [line for line, row in _rows(file) if row["step"] <= step]
            draft = file.with_suffix(".draft")
            draft.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            os.replace(draft, file)


def discard(folder: Path) -> None:
    """Empty the folder of an old run. Raises `OutputError` for one with other things, which nobody meant to lose."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / "config.json").is_file():
        raise OutputError(
            f"--run.overwrite would delete {folder}, but that is no folder of a run (it has no config.json); "
            "choose another --run.output, or delete it yourself."
        )
    for inside in folder.iterdir():
        if inside.is_dir() and not inside.is_symlink():
            shutil.rmtree(inside)
        else:
            inside.unlink()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from writing the same run. Raises `OutputError` if one does; ends with the process.

    Where the system or the disk has no such locks, nothing is kept.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise OutputError(
            f"Another process is writing to {folder}; wait for it or stop it, or choose another --run.output."
        ) from error
    except OSError:
        pass  # a network disk without locks
    try:
        yield
    finally:
        os.close(handle)


def prepare_output(folder: Path) -> None:
    """Make the folder and see that it can be written to. Raises `OutputError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"The output folder {folder} cannot be written to ({error}); choose another with --run.output."
        ) from error


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All rows of a run's metrics, without a last one that is being written or was torn."""
    return [row for _, row in _rows(folder / "metrics.jsonl")]


def describe(value: Any) -> Any:
    """A setting as plain JSON: dataclasses with their class name, functions by their name, partials with arguments."""
    if is_dataclass(value) and not isinstance(value, type):
        return {
            "class": type(value).__name__,
            **{f.name: describe(getattr(value, f.name)) for f in fields(value)},
        }
    if isinstance(value, partial):
        given = {"arguments": describe(value.args)} if value.args else {}
        return {
            "function": describe(value.func),
            **given,
            **{k: describe(v) for k, v in value.keywords.items()},
        }
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    return getattr(value, "__qualname__", type(value).__qualname__)


def describe_prompts(prompts: Prompts) -> dict[str, Any]:
    """What tells two collections of prompts apart: class, size, plain fields, and the id of the first row."""
    plain = (
        {f.name: getattr(prompts, f.name) for f in fields(prompts)}
        if is_dataclass(prompts)
        else {}
    )
    plain = {
        k: v for k, v in plain.items() if v is None or isinstance(v, (bool, int, float, str))
    }
    try:
        first = prompts[0].id
    except BadRow:
        first = None
    return {**plain, "class": type(prompts).__name__, "size": prompts.size, "first": first}


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Lines "name: was X, now Y" for settings that differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(old.keys() | new.keys()):
            lines += differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return lines
    return [] if old == new else [f"{path}: was {old!r}, now {new!r}"]


def environment() -> dict[str, Any]:
    """Versions and machine facts that the bits of a run depend on."""
    import transformers

    return {
        "mmrl": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "command": " ".join(sys.argv),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def peak_memory() -> float:
    """Peak memory in MiB: of the CUDA device if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def question_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The chat as one line of text; media as <image> and <video>."""
    out = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        out.append(
            "".join(p["text"] if p["type"] == "text" else f"<{p['type']}>" for p in parts)
        )
    return " ".join(out)


def _rows(file: Path) -> list[tuple[str, Any]]:
    """Lines and what they hold, up to the first torn one. Answers may hold any character, so only "\\n" ends a line."""
    out = []
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            out.append((line, json.loads(line)))
        except json.JSONDecodeError:
            break  # the end of the file, or the torn last line of a killed run
    return out


def _append(file: Path, row: Mapping[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _sinks(folder: Path, logger: Logger, name: str) -> list[Any]:
    if logger == "tensorboard":
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "run.logger is 'tensorboard' but it is not installed: pip install -e '.[tensorboard]'."
            ) from error
        writer = SummaryWriter(str(folder / "tensorboard"))

        def to_tensorboard(step: int, metrics: Mapping[str, float | None]) -> None:
            for key, value in metrics.items():
                if value is not None:
                    writer.add_scalar(key, value, step)
            writer.flush()

        return [to_tensorboard]
    if logger == "wandb":
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError(
                "run.logger is 'wandb' but it is not installed: pip install -e '.[wandb]'."
            ) from error
        session = wandb.init(
            project="mmrl", name=name, dir=str(folder), resume="allow", id=folder.name
        )
        return [lambda step, metrics: session.log(dict(metrics), step=step)]
    if logger != "none":
        raise ValueError(
            f"run.logger is {logger!r}; it must be 'none', 'tensorboard' or 'wandb'."
        )
    return []
