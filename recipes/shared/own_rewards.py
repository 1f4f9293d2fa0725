"""Rewards from the command line: `--reward my.py:func=0.5 --reward format=0.1`, without a recipe of one's own.

`--reward` may be given several times, and what is given replaces the recipe's `accuracy` and `format`. Each is

    my_rewards.py:func     a function of a file (or a callable object, or a class that needs no arguments)
    package.module:func    the same, of an installed module
    choice                 one of ours, by name (`BUILT_IN`); accuracy and format are those of the run's --data.style

with `=WEIGHT` behind it, 1 by default. A function is called as `Rewards` calls it: `f(rollout)`, a batch of them, or
TRL's `f(prompts, completions, **columns)`; `mmrl.rewards.parts` describes the three. What several files call the same
gets its file's name in front.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mmrl.data.grounding.rewards import SpanReward, span_iou
from mmrl.perception.rewards import (
    DetectionReward,
    GroundingReward,
    PointReward,
    ReferringReward,
    grounding_format,
    yes_no_accuracy,
)
from mmrl.rewards import functions as pay
from mmrl.rewards.parts import parse_part

Function = Callable[..., Any]
FLAG = "--reward"
BUILT_IN: Mapping[str, Function] = {
    "math": pay.boxed_accuracy,
    "tagged": pay.tagged_accuracy,
    "words": pay.words_accuracy,
    "number": pay.number_accuracy,
    "choice": pay.choice_accuracy,
    "exact": pay.exact_accuracy,
    "yes-no": yes_no_accuracy,
    "iou": ReferringReward(),
    "detection": DetectionReward(),
    "grounding": GroundingReward(),
    "points": PointReward(),
    "span": SpanReward(span_iou),
    "think-format": pay.think_format,
    "answer-format": pay.answer_format,
    "objects-format": grounding_format,
    "repetition": pay.RepetitionPenalty(),
}
"""Rewards of ours by their name on the command line."""
OF_STYLE = ("accuracy", "format")
"""Names that stand for what the run's style pays."""


@dataclass(frozen=True)
class NamedReward:
    """One `--reward`, read but not loaded."""

    place: str
    """A file or module; empty for one of ours."""
    name: str
    """The function's name, or ours."""
    weight: float = 1.0

    def __str__(self) -> str:
        return f"{self.place}:{self.name}" if self.place else self.name


def read(text: str) -> NamedReward:
    """`PLACE:NAME[=WEIGHT]` or `NAME[=WEIGHT]`. Raises ValueError for what is neither."""
    given, equals, number = text.rpartition("=")
    given, weight = (given, _weight(text, number)) if equals else (text, 1.0)
    # The last colon: a drive of Windows has one, too.
    place, colon, name = given.rpartition(":")
    if colon and place and name.isidentifier():
        return NamedReward(place, name, weight)
    if not colon and (given in BUILT_IN or given in OF_STYLE):
        return NamedReward("", given, weight)
    known = sorted({*BUILT_IN, *OF_STYLE})
    close = difflib.get_close_matches(given, known, 1)
    hint = f" Perhaps you meant {close[0]!r}." if close else ""
    if given.endswith(".py"):
        hint = f" Name the function, too: {given}:my_function."
    raise ValueError(
        f"{FLAG} {text}: give my_file.py:function, package.module:function or one of {', '.join(known)}, with =WEIGHT "
        f"behind it if it shall not weigh 1.{hint}"
    )


def collected(args: Sequence[str]) -> list[str]:
    """A command line with all `--reward X` (and `--reward=X`) as one `--reward.own X Y`, at its end."""
    rest: list[str] = []
    found: list[str] = []
    left = iter(args)
    for arg in left:
        if arg == FLAG:
            value = next(left, None)
            if value is None:
                raise ValueError(
                    f"{FLAG} needs a value, for example {FLAG} my_rewards.py:my_function=0.5."
                )
            found.append(value)
        elif arg.startswith(f"{FLAG}="):
            found.append(arg.removeprefix(f"{FLAG}="))
        else:
            rest.append(arg)
    return [*rest, f"{FLAG}.own", *found] if found else rest


def own_parts(
    texts: Sequence[str], of_style: Mapping[str, Function]
) -> dict[str, tuple[float, Function]]:
    """Name -> (weight, function) as `Rewards` takes them. Raises ValueError for what cannot be loaded or called."""
    asked = [read(text) for text in texts]
    parts: dict[str, tuple[float, Function]] = {}
    for one in asked:
        name = _part_name(one, asked)
        if name in parts:
            raise ValueError(f"{FLAG} {one} is given twice; give it once, with its weight.")
        function = _loaded(one) if one.place else {**BUILT_IN, **of_style}[one.name]
        parse_part(
            name, function
        )  # what fits no convention is told now, not after the model is there
        parts[name] = (one.weight, function)
    return parts


def _weight(text: str, number: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ValueError(f"{FLAG} {text}: the weight {number!r} is no finite number.")
    return weight


def _part_name(one: NamedReward, asked: Sequence[NamedReward]) -> str:
    """The function's name, with its file's in front where another has the same."""
    plain = one.name.replace("-", "_")
    same = {str(other) for other in asked if other.name.replace("-", "_") == plain}
    if len(same) == 1 or not one.place:
        return plain
    return f"{Path(one.place).stem.rpartition('.')[2]}_{plain}"


def _loaded(one: NamedReward) -> Function:
    """The function, or what a class gives that needs no arguments."""
    module = _file(one) if one.place.endswith(".py") else _installed(one)
    function = getattr(module, one.name, None)
    if function is None:
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        close = difflib.get_close_matches(one.name, names, 1)
        hint = f" Perhaps you meant {close[0]!r}." if close else ""
        raise ValueError(f"{FLAG} {one}: {one.place} has no {one.name!r}.{hint}")
    if not callable(function):
        raise ValueError(f"{FLAG} {one} is a {type(function).__name__}, not a function.")
    if not isinstance(function, type):
        return function
    try:
        return function()
    except Exception as error:
        raise ValueError(
            f"{FLAG} {one} is a class that cannot be made without arguments ({error}); write a line such as "
            f"pay = {one.name}(…) into the file and name {one.place}:pay."
        ) from error


def _file(one: NamedReward) -> ModuleType:
    """The module of a file, run once; a file is found again by its path, so that its functions keep their names."""
    path = Path(one.place).expanduser().resolve()
    if not path.is_file():
        raise ValueError(
            f"{FLAG} {one}: there is no file {one.place} (looked in {Path.cwd()})."
        )
    # Two files of one name in two folders are two modules.
    key = hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()
    name = f"{path.stem}_{key}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(spec)
    # As for a script: what lies beside the file can be imported.
    beside = str(path.parent)
    if beside not in sys.path:
        sys.path.append(beside)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        raise _cannot(one, error) from error
    return module


def _installed(one: NamedReward) -> ModuleType:
    try:
        return importlib.import_module(one.place)
    except ImportError as error:
        raise _cannot(one, error) from error


def _cannot(one: NamedReward, error: BaseException) -> BaseException:
    """What the user sees: the line of the file that failed, not our own frames."""
    if isinstance(error, KeyboardInterrupt):
        return error
    told = f"{type(error).__name__}: {error}"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = (
        f" (line {trace.tb_lineno})" if trace is not None and one.place.endswith(".py") else ""
    )
    return ValueError(f"{FLAG} {one}: {one.place} cannot be imported{where}: {told}")
