"""The console script: `mmrl NAME [PRESET] [flags]` runs a recipe (also `mmrl train NAME …`); `mmrl` lists its commands.

plan, check and preview take the command line of a recipe and train nothing; eval, report, export, extrapolate and
geometry take a run.
"""

from __future__ import annotations

import ast
import difflib
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from mmrl.ground.printable import printable, reader_may_leave, show, tell

HELP = """usage: mmrl COMMAND ... | mmrl RECIPE [PRESET] [--flag value ...]

  mmrl papo                                               a tiny model on drawn pictures, minutes on any CPU
  mmrl papo 7b                                            a published variant
  mmrl papo --model my/folder --dataset my.jsonl          your own model and rows

before a run
  list                  all recipes                       doctor          what this computer has and lacks
  plan RECIPE ...       what a run needs, and if it fits  check RECIPE    data, model and settings, no training
  preview RECIPE ...    a page of rows as a run sees them
  choices ROWS ...      requests with a preferred and a rejected answer as choices, with an audit (VMR)
a run
  train RECIPE ...      the same as mmrl RECIPE ...       pretext         trains on media without answers; its rows:
                                                          pretext export, preview, audit, stats, list
after it
  eval RUN              accuracy and pass@k, on the run's own held-out rows or others
  report RUN ...        a page about a run, or several compared
  export RUN            its model as a folder of its own, an adapter merged with --merge
  mixture RUN ...       weights of the data sets to try next, from runs of modomodo or recap
  extrapolate RUN       the model that its checkpoints are heading for, as a folder of its own (NExt)
  geometry RUN          where it changed its matrices, and where not, as a table and pictures

`mmrl COMMAND --help` and `mmrl RECIPE --help` say more; `mmrl RECIPE --help-all` explains every flag."""
PLAN_HELP = """usage: mmrl plan RECIPE [PRESET] [--machine M] [--flag value ...]

What a run will need in each phase, whether it fits, and which switches make it fit. Nothing is loaded or downloaded.

  --machine M       the GiB of one GPU (80), how many and how large (8x80), or a computer without GPU (cpu:24);
                    this machine and its free memory by default
  --images N        pictures of a prompt, each as large as the pixel limit allows (1)
  --text-tokens N   tokens of the text of a prompt (512)
  --tflops X        measured rate of one device: adds seconds of prefill, scoring and update
  --terabytes X     measured terabytes that one device reads per second: adds seconds of decoding

All other flags are the recipe's: `mmrl RECIPE --help`."""

PREVIEW_HELP = """usage: mmrl preview RECIPE [PRESET] [--rows N] [--output FILE] [--flag value ...]

One page with rows as a run would see them: the prompt as the model reads it, pictures and clips as they are and under
every branch, tokens, truth, what a right, a wrong and an empty answer earn, and what is skipped and why. Nothing is
trained, and of the model only the processor is loaded.

  --rows N          rows to show, in the order of training (8)
  --output FILE     the page (preview.html); an earlier preview is replaced, no other file

All other flags are the recipe's: `mmrl RECIPE --help`."""
CHECK_HELP = """usage: mmrl check RECIPE [PRESET] [--rows N] [--flag value ...]

Would a run with these flags start? Settings, output folder, memory, model files and rows are looked at, line by line;
nothing is trained, and of the model only the processor is loaded. Exit code 0 if it would, 1 with the reason if not.

  --rows N          rows to read and encode, in the order of training (64)

All other flags are the recipe's: `mmrl RECIPE --help`."""
EVAL_HELP = """usage: mmrl eval RUN [--flag value ...]

Accuracy (greedy) and pass@k. RUN is a run's folder, finished or stopped: it brings its held-out rows, style, rewards,
lengths and limits, and flags go before them. A model folder or a hub name needs --dataset and --data.style.

  --dataset FILE    other rows, asked in the run's style
  --samples N       answers per question for pass@k (8); 0 measures accuracy only
  --prompts N       most questions to ask
  --output FILE     also write the numbers to this JSON file
  --with lmms-eval  tasks of that program instead: `mmrl eval --with lmms-eval --help`

`mmrl evaluate --help-all` explains every flag."""
REPORT_HELP = """usage: mmrl report RUN [RUN ...] [--output FILE]

One page about a run, or several compared question by question: curves, evaluations with intervals, branches, samples
with pictures and numbers per token, alarms, failures, settings. RUN is a run's folder, finished, under way or stopped.

  --output FILE     the page; report.html in the run's folder by default, needed for several runs"""

PRETEXT_ROWS = ("export", "preview", "audit", "bench", "stats", "eval", "list")
"""Second words with which `mmrl pretext` is about rows; any other trains on them."""
HELPS = {"plan": PLAN_HELP, "preview": PREVIEW_HELP, "check": CHECK_HELP}
"""Commands that take a recipe, with their help."""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line; an unknown recipe ends with the nearest name and status 2."""
    with reader_may_leave():
        _do(list(sys.argv[1:] if argv is None else argv))


def _do(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        show(HELP)
        return
    if args[0] == "pretext" and args[1:2] and args[1] in PRETEXT_ROWS:
        pretext_rows(args[1:])
        return
    by_itself = COMMANDS.get(args[0])
    if by_itself is not None:
        by_itself(args[1:])
        return
    command = args.pop(0) if args[0] in HELPS else "train"
    if args[:1] == ["train"]:
        args.pop(0)
    if not args or args[0] in ("-h", "--help"):
        show(HELPS.get(command, HELP))
        return
    module = _recipe(args[0])
    if command == "train":
        _train(module, args[1:])
    elif command == "plan":
        from mmrl.recipes.shared.launch import plan_run

        plan_run(module.main, module.PRESETS, args[1:])
    elif command == "check":
        from mmrl.recipes.shared.checking import check

        member = _member(module, args[1:])
        check(member.main, member.PRESETS, args[1:])
    else:
        from mmrl.recipes.shared.previewing import preview

        member = _member(module, args[1:])
        preview(member.main, member.PRESETS, args[1:])


def _recipe(asked: str) -> ModuleType:
    """The module of a recipe; an unknown name ends with the nearest one and status 2."""
    name, known = asked.replace("-", "_"), recipes()
    if name not in known:
        close = difflib.get_close_matches(name, [*known, *COMMANDS, *HELPS], 1)
        hint = f" Perhaps you meant {close[0]!r}." if close else ""
        tell(f"mmrl: there is no recipe {asked!r}.{hint} `mmrl list` names all.")
        sys.exit(2)
    # Only the chosen recipe is imported: each brings torch and its method along.
    return import_module(f"mmrl.recipes.{name}")


def _train(module: ModuleType, args: Sequence[str]) -> None:
    if hasattr(module, "start"):  # a recipe that stands for a family chooses the member itself
        module.start(args)
        return
    from mmrl.recipes.shared.launch import launch

    launch(module.main, module.PRESETS, args)


def evaluate(args: Sequence[str]) -> None:
    """`mmrl eval RUN …`."""
    words = list(args)
    if any(word.split("=")[0] == "--with" for word in words):
        from mmrl.recipes.shared.launch import take_flag
        from mmrl.recipes.shared.lmms_eval import evaluate_with

        other = take_flag(words, "with")
        evaluate_with(other or "", words)
        return
    if not args or {"-h", "--help"} & set(args):
        show(EVAL_HELP)
        return
    if args[0].startswith("-"):
        sys.exit(printable(f"mmrl eval: name the run first, before {args[0]}.\n\n{EVAL_HELP}"))
    from mmrl.recipes.evaluate import start

    start(["--model", args[0], *args[1:]])


def export(args: Sequence[str]) -> None:
    """`mmrl export RUN …`."""
    from mmrl.recipes.shared.exporting import export as write

    write(args)


def extrapolate(args: Sequence[str]) -> None:
    """`mmrl extrapolate RUN …`."""
    from mmrl.recipes.next_extrapolation import start

    named = bool(args) and not args[0].startswith("-")
    start(["--model", *args] if named else args)


def geometry(args: Sequence[str]) -> None:
    """`mmrl geometry RUN …`."""
    from mmrl.recipes.update_geometry import start

    named = bool(args) and not args[0].startswith("-")
    start(["--model", *args] if named else args)


def pretext_rows(args: Sequence[str]) -> None:
    """`mmrl pretext export …` and its like: rows of pretext tasks, made and looked at without any training."""
    # A command of its own beside the recipe of the same name: `mmrl pretext [PRESET]` trains on such rows.
    from mmrl.data.pretext.__main__ import main as make

    status = make(list(args), prog="mmrl pretext")
    if status:
        raise SystemExit(status)


def mixture(args: Sequence[str]) -> None:
    """`mmrl mixture RUN …`: the next weights of several data sets."""
    # Torch is not needed for it, and not loaded.
    from mmrl.report.mixture import mixture as tell_next

    tell_next(args)


def choices(args: Sequence[str]) -> None:
    """`mmrl choices ROWS …`: rows with preferred answers as choices that can be checked (VMR)."""
    from mmrl.data.rows.choice_files import main as convert

    convert(args)


def doctor(args: Sequence[str]) -> None:
    """`mmrl doctor`: print what this computer has; status 1 if no run would start."""
    if args:
        show(
            "usage: mmrl doctor\n\nWhat this computer has, what is missing, and what that costs."
        )
        raise SystemExit(0 if args[0] in ("-h", "--help") else 2)
    from mmrl.recipes.shared import doctor as looking

    text, code = looking.report()
    show(text)
    if code:
        raise SystemExit(code)


def report(args: Sequence[str]) -> None:
    """`mmrl report RUN …`: write the page and say where it is; errors of the user end it with their message."""
    # Torch is not needed for it, and not loaded.
    from mmrl.report.build import write_report

    if not args or {"-h", "--help"} & set(args):
        show(REPORT_HELP)
        return
    folders, output = [], None
    left = list(args)
    while left:
        given = left.pop(0)
        name, equals, value = given.partition("=")
        if name == "--output" and (equals or left):
            output = Path(value if equals else left.pop(0))
        elif given.startswith("-"):
            sys.exit(printable(f"mmrl report: there is no flag {given!r}.\n\n{REPORT_HELP}"))
        else:
            folders.append(Path(given))
    try:
        show(str(write_report(folders, output)))
    except (ValueError, OSError) as error:
        sys.exit(printable(f"mmrl report: {error}"))


def _member(module: ModuleType, args: Sequence[str]) -> ModuleType:
    """The recipe that a preset of a family belongs to: the module itself, unless it names another."""
    other = getattr(module, "OTHERS", {}).get(args[0]) if args else None
    return import_module(other) if other else module


def recipes() -> dict[str, str]:
    """Name of each recipe -> the first line of its docstring; nothing is imported for it."""
    found: dict[str, str] = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if not file.stem.startswith("_"):
            text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            found[file.stem] = text.split("\n", 1)[0]
    return found


def listing() -> str:
    """One line a recipe."""
    known = recipes()
    width = max(len(name) for name in known)
    return "\n".join(f"{name:<{width}}  {line}" for name, line in known.items())


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "list": lambda _: show(listing()),
    "doctor": doctor,
    "eval": evaluate,
    "report": report,
    "export": export,
    "mixture": mixture,
    "extrapolate": extrapolate,
    "geometry": geometry,
    "choices": choices,
}
"""Commands that take no recipe; what follows the word is theirs."""

if __name__ == "__main__":
    main()
