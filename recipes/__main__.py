"""The console script: `mmrl NAME [PRESET] [flags]` runs a recipe, `mmrl plan NAME …` says what that would need.

`mmrl list` names all recipes.
"""

from __future__ import annotations

import ast
import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from mmrl.ground.printable import show, tell

HELP = """usage: mmrl RECIPE [PRESET] [--flag value ...]
       mmrl plan RECIPE [PRESET] [--machine 8x80] [--flag value ...]
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


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line; an unknown recipe ends with the nearest name and status 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        show(HELP)
        return
    if args[0] == "list":
        show(listing())
        return
    planning = args[0] == "plan"
    if planning:
        del args[0]
        if not args or args[0] in ("-h", "--help"):
            show(PLAN_HELP)
            return
    name, known = args[0].replace("-", "_"), recipes()
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f" Perhaps you meant {close[0]!r}." if close else ""
        tell(f"mmrl: there is no recipe {args[0]!r}.{hint} `mmrl list` names all.")
        sys.exit(2)
    # Only the chosen recipe is imported: each brings torch and its method along.
    module = import_module(f"mmrl.recipes.{name}")
    if planning:
        from mmrl.recipes.shared.launch import plan_run

        plan_run(module.main, module.PRESETS, args[1:])
        return
    if hasattr(module, "start"):  # a recipe that stands for a family chooses the member itself
        module.start(args[1:])
        return
    from mmrl.recipes.shared.launch import launch

    launch(module.main, module.PRESETS, args[1:])


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
