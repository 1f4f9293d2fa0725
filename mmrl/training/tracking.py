"""What a run leaves behind: metrics, samples, configuration, progress.

`metrics.jsonl` holds one object per step with two-level names. Only `time/*` and `memory/*` may differ between a run
and the same run killed and continued. `samples.jsonl` holds answers, `closeups.jsonl` their pictures and numbers per
token, `eval.jsonl` the answer to each held-out question, `config.json` every setting, `skipped.jsonl` bad rows;
`report.html` shows all of it.
TensorBoard, Weights & Biases, Trackio and MLflow get the same numbers if they are asked for (`loggers`).
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mmrl.ground.calls import Call
from mmrl.ground.declared import is_silent
from mmrl.ground.faults import BadRow
from mmrl.ground.outputs import write_whole
from mmrl.ground.progress import Progress
from mmrl.ground.version import __version__
from mmrl.report.refresh import Refresh
from mmrl.training.loggers import (
    PROJECT,
    Answered,
    Logger,
    Origin,
    Outside,
    side_by_side,
)
from mmrl.types import Prompts, Role, Rollout

LOGS = ("metrics.jsonl", "samples.jsonl", "closeups.jsonl", "eval.jsonl", "skipped.jsonl")
"""Files of a run to which lines are appended."""
KEPT = 400
"""Characters that are kept of a held-out question and of its answer."""


class Tracker:
    """Writes the files of one run; of several processes one `writes`, the others leave them alone."""

    def __init__(
        self,
        folder: Path,
        logger: Logger = "none",
        name: str = "",
        *,
        writes: bool = True,
        identity: str = "",
        project: str = PROJECT,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.writes = writes
        origin = Origin(folder, name, identity, project, settings or {})
        self._outside = Outside(logger if writes else "none", origin)
        self._report = Refresh(folder)

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one object; numbers that are not finite are written as null."""
        if not self.writes:
            return
        # JSON has neither NaN nor infinity.
        clean: dict[str, float | None] = {}
        metrics = {**metrics, **self._report.failures(), **self._outside.failures()}
        for name, value in sorted(metrics.items()):
            clean[name] = float(value) if math.isfinite(value) else None
        append_rows(self.metrics_file, [{"step": step, **clean}])
        self._outside.log(step, clean)
        self._report.if_due()

    def sample(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Append answers with their rewards."""
        if not self.writes:
            return
        self._outside.samples(step, lambda: [_answered(rollout) for rollout in rollouts])
        for rollout in rollouts:
            truth = rollout.prompt.answer
            # References may be anything, also tensors and records of the user's.
            if not isinstance(truth, (str, int, float, list)):
                truth = str(truth)
            row = {
                "step": step,
                "prompt": rollout.prompt.id,
                "question": chat_as_line(rollout.prompt.messages),
                "answer": rollout.text,
                "truth": truth,
                "reward": rollout.reward,
                "parts": dict(rollout.parts),
                "stop": rollout.stop,
                **beyond_plain(rollout),
            }
            append_rows(self.folder / "samples.jsonl", [row])

    def close_up(self, step: int, make: Callable[[], Mapping[str, Any]]) -> None:
        """Append what the report shows of a sampled group; a failure is told once and counted, and stops nothing."""
        if not self.writes:
            return
        with self._report.forgiven("A close-up of samples"):
            append_rows(self.folder / "closeups.jsonl", [{"step": step, **make()}])

    def evaluated(
        self, step: int, rollouts: Sequence[Rollout], scores: Sequence[float]
    ) -> None:
        """Append the answer to each held-out question with its score."""
        if not self.writes:
            return
        rows: list[dict[str, Any]] = []
        for rollout, score in zip(rollouts, scores, strict=True):
            row = {"step": step, "prompt": rollout.prompt.id, "score": score}
            said = {"question": chat_as_line(rollout.prompt.messages), "answer": rollout.text}
            short = {name: text[:KEPT] for name, text in said.items()}
            rows.append({**row, "reward": rollout.reward, **short})
        append_rows(self.folder / "eval.jsonl", rows)

    def refresh(self) -> None:
        """Write the report anew, now."""
        if self.writes:
            self._report.write()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.refresh()
        # A run that somebody stopped has not failed: it goes on later.
        stopped = kind is None or not issubclass(kind, Exception)
        self._outside.close(failed=not stopped)

    def truncate(self, step: int, *, again: bool = False) -> None:
        """Forget what was written after this step, and its own metrics too if they will be logged `again`."""
        if not self.writes:
            return
        made_again = step - again
        for name, latest in (
            ("metrics.jsonl", made_again),
            ("eval.jsonl", made_again),
            ("samples.jsonl", step),
            ("closeups.jsonl", step),
        ):
            file = self.folder / name
            if not file.is_file():
                continue
            kept = [line for line, row in read_rows(file, _has_step) if row["step"] <= latest]
            write_whole(file, "".join(f"{line}\n" for line in kept))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All rows of a run's metrics, none without a file. Damaged lines are named and left out, but for a last one."""
    file = folder / "metrics.jsonl"
    return [row for _, row in read_rows(file, _has_step)] if file.is_file() else []


def describe(value: Any) -> Any:
    """A setting as plain JSON: dataclasses with their class name, functions by their name, partials with arguments."""
    if is_dataclass(value) and not isinstance(value, type):
        described = {"class": type(value).__name__}
        for field in fields(value):
            if not is_silent(field, getattr(value, field.name)):
                described[field.name] = describe(getattr(value, field.name))
        return described
    if isinstance(value, partial):
        described = {"function": describe(value.func)}
        if value.args:
            described["arguments"] = describe(value.args)
        return described | describe(value.keywords)
    if isinstance(value, Mapping):
        return {str(key): describe(inside) for key, inside in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(inside) for inside in value]
    if _is_scalar(value):
        return value
    if isinstance(value, Path):
        return str(value)
    # By name, without address: two processes must describe one function alike.
    return getattr(value, "__qualname__", type(value).__qualname__)


def describe_prompts(prompts: Prompts) -> dict[str, Any]:
    """What tells two collections of prompts apart: class, size, plain fields, and the id of the first row."""
    described: dict[str, Any] = {}
    for field in fields(prompts) if is_dataclass(prompts) else ():
        value = getattr(prompts, field.name)
        # Rows and readers are left out: they would not fit on a line and say nothing that a person could compare.
        if _is_scalar(value):
            described[field.name] = value
    described["class"] = type(prompts).__name__
    described["size"] = prompts.size
    try:
        described["first"] = prompts[0].id
    except BadRow:
        described["first"] = None
    return described


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Lines "name: was X, now Y" for settings that differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines: list[str] = []
        for key in sorted(old.keys() | new.keys()):
            inner = f"{path}.{key}" if path else key
            lines += differences(old.get(key), new.get(key), inner)
        return lines
    if old == new:
        return []
    return [f"{path}: was {old!r}, now {new!r}"]


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
    # Bytes on macOS, KiB elsewhere.
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def chat_as_line(messages: Sequence[Mapping[str, Any]]) -> str:
    """The chat as one line of text; media as <image> and <video>."""
    return " ".join(_message_text(message["content"]) for message in messages)


def _answered(rollout: Rollout) -> Answered:
    """An answer as a row of a table, with the pictures it is about."""
    prompt = rollout.prompt
    texts = {
        "question": chat_as_line(prompt.messages),
        "answer": rollout.text,
        "truth": str(prompt.answer),
        "stop": rollout.stop,
    }
    # Frames are [F, 3, H, W].
    clips = [medium.frames.permute(0, 2, 3, 1).cpu().numpy() for medium in prompt.media]
    reward = None if rollout.reward is None else float(rollout.reward)
    return Answered(prompt.id, side_by_side(clips), texts, reward)


def _message_text(content: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of one message, which is a string or a list of parts."""
    if isinstance(content, str):
        return content
    text = ""
    for part in content:
        text += part["text"] if part["type"] == "text" else f"<{part['type']}>"
    return text


def _is_scalar(value: object) -> bool:
    """Is it a value that JSON holds as it is?"""
    return value is None or isinstance(value, (bool, int, float, str))


def read_rows(
    file: Path, is_row: Callable[[dict[str, Any]], bool]
) -> list[tuple[str, dict[str, Any]]]:
    """Lines and the objects on them. A damaged line costs itself only; all but an unfinished last one are named."""
    rows: list[tuple[str, dict[str, Any]]] = []
    damaged: list[int] = []
    # Answers may hold any character, so only "\n" ends a line.
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        row = _object(line)
        if row is not None and is_row(row):
            rows.append((line, row))
        elif line.strip() and number < len(lines):
            damaged.append(number)
    if damaged:
        several = "line" if len(damaged) == 1 else "lines"
        first = ", ".join(map(str, damaged[:5]))
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        Progress.say(f"{file}: {several} {first}{more} cannot be read and are left out.")
    return rows


def _object(line: str) -> dict[str, Any] | None:
    """The object on a line; None for anything else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _has_step(row: Mapping[str, Any]) -> bool:
    return type(row.get("step")) is int


def append_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append objects, one a line."""
    # Opened each time, so that what was written survives the process and can be read while it runs.
    lines = [json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows]
    with file.open("ab+") as handle:
        # A line that was torn by a kill must not take this one with it.
        if handle.tell() and not _ends_a_line(handle):
            handle.write(b"\n")
        handle.write("".join(lines).encode("utf-8", "replace"))


def _ends_a_line(handle: BinaryIO) -> bool:
    handle.seek(-1, os.SEEK_END)
    return handle.read(1) == b"\n"


def beyond_plain(rollout: Rollout) -> dict[str, Any]:
    """What a log says of an answer only if it is no plain one: who wrote it, how much was given, how it was cooled."""
    found: dict[str, Any] = {}
    if rollout.origin != "policy":
        found["origin"] = rollout.origin
    if rollout.teacher:
        found["teacher"] = rollout.teacher
    if given := int((rollout.roles == int(Role.HINT)).sum()):
        found["hint_tokens"] = given
    # Of its first and its last token: there may be thousands.
    if isinstance(rollout.temperature, torch.Tensor) and len(rollout.temperature):
        found["temperature"] = rollout.temperature[[0, -1]].tolist()
    if rollout.calls:
        found["calls"] = [told_of(call) for call in rollout.calls]
    return found


def told_of(call: Call) -> dict[str, Any]:
    """What a log says of a call of a tool."""
    asked = None if call.action is None else plain_text(call.action.arguments)
    told: dict[str, Any] = {"tool": call.tool, "outcome": call.outcome, "asked": asked}
    told |= {"said": call.said[:KEPT], "note": call.note[:KEPT], "shown": call.shown}
    return {**told, "seconds": round(call.seconds, 3)}


def plain_text(arguments: Mapping[str, Any]) -> str:
    """Arguments of a call as one line."""
    told = ", ".join(f"{name}={value}" for name, value in arguments.items())
    return told[:KEPT]
