"""The door to a run's folder. Whatever writes into one goes through it, command lines and `Trainer.fit` alike.

    with entered(run) as door:                lock and marker; nobody else writes until it is left
        door.start_anew(run)                  --run.overwrite: our files go, those of others stay and are named
        door.refuse_other_settings(settings)  a folder is one run's, finished or not
        done = door.finished()                its last metrics, if it is

A command line enters for as long as it runs, and `fit` inside it then finds the door open. A damaged `finished.json` or
`config.json` is named and costs only itself: checkpoints hold the settings as well.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl.ground import outputs
from mmrl.ground.checksums import LIST
from mmrl.ground.outputs import Kind, Marker, OutputError, write_whole
from mmrl.ground.progress import Progress
from mmrl.model.ranks import Ranks
from mmrl.training import checkpoint
from mmrl.training.identity import (
    changed_arguments,
    changes,
    described_prompts,
    without_length,
)
from mmrl.training.model_card import model_card
from mmrl.training.run import FREE_TO_CHANGE, LATEST, RUNS, Run, described_steps
from mmrl.training.tracking import LOGS, Tracker, describe, environment
from mmrl.types import Prompts

ERRORS = "errors.log"
"""Tracebacks of what ended a run."""
CHECKPOINT = ("weights.safetensors", "optimizer.pt", "state.json", LIST)
MODEL = (
    *(
        "config.json",
        "generation_config.json",
        "README.md",
        LIST,
    ),
    *("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json"),
    *("adapter_config.json", "adapter_model.safetensors", "base_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja"),
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
)
WHOLE = (
    *("config.json", "finished.json", "report.html", outputs.MARKER),
    *("metrics.jsonl", "samples.jsonl", "closeups.jsonl", "eval.jsonl"),
)
"""Files that are written beside themselves and renamed."""
DRAFTS = tuple(f".{name}.draft" for name in WHOLE)
FILES = (
    *("config.json", "finished.json", "report.html", ERRORS, *LOGS),
    *("quarantine.jsonl", "difficulty.jsonl", "rationales.jsonl", *DRAFTS),
    *(f"checkpoints/step-*/{name}" for name in CHECKPOINT),
    *(f"checkpoints/damaged-step-*/{name}" for name in CHECKPOINT),
    *("checkpoints/.writing-step-*/**", "checkpoints/.writing-old-*/**"),
    "checkpoints/.replaced-step-*/**",
    *("checkpoints/step-*/shards/**", "checkpoints/damaged-step-*/shards/**"),
    *(f"model/{name}" for name in MODEL),
    ".writing-model-*/**",
    *("frames/*.frames", "frames/.new-*"),
    "tensorboard/events.out.tfevents.*",
    *("wandb/run-*/**", "wandb/offline-run-*/**", "wandb/latest-run", "wandb/debug*.log"),
)
"""What a run writes."""
# The stages before a run are runs in its folder.
STAGES = tuple(
    f"{folder}/{name}"
    for folder in ("sft", "stage1", "stage-*")
    for name in (outputs.MARKER, *FILES)
)
RUN = Kind("run", "--run.output", "--run.overwrite", (*FILES, *STAGES))

_open: dict[tuple[int, Path], Door] = {}
"""Doors that are open, by thread and folder: two threads do not share a run."""


@dataclass
class Door:
    """A run's folder while nobody else may write to it."""

    folder: Path
    marker: Marker
    ranks: Ranks
    """Of several processes the first looks and writes, and all know what it found."""
    cleared: bool = False
    recipe: Mapping[str, Any] | None = None
    """Recipe, preset and arguments of the command line, if there is one; `config.json` keeps them."""
    extended: tuple[int, int] | None = None
    """Steps that the run in the folder had, and those that it shall have now, if these are more."""
    branched: Mapping[str, Any] | None = None
    """Which run this one began as (--run.from), and at which step."""

    def start_anew(self, run: Run) -> None:
        """Delete what the old run wrote, if `run.overwrite` says so; once for each time the door is opened."""
        if run.overwrite and not self.cleared:
            self.marker = self.ranks.by_first(lambda: outputs.clear(self.folder, RUN))
            self.cleared = True

    def refuse_other_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise `OutputError` if the folder holds results of a run with other settings; more steps extend it."""
        self.extended = self.ranks.by_first(lambda: self._refuse_other_settings(settings))

    def _refuse_other_settings(self, settings: Mapping[str, Any]) -> tuple[int, int] | None:
        if not self.results():
            return None
        state = "a finished" if (self.folder / "finished.json").is_file() else "an unfinished"
        stored = stored_settings(self.folder)
        if stored is None:
            raise OutputError(
                f"{self.folder} holds {state} run whose settings are lost (no readable config.json or checkpoint), so "
                "nobody can say whether it is this one. Choose another --run.output, or --run.overwrite to start anew."
            )
        lines = self._changes(stored, settings)
        was, now = described_steps(stored), described_steps(settings)
        longer = (was, now) if was is not None and now is not None and now > was else None
        # A stage of another run is as long as that run says: what was built on it would not fit any more.
        if was != now and not (longer and not self._is_stage()):
            lines.append(
                f"run.steps: was {was}, now {now} (a run can be extended, not cut short)"
            )
        if lines:
            changed = "\n  ".join(lines)
            raise OutputError(
                f"{self.folder} holds {state} run with other settings:\n  {changed}\n"
                "Use the old settings, data and code to continue it, or --run.overwrite to start anew, or another "
                f"--run.output; there, --model {self.folder} begins with its weights, --run.from {self.folder} with "
                "all of its state."
            )
        return longer

    def _changes(self, stored: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
        """What differs from the run in the folder, but for its length."""
        # What the run is made of says it best; the command line also has what is not seen there.
        lines = changes(without_length(stored), without_length(settings))
        if lines or self.recipe is None:
            return lines
        config = read_record(self.folder / "config.json", "its command line is not compared")
        return changed_arguments((config or {}).get("recipe"), self.recipe)

    def _is_stage(self) -> bool:
        """Does the folder lie in that of a run that is under way here?"""
        parents = self.folder.resolve().parents
        return any(place in parents for _, place in _open)

    def begin(self, run: Run, settings: Mapping[str, Any]) -> bool:
        """For a run that keeps no checkpoints: take the folder, or raise `OutputError`. False if it is finished."""
        self.start_anew(run)
        self.refuse_other_settings(settings)
        if self.finished() is not None:
            return False
        if self.ranks.by_first(self.results):
            raise OutputError(
                f"{self.folder} holds an unfinished run, and this recipe keeps no checkpoints to go on from. Choose "
                "another --run.output, or --run.overwrite to start anew."
            )
        self.write_settings(settings)
        return True

    def refuse_lost_end(self) -> None:
        """For a run without checkpoints: raise `OutputError` if it is finished, since nothing can go on from there."""
        if (self.folder / "finished.json").is_file():
            raise OutputError(
                f"{self.folder} holds a finished run whose checkpoints are gone, so it cannot be extended. With "
                f"another --run.output, --model {self.folder} begins with its weights."
            )

    def results(self) -> bool:
        """Is there anything that another run would spoil?"""
        metrics = self.folder / "metrics.jsonl"
        logged = metrics.is_file() and metrics.stat().st_size > 0
        ends = ("finished.json", "model/config.json", "model/base_config.json")
        done = [(self.folder / name).exists() for name in ends]
        return logged or any(done) or bool(checkpoint.steps_in(self.folder / "checkpoints"))

    def finished(self) -> dict[str, float] | None:
        """The last metrics of a finished run, else None."""
        file = self.folder / "finished.json"
        if self.extended:
            return None
        done = self.ranks.by_first(
            lambda: read_record(file, "the end of the run is done again")
        )
        if done is not None:
            Progress.say(
                f"{self.folder} holds a finished run; nothing to do. --run.overwrite starts anew, more --run.steps "
                "extend it."
            )
        return done

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write `config.json`, if there is none that says the same: the run begins, or goes on."""
        if not self.ranks.first:
            return
        # Longer than it was, it is no finished run any more, however soon it may be stopped.
        (self.folder / "finished.json").unlink(missing_ok=True)
        point_to_latest(self.folder)
        config: dict[str, Any] = {"run": self.marker.id, "settings": settings}
        if self.recipe is not None:
            config["recipe"] = self.recipe
        if self.branched is not None:
            config["branched"] = self.branched
        stored = read_record(self.folder / "config.json", "it is written anew")
        plain = json.loads(json.dumps(config))  # as it would look in the file
        if stored is None or stored | plain != stored:
            config["environment"] = environment()
            write_whole(self.folder / "config.json", json.dumps(config, indent=1))

    def tracker(self, run: Run, settings: Mapping[str, Any]) -> Tracker:
        """Who writes the run's numbers, and sends them on in the run's own name; of several processes the first."""
        asked = {} if self.recipe is None else {"recipe": self.recipe}
        return Tracker(
            self.folder,
            run.logger,
            run.name,
            writes=self.ranks.first,
            identity=self.marker.id,
            project=run.project,
            settings={**asked, **settings},
        )

    def card(self, run: Run, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
        """The README.md of the run's model."""
        return model_card(run.name, settings, metrics, self.recipe)

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Write `finished.json`."""
        if not self.ranks.first:
            return
        write_whole(self.folder / "finished.json", json.dumps(metrics, indent=1))


@contextmanager
def entered(run: Run, ranks: Ranks | None = None) -> Iterator[Door]:
    """The door to the run's folder, open for the time of a `with`. Raises `OutputError`.

    All of several `ranks` enter it together; the first has the lock.
    """
    ranks = Ranks.alone() if ranks is None else ranks
    place = (threading.get_ident(), run.folder.resolve())
    if place in _open:
        yield _open[place]
        return
    with ExitStack() as held:
        marker = ranks.by_first(lambda: held.enter_context(_locked(run)))
        _open[place] = Door(run.folder, marker, ranks)
        try:
            yield _open[place]
        finally:
            del _open[place]


@contextmanager
def _locked(run: Run) -> Iterator[Marker]:
    """The run's folder while nobody else writes to it. Raises `OutputError`."""
    refuse_unfit_output(run)
    with outputs.alone(run.folder):
        # A folder that lost its marker is still the run of its checkpoints.
        marker = outputs.claim(run.folder, RUN, _checkpointed(run.folder).get("run"))
        _sweep_drafts(run.folder)
        try:
            yield marker
        finally:
            outputs.release(run.folder)


def _sweep_drafts(folder: Path) -> None:
    """Remove what a killed process was writing: nobody else writes here now."""
    for draft in folder.glob(".writing-model-*"):
        shutil.rmtree(draft, ignore_errors=True)
    for name in DRAFTS:
        (folder / name).unlink(missing_ok=True)


def refuse_unfit_output(run: Run) -> None:
    """See that the output may be used, before the weights are read: that can take minutes. Raises `OutputError`."""
    outputs.refuse_place(run.folder, RUN.output)
    if run.overwrite:
        outputs.refuse_overwriting(run.folder, RUN)
    outputs.prepare(run.folder, RUN)


def settings_of(run: Run, policy: Any, prompts: Prompts) -> dict[str, Any]:
    """What every continued run must agree on, as plain JSON: the run's length and seed, the policy, the data."""
    fixed = {k: v for k, v in describe(run).items() if k not in FREE_TO_CHANGE}
    # Only where it is out of the ordinary: runs from before this setting can be continued.
    for name in ("rows_at_once", "from_run"):
        if getattr(run, name) == getattr(Run(), name):
            del fixed[name]
    return {"run": fixed, "policy": policy, "prompts": described_prompts(prompts)}


def point_to_latest(folder: Path) -> None:
    """Let `runs/latest` lead to a run of the folder runs/; where links cannot be made, there is none."""
    place = folder.resolve()
    if place.parent != Path(RUNS).resolve():
        return
    link, draft = place.parent / LATEST, place.parent / f".{LATEST}-{os.getpid()}"
    if link.exists() and not link.is_symlink():  # somebody's own
        return
    with suppress(OSError):
        draft.unlink(missing_ok=True)
        draft.symlink_to(place.name, target_is_directory=True)
        os.replace(draft, link)


def stored_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of the run in a folder: of its newest checkpoint, else of its `config.json`."""
    record = _checkpointed(folder)
    if "settings" not in record:
        record = (
            read_record(folder / "config.json", "the settings of the run are not known") or {}
        )
    return record.get("settings")


def read_record(file: Path, instead: str) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is none, or a damaged one, which is named with what happens instead."""
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        problem = "it holds no object"
    except (OSError, ValueError, RecursionError) as error:
        found, problem = None, str(error)
    if isinstance(found, dict):
        return found
    Progress.say(f"{file} is damaged ({problem}): {instead}.")
    return None


def _checkpointed(folder: Path) -> dict[str, Any]:
    """The state of the newest checkpoint that can be read, else nothing."""
    place = folder / "checkpoints"
    for step in reversed(checkpoint.steps_in(place)):
        try:
            return checkpoint.read_state(place / f"step-{step}")
        except checkpoint.CheckpointError:
            continue  # whoever continues from it says so
    return {}
