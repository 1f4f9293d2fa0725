"""Flags that mean nothing beside others: they are refused, for nothing that was asked for is ignored.

A recipe takes what it needs; some of it is read only under a condition (`--groups.rounds` with `--dynamic`). `RULES`
says which; what every recipe reads of its records is held by a test over all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from mmrl.recipes.shared.clip_data import about_clips, about_spans
from mmrl.recipes.shared.domains import is_several

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Unread:
    """Flags that nothing reads while `when` holds."""

    flags: tuple[str, ...]
    """Names with dots; what ends with a dot is a whole record."""
    when: Callable[[str, Arguments], bool]
    """Recipe and arguments -> does nothing read them?"""
    remedy: str
    but: tuple[str, ...] = ()
    """Of a whole record, what is read all the same."""


def _trains_on_clips(recipe: str, arguments: Arguments) -> bool:
    return "asking" in arguments and recipe != "evaluate"


def _drawn_clips(recipe: str, arguments: Arguments) -> bool:
    return _trains_on_clips(recipe, arguments) and str(arguments["dataset"]).startswith(
        "drawn:"
    )


def _evaluates_spans(recipe: str, arguments: Arguments) -> bool:
    return recipe == "evaluate" and about_spans(str(arguments["dataset"]), arguments["clips"])


def _evaluates_clips(recipe: str, arguments: Arguments) -> bool:
    """Spans, or what is asked about clips as Video-R1 does it."""
    if recipe != "evaluate":
        return False
    named = str(arguments["dataset"]), arguments["clips"]
    return about_spans(*named) or about_clips(*named, arguments["asking"])


def _evaluates_rows(recipe: str, arguments: Arguments) -> bool:
    return recipe == "evaluate" and not _evaluates_clips(recipe, arguments)


def _no_rows(recipe: str, arguments: Arguments) -> bool:
    return recipe == "hopchain" and not arguments["rows"]


def _own_rewards(recipe: str, arguments: Arguments) -> bool:
    reward = arguments.get("reward")
    return bool(getattr(reward, "own", ())) and recipe not in ("mr_rlvr", "hopchain")


def _one_data_set(recipe: str, arguments: Arguments) -> bool:
    return recipe == "evaluate" and not is_several(str(arguments["dataset"]))


def _calls_tools(arguments: Arguments) -> bool:
    """Of ARPO: does it call any?"""
    return arguments["tools"].calculator or arguments["tools"].python


RULES = (
    Unread(
        ("use.", "tools.told"),
        lambda recipe, a: recipe == "arpo" and not _calls_tools(a),
        "no tools are called; add --tools.python or --tools.calculator, or leave it out",
    ),
    Unread(
        ("arpo.strings",),
        lambda recipe, a: recipe == "arpo" and _calls_tools(a),
        "with tools answers branch behind what these answer; leave it out",
    ),
    Unread(
        ("tools",),
        _evaluates_spans,
        "questions about spans are asked without tools; leave it out",
    ),
    Unread(
        ("mix.weights", "mix.ends"),
        lambda recipe, _: recipe == "evaluate",
        "every data set is asked in turn, however often it is drawn in training; leave it out",
    ),
    Unread(
        ("mix.",),
        _one_data_set,
        "it is for several data sets, --dataset NAME=PLACE once for each; leave it out",
    ),
    Unread(
        ("groups.",),
        lambda _, a: a.get("dynamic") is False,
        "it belongs to dynamic sampling; add --dynamic, or leave it out",
    ),
    Unread(
        ("judge.",),
        lambda _, a: "judge" in a and not a["judge"].url,
        "without --judge.url a rule stands in for the judge; give the address, or leave it out",
        but=("judge.url",),
    ),
    Unread(
        ("shown.", "use."),
        lambda _, a: a.get("rounds") is False,
        "it belongs to rounds; add --rounds, or leave it out",
    ),
    Unread(
        ("likeness.",),
        lambda _, a: "likeness" in a and bool(a["judge"].url) and not a["rounds"],
        "a judge compares the pictures; give an empty --judge.url, or leave it out",
    ),
    Unread(
        ("data.",),
        _trains_on_clips,
        "questions about clips are read and asked by --clips and --asking; leave it out",
        but=("data.limit", "data.heldout", "data.heldout_rows", "data.allow_outside"),
    ),
    Unread(
        ("clips.", "video_root"),
        _drawn_clips,
        "drawn clips have no files; name a data set of your own with --dataset, or leave it out",
    ),
    Unread(
        ("clips.", "asking.", "video_root"),
        _evaluates_rows,
        "it is for annotations of spans and for Video-R1's questions with --asking.style video-r1, and --dataset is "
        "neither; frames of other rows are --data.fps, --data.frames and --data.max-frames, the folder of their media "
        "is --data.image-root",
    ),
    Unread(
        ("samples", "ks"),
        _evaluates_spans,
        "annotations of spans are asked once and measured by their overlap; leave it out",
    ),
    Unread(
        ("reward.", "data."),
        _evaluates_clips,
        "questions about clips are read by --clips, asked and graded by --asking; leave it out",
        but=("data.limit", "data.heldout", "data.heldout_rows", "data.allow_outside"),
    ),
    Unread(
        ("data.heldout", "data.heldout_rows"),
        lambda recipe, a: recipe == "evaluate" and a["heldout_of"] is None,
        "all rows of --dataset are asked; --heldout-of SEED asks those that a run with this seed sets aside",
    ),
    Unread(
        ("sampling.",),
        lambda recipe, _: recipe == "difficulty",
        "difficulty is measured by one greedy answer; leave it out",
        but=("sampling.max_tokens",),
    ),
    Unread(
        ("data.", "reward.", "rows_share"),
        _no_rows,
        "it is for rows beside the chains; name them with --rows, or leave it out",
    ),
    Unread(
        ("reward.accuracy", "reward.format", "reward.grader"),
        _own_rewards,
        "--reward stands in place of accuracy and format; write --reward accuracy=0.9 --reward format=0.1 beside it",
    ),
    Unread(
        ("ampo.floor",),
        lambda _, a: "ampo" in a and a["ampo"].shaping != "saturating",
        "it belongs to the shaping π / (π + floor); set --ampo.shaping saturating, or leave it out",
    ),
    Unread(
        ("recap.",),
        lambda _, a: "recap" in a and not a["recap"].window,
        "without windows nothing is weighed; set --recap.window above 0, or leave it out",
        but=("recap.window",),
    ),
    Unread(
        ("tuning.",),
        lambda _, a: "tuning" in a and not a["tuning"].rows,
        "nothing is tuned before; set --tuning.rows, or leave it out",
        but=("tuning.rows",),
    ),
    Unread(
        ("select.",),
        lambda _, a: "select" in a and not a["select"].target,
        "no rows are selected; set --select.target, or leave it out",
        but=("select.target",),
    ),
)
"""All conditions under which a flag would be ignored."""


def refuse_unread(recipe: str, before: Arguments, after: Arguments) -> None:
    """Raise ValueError for the first flag that was given and would be ignored.

    `before`: the arguments without flags, as preset and file have them; `after`: with them.
    """
    for name in changed(before, after):
        for rule in RULES:
            if _covers(rule, name) and rule.when(recipe, after):
                raise ValueError(f"{_flag(name, after)} would be ignored: {rule.remedy}.")


def changed(before: Arguments, after: Arguments) -> Iterator[str]:
    """Names of the settings that differ, with dots."""
    for name, value in after.items():
        old = before.get(name)
        if is_dataclass(value) and not isinstance(value, type) and type(old) is type(value):
            for field in fields(value):
                if field.init and getattr(old, field.name) != getattr(value, field.name):
                    yield f"{name}.{field.name}"
        elif value != old:
            yield name


def _flag(name: str, arguments: Arguments) -> str:
    """A setting as it was given: what is switched off by `no-`."""
    record, _, field = name.rpartition(".")
    value = getattr(arguments[record], field) if record else arguments[name]
    spelled = f"no-{field}" if value is False else field
    return "--" + (f"{record}.{spelled}" if record else spelled).replace("_", "-")


def _covers(rule: Unread, name: str) -> bool:
    if name in rule.but:
        return False
    return any(
        name.startswith(flag) if flag.endswith(".") else name == flag for flag in rule.flags
    )
