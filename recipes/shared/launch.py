"""How a recipe starts and ends: presets, the command line with its help, and the summary.

`launch(main, PRESETS)` reads the command line. A first bare word names a preset, a set of overrides of the recipe's
defaults; every number can be overridden again by a flag. Without preset, `--model` and `--dataset` the embedded preset
runs: a tiny model on drawn pictures, on any laptop. A real model without a preset gets the published preset nearest in
size, so that the tiny model's numbers never reach it. `resolved` is all of this without the call: `--print-config`
shows it, `--config` takes it back.

Records explain themselves: the docstring of the class heads their flags, the string under a field is its help. What all
recipes call by the same name (model, dataset, …) is explained here; a line of the recipe's own "Args:" goes before.

While a recipe runs, the folder of its run is locked, and SIGTERM, SIGHUP and SIGUSR1 end it with 128 + their number
(`mmrl/ground/stopping.py`). `fit(trainer, watch=...)` trains to the end and prints what happened.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from mmrl.ground.faults import first_line
from mmrl.ground.printable import hush, hushed, printable, reader_may_leave, show, tell
from mmrl.ground.stopping import leaving
from mmrl.model.load import resolve_device, resolve_dtype
from mmrl.model.quiet import quiet_libraries
from mmrl.model.ranks import RankFailed, Ranks, is_of_another
from mmrl.recipes.shared import domains
from mmrl.recipes.shared.configuration import (
    Configuration,
    Stored,
    arguments_of,
    giving_back,
    read_file,
)
from mmrl.recipes.shared.machines import LAPTOP, ONE_NODE
from mmrl.recipes.shared.opening import EMBEDDED, Data, Load, refuse_missing_model
from mmrl.recipes.shared.own_rewards import collected
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.recipes.shared.planning import refuse_unfit, show_plan, take_machine
from mmrl.recipes.shared.processes import ranks_of
from mmrl.recipes.shared.rehearsal import is_doubtful, rehearse
from mmrl.recipes.shared.short_help import short_help
from mmrl.recipes.shared.unread import changed, refuse_unread
from mmrl.rewards.pay import RewardStopped
from mmrl.training.checkpoint import CheckpointError
from mmrl.training.compatibility import check_sampling
from mmrl.training.door import ERRORS, entered
from mmrl.training.going_on import refuse_missing_origin
from mmrl.training.identity import short_name
from mmrl.training.loggers import refuse_missing_logger
from mmrl.training.run import RUNS, Run, refuse_several_processes
from mmrl.training.tracking import read_metrics
from mmrl.training.trainer import Trainer, TrainingError

USER_ERRORS = (
    ValueError,
    CheckpointError,
    RewardStopped,
    TrainingError,
    RankFailed,
    FileNotFoundError,
)
"""End a recipe with their message; anything else is our fault, and its traceback is kept."""
IN_THE_WORK = (CheckpointError, RewardStopped, TrainingError, RankFailed)
"""Of those, what happens after the start; the cause may be anything."""
HELP = {
    "model": 'Folder or hub name of a model whose family is known (docs/models.md), or "embedded".',
    "dataset": "JSONL, JSON, parquet or CSV file, folder, hub name, or drawn:lookup.",
    "video_root": "Where relative paths of videos start; the data file's folder by default.",
    "dynamic": "Dynamic sampling: drop groups that are all right or all wrong (DAPO).",
}
"""Plain arguments that mean the same in every recipe."""
PRINT = "--print-config"
FROM = "--run.from"
HELP_ALL = "--help-all"
CONFIG_HELP = f"""Also: {PRINT} prints all of this as YAML and ends.
And: --config FILE starts from such a file in place of a preset."""
ADVICE = "the same command with --help, or with your own --model MODEL --dataset FILE"


class Preset:
    """A note for the help, and overrides of a recipe's defaults: argument=value, or =mapping of fields for a record.

    `size`: billions of parameters of the published model; None keeps the preset out of the choice by size.
    `machine`: what it is meant for, in the words of `machines.py`; a laptop for the embedded model, else one node.
    """

    def __init__(self, note: str, size: float | None = None, /, **values: Any) -> None:
        # Taken out of the values, because an unpacked mapping of one type must fit every named parameter.
        meant = LAPTOP if values.get("model") == EMBEDDED else ONE_NODE
        self.machine: str = values.pop("machine", None) or meant
        self.note, self.size, self.values = note, size, values


def launch(
    main: Callable[..., Any], presets: Mapping[str, Preset], argv: Sequence[str] | None = None
) -> Any:
    """Run a recipe from the command line; an error ends it with one paragraph, its traceback is in the run's folder."""
    with reader_may_leave():
        return _launched(main, presets, list(sys.argv[1:] if argv is None else argv))


def _launched(
    main: Callable[..., Any], presets: Mapping[str, Preset], args: Sequence[str]
) -> Any:
    prog = _prog(main)
    kept: list[str] = []
    if os.environ.get("RANK", "0") != "0":
        hush()  # before anything is said: of several processes the first speaks
    try:
        asked = resolved(main, presets, args)
        if PRINT in args:
            return show(asked.yaml())
        quiet_libraries()
        arguments = placed(asked).arguments
        if "run" not in arguments:  # only what trains divides its work
            refuse_several_processes(prog)
        tell(f"{prog} {asked.preset}")
        with ranks_of(arguments) as ranks:
            look_ahead(arguments)
            ranks.by_first(lambda: refuse_unfit(asked))
            if is_doubtful(asked) and not ranks.several:
                rehearse(main, asked)
            with leaving(), _at_the_door(arguments.get("run"), asked, ranks, kept):
                return main(**arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except USER_ERRORS as error:
        if hushed() and is_of_another(error):
            sys.exit(1)  # the process that failed says why, and the first one what is left
        sys.exit(printable(f"{prog}: {error}{''.join(kept)}"))
    except BrokenPipeError:
        raise
    except OSError as error:
        # Of a disk, mostly; what it concerns, the error knows.
        advice = "See that there is room on the disk and that the file can be read or written"
        again = f"{advice}, then run the same command again."
        sys.exit(printable(f"{prog}: {error}. {again}{''.join(kept)}"))
    except Exception as error:
        if not any(kept):
            raise
        what = f"{type(error).__name__}: {first_line(error)}"
        sys.exit(printable(f"{prog} stopped at something nobody foresaw: {what}{kept[0]}"))


def keep_traceback(folder: Path) -> str:
    """Append the traceback of the error in hand to the log of a run's folder; a sentence that says where."""
    file = folder / ERRORS
    try:
        with file.open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{traceback.format_exc()}\n")
    except OSError:  # the disk may be what is wrong
        return ""
    return f"\nThe traceback is in {file}."


def look_ahead(arguments: Mapping[str, Any]) -> None:
    """Raise ValueError for what cannot be found or read among the user's own files, before anything is loaded."""
    data, reward, run = (arguments.get(name) for name in ("data", "reward", "run"))
    if isinstance(run, Run):
        refuse_missing_logger(run.logger)
        refuse_missing_origin(run)
    if "model" in arguments:
        refuse_missing_model(str(arguments["model"]))
    load, judge = arguments.get("load"), arguments.get("judge")
    if isinstance(load, Load):
        resolve_dtype(load.dtype, resolve_device(load.device))
    key = getattr(judge, "key_file", None)
    if key is not None and not Path(key).expanduser().is_file():
        raise ValueError(f"--judge.key-file names {key}, which is no file.")
    several, mix = domains.domains_of(arguments), arguments.get("mix")
    if several:
        domains.look_ahead(several, mix if isinstance(mix, domains.Mix) else None)
    elif isinstance(data, Data):
        data.template()
        data.refuse_drawn(str(arguments.get("dataset", "")))
        if isinstance(reward, RewardWeights):
            reward.parts(style_of(data.style))


@contextmanager
def _at_the_door(
    run: Run | None, asked: Configuration, ranks: Ranks, kept: list[str]
) -> Iterator[None]:
    """The folder of a recipe that writes one is its own from the beginning to the end; others need none.

    Where the traceback of what ended the run lies is added to `kept`.
    """
    if run is None:
        yield
        return
    with entered(run, ranks) as door:
        door.recipe = asked.plain()
        try:
            yield
        except Exception as error:
            # What a user mistyped needs none; what happened in the middle of the work may.
            if isinstance(error, IN_THE_WORK) or not isinstance(error, USER_ERRORS):
                # Here, while the folder is ours: it goes with the door if nothing lies in it.
                kept.append(keep_traceback(run.folder))
            raise


def plan_run(
    main: Callable[..., Any], presets: Mapping[str, Preset], argv: Sequence[str]
) -> None:
    """`mmrl plan RECIPE …`: what a run of this command line would need; user errors end it with their message."""
    args = list(argv)
    try:
        device, prompting = take_machine(args, take_flag)
        asked = resolved(main, presets, args)
        if "load" not in asked.arguments:
            raise ValueError(
                f"{_prog(main)} puts no model on a device, so there is nothing to plan; `mmrl list` names the others."
            )
        show_plan(asked, device, prompting)
    except USER_ERRORS as error:
        sys.exit(printable(f"mmrl plan: {error}"))


def resolved(
    main: Callable[..., Any], presets: Mapping[str, Preset], argv: Sequence[str]
) -> Configuration:
    """What a command line asks for, with every argument; `--help` is printed and ends. Raises ValueError."""
    given = [arg for arg in argv if arg != PRINT]
    short = bool({"-h", "--help"} & set(given))
    # The command line's own --help is the long one.
    wanted = [] if short else ["--help"] * (HELP_ALL in given)
    args = collected([arg for arg in given if arg not in ("-h", "--help", HELP_ALL)])
    args = [_by_its_field(arg) for arg in domains.collected(args)]
    prog, recipe = _prog(main), _module(main).rpartition(".")[2]
    name = args.pop(0) if args and not args[0].startswith("-") else None
    file = take_flag(args, "config")
    stored = None if file is None else read_file(file)
    if stored is not None and name is not None:
        raise ValueError(
            f"Both the preset {name!r} and --config {file} are given; leave one out, flags override either."
        )
    name, preset_main = _with_preset(main, presets, name, args, stored)
    values = {} if stored is None else arguments_of(stored, preset_main, recipe)
    call = giving_back(explained(with_defaults(preset_main, values)))
    intent = inspect.cleandoc(main.__doc__ or "").split("\n\n")[0]
    listed = f"Presets (first word; here {name!r}):\n{_preset_lines(presets)}"
    description = f"{intent}\n\n{listed}\n\n{CONFIG_HELP}"
    arguments = tyro.cli(
        call,
        prog=f"{prog} [preset]",
        description=description,
        args=[*args, *wanted],
        config=(tyro.conf.SuppressFixed,),  # functions are not for the command line
    )
    usual = preset_arguments(call)
    if not isinstance(arguments.get("mix"), domains.Mix):
        domains.refuse_several(str(arguments.get("dataset", "")), recipe)
    refuse_unread(recipe, usual, arguments)
    given_names = tuple(changed(usual, arguments))
    asked = Configuration(recipe, name, for_own_rows(usual, arguments), given_names)
    if short:
        show(f"usage: {prog} [preset] [--flag value ...]\n")
        show(short_help(asked, intent, _preset_lines(presets), call))
        sys.exit(0)
    return asked


def placed(asked: Configuration) -> Configuration:
    """The same with the folder of its run: by default one for each set of settings, whatever the length."""
    run = asked.arguments.get("run")
    if not isinstance(run, Run) or run.output is not None:
        return asked
    folder = Path(RUNS) / f"{run.name}-{short_name(asked.chosen())}"
    arguments = {**asked.arguments, "run": replace(run, output=folder)}
    return replace(asked, arguments=arguments)


def _with_preset(
    main: Callable[..., Any],
    presets: Mapping[str, Preset],
    name: str | None,
    args: Sequence[str],
    stored: Stored | None,
) -> tuple[str, Callable[..., Any]]:
    """The preset that flags and file ask for, and `main` with its numbers as defaults. Raises ValueError."""
    asked = {place: flag(args, place) for place in ("model", "dataset")}
    if stored is not None:
        name = stored.preset
        for place, value in asked.items():
            # A file may be all that names the model.
            asked[place] = value or _text(stored.given.get(place))
    name = choose_preset(presets, name, asked["model"], asked["dataset"])
    return name, with_defaults(main, presets[name].values)


def preset_arguments(call: Callable[..., Any]) -> dict[str, Any]:
    """What a recipe would be called with if no flag were given."""
    return {name: p.default for name, p in inspect.signature(call).parameters.items()}


def for_own_rows(usual: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments; split and subset of the recipe's data set are not asked of another one that a flag names."""
    data, theirs = arguments.get("data"), usual.get("data")
    if not isinstance(data, Data) or arguments["dataset"] == usual["dataset"]:
        return dict(arguments)
    given = {name: getattr(data, name) for name in ("split", "subset")}
    kept = {name: v if v != getattr(theirs, name) else None for name, v in given.items()}
    return {**arguments, "data": replace(data, **kept)}


def _text(value: Any) -> str | None:
    """The value if it is one; what else stands in a file is told where it is read."""
    return value if isinstance(value, str) else None


def _by_its_field(arg: str) -> str:
    """`--run.from` under the name of its field: Python keeps the word `from` to itself."""
    given, equals, value = arg.partition("=")
    return f"--run.from-run{equals}{value}" if given == FROM else arg


def fit(trainer: Trainer, *, watch: Sequence[str] = (), advice: str = ADVICE) -> None:
    """Train to the end, then print what happened to the watched metrics and where things lie."""
    check_sampling(trainer.sampling, trainer.estimator, trainer.rollout)
    trainer.watch = watch
    trainer.fit()
    # An early stop ends before the planned steps; a run that was finished before does none at all.
    summarise(trainer.run, trainer.step_done or trainer.steps, watch=watch, advice=advice)


def choose_preset(
    presets: Mapping[str, Preset], name: str | None, model: str | None, dataset: str | None
) -> str:
    """The named preset, `embedded`, or the published one nearest to the model in size. Raises ValueError."""
    if name is not None:
        if name not in presets:
            close = difflib.get_close_matches(name, presets, 1)
            hint = f" Perhaps you meant {close[0]!r}." if close else ""
            raise ValueError(
                f"There is no preset {name!r}; there are {', '.join(presets)}.{hint}"
            )
        return name
    if model == EMBEDDED or (model is None and dataset is None):
        return EMBEDDED
    sizes = {name: preset.size for name, preset in presets.items() if preset.size is not None}
    if not sizes:
        raise ValueError(f"Name a preset for a real model or data set: {', '.join(presets)}.")
    size = None if model is None else model_size(model)
    if size is None:
        # Of unknown size: the first published preset is the paper's main one.
        chosen, reason = next(iter(sizes)), "the paper's default"
    else:
        chosen = min(sizes, key=lambda name: abs(sizes[name] - size))
        reason = f"nearest to {model} ({size:.1f} B parameters)"
    tell(f"Preset {chosen!r} is used: {reason}.")
    return chosen


def model_size(model: str) -> float | None:
    """Billions of parameters: from the weights of a local folder, else from the name ("…-7B-…"); None if unknown."""
    folder = Path(model)
    if folder.is_dir():
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return size / 2e9 if size else None  # published weights have two bytes each
    found = re.search(r"(\d+(?:\.\d+)?)\s*[bB]\b", model.replace("-", " "))
    return float(found.group(1)) if found else None


def flag(args: Sequence[str], name: str) -> str | None:
    """The value of --name among the arguments, as `--name value` or `--name=value`."""
    for place, arg in enumerate(args):
        if arg == f"--{name}" and place + 1 < len(args):
            return args[place + 1]
        if arg.startswith(f"--{name}="):
            return arg.split("=", 1)[1]
    return None


def take_flag(args: list[str], name: str) -> str | None:
    """Like `flag`, and takes the flag with its value out of the arguments."""
    found = flag(args, name)
    if found is not None:
        place = next(i for i, arg in enumerate(args) if arg.split("=", 1)[0] == f"--{name}")
        del args[place : place + (1 if "=" in args[place] else 2)]
    return found


def with_defaults(main: Callable[..., Any], values: Mapping[str, Any]) -> Callable[..., Any]:
    """A copy of `main` whose defaults are overridden; mappings change fields of a record. Raises ValueError."""
    parameters = inspect.signature(main).parameters
    unknown = set(values) - set(parameters)
    if unknown:
        raise ValueError(
            f"{main.__module__}: the preset sets {sorted(unknown)}, which the recipe does not have."
        )
    defaults = []
    for name, parameter in parameters.items():
        default, new = parameter.default, values.get(name, parameter.default)
        changes_fields = is_dataclass(default) and isinstance(new, Mapping)
        defaults.append(replace(default, **new) if changes_fields else new)  # type: ignore[type-var]
    # A real function, not a partial or a wrapper: tyro reads its annotations in the recipe's own namespace.
    copy = types.FunctionType(
        main.__code__, main.__globals__, main.__name__, tuple(defaults), main.__closure__
    )
    copy.__annotations__ = main.__annotations__
    copy.__doc__, copy.__module__ = main.__doc__, main.__module__
    return copy


def explained(main: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; its docstring gains the help of common arguments that it does not explain itself."""
    text = inspect.cleandoc(main.__doc__ or "")
    # The docstring is what tyro reads; there is no other way to hand it help for plain arguments of a function.
    own = set(re.findall(r"^ {4}(\w+):", text, re.MULTILINE))
    names = [name for name in inspect.signature(main).parameters if name in HELP]
    added = "".join(f"\n    {name}: {HELP[name]}" for name in names if name not in own)
    start = "" if "\nArgs:" in text else "\n\nArgs:"
    main.__doc__ = f"{text}{start}{added}"
    return main


def summarise(run: Run, steps: int, *, watch: Sequence[str] = (), advice: str = "") -> None:
    """Print what the run did: accuracy before and after, watched metrics, where things lie, what to try next."""
    rows = read_metrics(run.folder)
    lines = ["", f"{run.name}: {steps} steps done."]
    scores = _logged(rows, "eval/accuracy")
    if scores:
        (first, before), (last, after) = scores[0], scores[-1]
        change = f"{before:.3f} at step {first}  ->  {after:.3f} at step {last}   ({after - before:+.3f})"
        lines.append(f"  held-out accuracy (greedy)   {change}")
    for name in ("reward/total", *watch):
        values = [value for _, value in _logged(rows, name)]
        if values:
            # Single steps are noisy, so a tenth of the run stands for each end.
            few = max(1, len(values) // 10)
            start, end = sum(values[:few]) / few, sum(values[-few:]) / few
            lines.append(
                f"  {name:<28} {start:.3f}  ->  {end:.3f}   (means of the first and last {few} steps)"
            )
    # A short run keeps no samples, for example: only what is there is named.
    for name in ("metrics.jsonl", "samples.jsonl", "checkpoints", "model", "report.html"):
        if (run.folder / name).exists():
            lines.append(f"  {name.partition('.')[0]:<12} {run.folder}/{name}")
    if advice:
        lines.append(f"Next: {advice}")
    show("\n".join(lines))


def _logged(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) of the steps that logged a metric."""
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def _module(main: Callable[..., Any]) -> str:
    """Full name of the recipe's module."""
    # Under `python -m` the module is called __main__, and only its spec still knows the name.
    spec = main.__globals__.get("__spec__")
    return spec.name if main.__module__ == "__main__" and spec is not None else main.__module__


def _prog(main: Callable[..., Any]) -> str:
    """How the user called the recipe: `python -m recipes.papo`, or `mmrl papo`."""
    # Under `python -m` the module is called __main__, and only its spec still knows the name.
    spec = main.__globals__.get("__spec__")
    if main.__module__ == "__main__":
        return f"python -m {spec.name}" if spec is not None else "recipe"
    return f"mmrl {main.__module__.rpartition('.')[2]}"


def _preset_lines(presets: Mapping[str, Preset]) -> str:
    width = max(map(len, presets))
    return "\n".join(f"  {name:<{width}}  {preset.note}" for name, preset in presets.items())
