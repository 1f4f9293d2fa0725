"""`mmrl eval RUN --with lmms-eval`: the tasks of another program, and our questions as tasks of it.

lmms-eval lives in an environment of its own (it pins other versions of what we need), so it is started there, in the
output folder, and told by files: `spans.jsonl` and `pretext/` for our own tasks (`mmrl.data.lmms_tasks`), its results
for the numbers that are printed. It loads a model in bfloat16, and asks in its own words: numbers of its tasks are
comparable with others of lmms-eval, not with those of `mmrl eval`.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mmrl
from mmrl.data.grounding.sets import GroundingRow
from mmrl.ground.outputs import refuse_place
from mmrl.ground.printable import printable, show, tell
from mmrl.model.adapter_folder import is_adapter
from mmrl.model.checkpoint_files import read_config
from mmrl.model.quiet import quiet_libraries
from mmrl.recipes.shared.clip_asking import Asking, span_style_of
from mmrl.recipes.shared.clip_data import Clips, read_annotations
from mmrl.recipes.shared.exporting import exported
from mmrl.recipes.shared.launch import USER_ERRORS, take_flag
from mmrl.recipes.shared.opening import Data, model_source

NAME = "lmms-eval"
LMMS_HELP = """usage: mmrl eval RUN --with lmms-eval --tasks TASK[,TASK ...] [--flag value ...] [-- flags of lmms-eval]

RUN is a run's folder, a model folder or a hub name. TASK is any of lmms-eval's (mmstar, videomme, …), or one of ours:
mmrl_spans, when something happens in a clip, and mmrl_pretext, the tasks that `mmrl pretext export` wrote.

  --tasks NAMES       one or several, with commas between them
  --dataset FILE      for mmrl_spans: annotations of spans, as mmrl eval reads them;
                      for mmrl_pretext: the data set's folder
  --video-root FOLDER where relative paths of videos start
  --limit N           most questions of each task
  --min-pixels N      smallest and largest area of a picture or frame; as in training the numbers are only alike if
  --max-pixels N      these are (200704 and 1003520)
  --device NAME       cuda or cpu (cuda where lmms-eval's environment sees one)
  --kind NAME         lmms-eval's name for the kind of model; found from the model's config
  --output FOLDER     where tasks, results and answers go (RUN/lmms-eval)
  --python FILE       the Python of lmms-eval's environment (LMMS_EVAL_PYTHON, else this one)
  --show              only show the command, to run it elsewhere

  python -m venv lmms && lmms/bin/pip install 'lmms-eval==0.7.*' 'filelock<4'
  mmrl eval runs/papo --with lmms-eval --tasks mmstar --python lmms/bin/python"""
MODELS = {
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "qwen3_5": "qwen3_5",
    "internvl": "internvl_hf",
}
"""`model_type` -> lmms-eval's name for it."""
OURS = ("mmrl_spans", "mmrl_pretext")
TASKS = Path(mmrl.__file__).parent / "data" / "lmms_tasks"
"""The folder for --include_path."""
FLAGS = (
    *("tasks", "dataset", "video-root", "limit", "min-pixels", "max-pixels", "device"),
    *("kind", "output", "python"),
)
LINKED = ".mmrl"
"""Folder in the output that holds a link to this package and nothing else, for lmms-eval's environment."""


@dataclass(frozen=True)
class Commanded:
    """What the command line asks for."""

    model: str
    tasks: tuple[str, ...]
    output: Path
    python: str
    dataset: str = ""
    video_root: Path | None = None
    limit: str = ""
    pixels: tuple[str, str] = ("200704", "1003520")
    device: str = ""
    kind: str = ""
    show: bool = False
    more: tuple[str, ...] = field(default_factory=tuple)
    """Flags of lmms-eval itself."""

    @classmethod
    def of(cls, args: Sequence[str]) -> Commanded:
        """From the words behind `mmrl eval`. Raises ValueError."""
        given, more = list(args), ()
        if "--" in given:
            place = given.index("--")
            given, more = given[:place], tuple(given[place + 1 :])
        shown = "--show" in given
        given = [word for word in given if word != "--show"]
        flags = {name: take_flag(given, name) or "" for name in FLAGS}
        if len(given) != 1 or given[0].startswith("-"):
            raise ValueError(
                f"{given[1:] or given or 'nothing'} is not understood; name one run or model, and give flags of "
                "lmms-eval itself behind --."
            )
        tasks = tuple(filter(None, flags["tasks"].split(",")))
        if not tasks:
            raise ValueError("--tasks is missing: --tasks mmstar, or several with commas.")
        run = given[0]
        at_home = Path(run) / NAME if Path(run).is_dir() else Path("runs") / NAME
        python = flags["python"] or os.environ.get("LMMS_EVAL_PYTHON") or sys.executable
        return cls(
            model=run,
            tasks=tasks,
            # Whole: lmms-eval is started there.
            output=(Path(flags["output"]) if flags["output"] else at_home).absolute(),
            python=python,
            dataset=flags["dataset"],
            video_root=Path(flags["video-root"]) if flags["video-root"] else None,
            limit=flags["limit"],
            pixels=(flags["min-pixels"] or cls.pixels[0], flags["max-pixels"] or cls.pixels[1]),
            device=flags["device"],
            kind=flags["kind"],
            show=shown,
            more=more,
        )


def evaluate_with(name: str, args: Sequence[str]) -> None:
    """`mmrl eval RUN --with NAME`; user errors end it with their message."""
    if name != NAME:
        sys.exit(printable(f"mmrl eval: --with is {name!r}; it must be {NAME}."))
    if not args or {"-h", "--help"} & set(args):
        show(LMMS_HELP)
        return
    quiet_libraries()
    try:
        _evaluate(Commanded.of(args))
    except (*USER_ERRORS, OSError) as error:
        sys.exit(printable(f"mmrl eval --with {NAME}: {error}"))


def _evaluate(asked: Commanded) -> None:
    """Prepare rows, model and folder, run the other program, and show what it found."""
    ours = [task for task in asked.tasks if task in OURS]
    if len(ours) > 1:
        raise ValueError(
            f"--tasks has {' and '.join(ours)}, which take different --dataset; ask twice."
        )
    if not asked.show:
        refuse_missing(asked.python)
    refuse_place(asked.output, "--output")
    asked.output.mkdir(parents=True, exist_ok=True)
    for task in ours:
        write_rows(task, asked)
    command = command_of(asked, model_folder(asked))
    if asked.show:
        show(f"cd {shlex.quote(str(asked.output))}\n{shlex.join(command)}")
        return
    before = set(results_in(asked.output))
    ended = subprocess.run(command, cwd=asked.output, env=environment_of(asked), check=False)
    new = [file for file in results_in(asked.output) if file not in before]
    if ended.returncode or not new:
        raise ValueError(
            f"lmms-eval ended with status {ended.returncode}{'' if new else ' and wrote no results'}; what it said is "
            f"above. To run it by hand, mmrl eval ... --show."
        )
    for line in numbers_of(new[-1], asked.tasks):
        show(line)
    tell(f"results and answers are in {asked.output}")


def refuse_missing(python: str) -> None:
    """Raise ValueError for an environment without lmms-eval."""
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('lmms_eval') is None)"
    try:
        found = subprocess.run([python, "-c", look], capture_output=True, check=False)
    except OSError as error:
        raise ValueError(f"--python {python} cannot be run ({error}).") from error
    if found.returncode:
        raise ValueError(
            f"{python} has no lmms-eval. Make an environment of its own, since it needs other versions than mmrl: "
            "python -m venv lmms && lmms/bin/pip install 'lmms-eval==0.7.*' 'filelock<4', and give --python "
            "lmms/bin/python."
        )


def write_rows(task: str, asked: Commanded) -> None:
    """The rows of one of our tasks, in the output folder. Raises ValueError for data that the task cannot ask."""
    if task == "mmrl_pretext":
        folder = Path(asked.dataset) if asked.dataset else None
        if folder is None or not list((folder / "data").glob("*.parquet")):
            raise ValueError(
                f"mmrl_pretext asks the rows of a data set, and --dataset {asked.dataset or 'is missing'}"
                f"{' is none' if asked.dataset else ''}; make one with mmrl pretext export."
            )
        link = asked.output / "pretext"
        link.unlink(missing_ok=True)
        link.symlink_to(folder.resolve(), target_is_directory=True)
        return
    if not asked.dataset:
        raise ValueError(
            "mmrl_spans needs --dataset: annotations of spans, as mmrl eval reads them."
        )
    # Where videos lie is said by the user, so nothing else is to be kept out.
    rows = read_annotations(asked.dataset, asked.video_root, Data(allow_outside=True), Clips())
    lines = [json.dumps(_span_row(row)) + "\n" for row in rows if row.spans and not row.image]
    if not lines:
        raise ValueError(f"{asked.dataset} has no question about spans of a clip.")
    (asked.output / "spans.jsonl").write_text("".join(lines), encoding="utf-8")


def _span_row(row: GroundingRow) -> dict[str, Any]:
    """A question as `mmrl_spans` reads it. Raises ValueError for one about a part of a file: that is not cut out."""
    if row.start is not None or row.end is not None:
        raise ValueError(
            f"{row.id} asks about a part of {row.video} ({row.start} to {row.end} s), and lmms-eval shows whole files; "
            "cut the clips out, or use mmrl eval."
        )
    style = span_style_of(Asking())
    question = style.template.replace("{query}", style.clean(row.query))
    video = str(Path(row.video).absolute())
    return {
        "id": row.id,
        "video": video,
        "question": question,
        "spans": row.spans,
        "duration": row.duration,
    }


def model_folder(asked: Commanded) -> str:
    """What lmms-eval loads: a folder or hub name; an adapter, and a run that was stopped, are exported first."""
    source, checkpoint = model_source(asked.model)
    if checkpoint is None and not is_adapter(source):
        return str(Path(source).resolve()) if Path(source).is_dir() else str(source)
    place = asked.output / "model"
    if not place.exists():
        tell(f"The run's model is written to {place}, whole, for lmms-eval.")
        exported(Path(asked.model), place, merge=is_adapter(source) or _adapts(asked.model))
    return str(place)


def _adapts(run: str) -> bool:
    """Did a run that was stopped train an adapter?"""
    from mmrl.training.door import stored_settings

    policy = (stored_settings(Path(run)) or {}).get("policy") or {}
    return bool(policy.get("lora"))


def command_of(asked: Commanded, model: str) -> list[str]:
    """The command line of lmms-eval. Raises ValueError for a kind of model that it has no name for."""
    kind = asked.kind or MODELS.get(read_config(model).model_type, "")
    if not kind:
        raise ValueError(
            f"lmms-eval's name for a {read_config(model).model_type} model is not known here; give it with --kind "
            f"(known: {', '.join(MODELS)})."
        )
    told = [f"pretrained={model}"]
    # It would enlarge small pictures and load on a card that may not be there.
    if kind.startswith("qwen"):
        told += [f"min_pixels={asked.pixels[0]}", f"max_pixels={asked.pixels[1]}"]
    if asked.device:
        told += [f"device={asked.device}", f"device_map={asked.device}"]
    words = [asked.python, "-m", "lmms_eval", "--model", kind, "--model_args", ",".join(told)]
    words += ["--tasks", ",".join(asked.tasks), "--include_path", str(TASKS.resolve())]
    words += ["--batch_size", "1", "--output_path", "results", "--log_samples"]
    if asked.limit:
        words += ["--limit", asked.limit]
    return [*words, *asked.more]


def environment_of(asked: Commanded) -> dict[str, str]:
    """The environment of the other program, in which `mmrl` can be imported and nothing else of ours."""
    place = asked.output / LINKED
    place.mkdir(exist_ok=True)
    link = place / "mmrl"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(mmrl.__file__).parent.resolve(), target_is_directory=True)
    # Not our own path: packages of this environment would stand before those of the other.
    return {**os.environ, "PYTHONPATH": str(place)}


def results_in(folder: Path) -> list[Path]:
    """Result files of lmms-eval, oldest first."""
    found = (folder / "results").rglob("*results.json")
    return sorted(found, key=lambda file: file.stat().st_mtime)


def numbers_of(file: Path, tasks: Sequence[str]) -> list[str]:
    """What a result file says, a line for each number; those that were asked for first."""
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    names = [*(name for name in tasks if name in results), *sorted(set(results) - set(tasks))]
    lines: list[str] = []
    for name in names:
        for key, value in results[name].items():
            # "mIoU,none" is a metric behind a filter; the rest are names and errors that may be "N/A".
            metric = key.partition(",")[0]
            if isinstance(value, int | float) and not metric.endswith("stderr"):
                lines.append(f"  {name:<16} {metric:<16} {value:.4f}")
    return lines
