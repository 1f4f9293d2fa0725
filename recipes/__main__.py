"""The console script: `mmrl NAME [PRESET] [flags]` runs a recipe, `mmrl plan NAME …` says what that would need.

`mmrl preview NAME …` shows its rows before anything is trained, `mmrl report RUN …` what a run has done, and
`mmrl list` names all recipes.
"""

from __future__ import annotations

import ast
import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from mmrl.ground.printable import printable, show, tell

HELP = """usage: mmrl RECIPE [PRESET] [--flag value ...]
       mmrl plan RECIPE [PRESET] [--machine 8x80] [--flag value ...]
       mmrl preview RECIPE [PRESET] [--rows 8] [--output preview.html] [--flag value ...]
       mmrl report RUN [RUN ...] [--output FILE]
       mmrl list

  mmrl papo                                               a tiny model on drawn pictures, minutes on any CPU
  mmrl papo 7b                                            a published variant
  mmrl papo --model my/folder --dataset my.jsonl          your own model and rows

`mmrl RECIPE --help` explains every number of a recipe."""
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
REPORT_HELP = """usage: mmrl report RUN [RUN ...] [--output FILE]

One page about a run, or several compared question by question: curves, evaluations with intervals, branches, samples
with pictures and numbers per token, alarms, failures, settings. RUN is a run's folder, finished, under way or stopped.

  --output FILE     the page; report.html in the run's folder by default, needed for several runs"""

HELPS = {"plan": PLAN_HELP, "preview": PREVIEW_HELP}
"""Commands that take a recipe, with their help."""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line; an unknown recipe ends with the nearest name and status 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        show(HELP)
        return
    if args[0] == "list":
        show(listing())
        return
    if args[0] == "report":
        report(args[1:])
        return
    command = args.pop(0) if args[0] in HELPS else "run"
    if command in HELPS and (not args or args[0] in ("-h", "--help")):
        show(HELPS[command])
        return
    name, known = args[0].replace("-", "_"), recipes()
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f" Perhaps you meant {close[0]!r}." if close else ""
        tell(f"mmrl: there is no recipe {args[0]!r}.{hint} `mmrl list` names all.")
        sys.exit(2)
    # Only the chosen recipe is imported: each brings torch and its method along.
    module = import_module(f"mmrl.recipes.{name}")
    if command == "plan":
        from mmrl.recipes.shared.launch import plan_run

        plan_run(module.main, module.PRESETS, args[1:])
        return
    if command == "preview":
        from mmrl.recipes.shared.previewing import preview

        member = _member(module, args[1:])
        preview(member.main, member.PRESETS, args[1:])
        return
    if hasattr(module, "start"):  # a recipe that stands for a family chooses the member itself
        module.start(args[1:])
        return
    from mmrl.recipes.shared.launch import launch

    launch(module.main, module.PRESETS, args[1:])


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


if __name__ == "__main__":
    main()
