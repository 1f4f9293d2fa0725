"""Several data sets in one run: `--dataset NAME=PLACE [word=value ...]`, once for each.

    --dataset charts=charts.parquet style=choice
    --dataset boxes=boxes.parquet style=objects reward=iou=2 reward=format
    --dataset photos=photos/
    --mix.weights charts=2 boxes=1 photos=1

In a configuration file the same are the lines of one text:

    dataset: |
      charts=charts.parquet style=choice
      boxes=boxes.parquet style=objects reward=iou=2 reward=format
      photos=photos/
    mix: {weights: [charts=2, boxes=1, photos=1]}

Words are the flags of --data without `data.` (style=box, split=train, image-root=pictures, columns=question=problem as
often as there are columns), and reward, correct and correct-above as --reward knows them; learn=next-token, where the
recipe knows it, makes the row's label the only answer, learned token by token. What a data set does not say is what the
flags of the run say. A single data set needs no name; it is then called after its file.
"""

from __future__ import annotations

import difflib
import re
import shlex
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from mmrl.data.rows.mixture import Alternating, Ends, Mixture, shares
from mmrl.ground.domains import NAME, domain_of
from mmrl.recipes.shared.configuration import rebuilt
from mmrl.recipes.shared.opening import Data, open_data
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.rewards.by_domain import DomainRewards
from mmrl.training.evaluate import heldout_prompts
from mmrl.types import Prompt, Prompts

FLAG = "--dataset"
NAMED = re.compile(rf"({NAME.pattern})=(.+)", re.DOTALL)
"""NAME=PLACE."""
LEARN = {"reward": False, "next-token": True}
"""Values of the word learn: is the label the answer?"""
OF_REWARD = ("correct", "correct-above")
"""Words that are fields of `RewardWeights`, beside `reward`."""
SEVERAL = ("columns",)
"""Fields of `Data` whose word may come more than once."""
EXAMPLE = f"{FLAG} charts=charts.parquet style=choice {FLAG} photos=photos/"


@dataclass(frozen=True)
class Mix:
    """How several data sets become one."""

    weights: tuple[str, ...] = ()
    """How often each data set is drawn, as charts=2 boxes=1 (0: evaluated, never drawn); none: all alike."""
    ends: Ends = "first"
    """Where a pass over the data ends: when a data set is drawn that is used up (first), or never: small ones begin
    again, and --run.steps says how long the run is."""
    form_first: bool = True
    """An answer without the asked-for form earns nothing for anything else."""

    def __post_init__(self) -> None:
        self.by_name()

    def by_name(self) -> dict[str, float]:
        """Name -> weight as given. Raises ValueError for what is no NAME=NUMBER."""
        found: dict[str, float] = {}
        for text in self.weights:
            name, equals, number = text.partition("=")
            try:
                weight = float(number)
            except ValueError:
                weight = float("nan")
            if not (equals and NAME.fullmatch(name) and 0 <= weight < float("inf")):
                raise ValueError(
                    f"--mix.weights has {text!r}; write NAME=NUMBER with a number of 0 (never drawn) or more, for "
                    "example charts=2 boxes=1."
                )
            if name in found:
                raise ValueError(f"--mix.weights gives {name!r} two weights; give one.")
            found[name] = weight
        return found


@dataclass(frozen=True)
class Domain:
    """One data set of a mixture, with the way it is asked and paid."""

    name: str
    dataset: str
    data: Data
    reward: RewardWeights
    labelled: bool = False
    """Is the row's label the only answer (learn=next-token)?"""

    def measured_by(self) -> str:
        """The part that says how well it goes where none is called accuracy; "" if one is."""
        parts = list(self.reward.parts(style_of(self.data.style)))
        if "accuracy" in parts:
            return ""
        return self.reward.correct or parts[0]


def is_several(dataset: str) -> bool:
    """Is this what a --dataset with names says, and not one file, folder or hub name?"""
    text = dataset.strip()
    named = NAMED.fullmatch(text) is not None
    # A folder may be called year=2024.
    return "\n" in text or (named and not Path(text).exists())


def refuse_several(dataset: str, recipe: str) -> None:
    """Raise ValueError where a recipe of one data set is given several."""
    if is_several(dataset):
        told = "; ".join(dataset.strip().splitlines())
        raise ValueError(
            f"{FLAG} is {told!r}: several data sets, or one with a name. {recipe} trains on one; mmrl modomodo and "
            f"mmrl recap take several ({EXAMPLE}). Or join them into one file."
        )


def collected(args: Sequence[str]) -> list[str]:
    """A command line with several `--dataset`, or one with words behind it, as one; another is returned as it is."""
    found: list[list[str]] = []
    rest: list[str] = []
    taking = False
    for arg in args:
        if arg == FLAG or arg.startswith(f"{FLAG}="):
            found.append([arg.removeprefix(f"{FLAG}=")] if arg != FLAG else [])
            taking = True
        elif taking and not (arg.startswith("-") and found[-1]):
            found[-1].append(arg)
        else:
            taking = False
            rest.append(arg)
    if sum(map(len, found)) < 2:
        return list(args)
    if [] in found:
        raise ValueError(f"{FLAG} needs a value, for example {EXAMPLE}.")
    # What a person wrote in quotes stays one word.
    texts = [one[0] if "\n" in one[0] else shlex.join(one) for one in found]
    return [*rest, FLAG, "\n".join(texts)]


def read_domains(
    dataset: str, data: Data, reward: RewardWeights = RewardWeights()
) -> tuple[Domain, ...]:
    """The data sets of a text, one a line. Raises ValueError, in the words of the flag, for what cannot be meant."""
    if not is_several(dataset):
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(dataset.partition("?")[0]).stem).strip("-")
        return (Domain(name if NAME.fullmatch(name) else "rows", dataset, data, reward),)
    lines = [line.strip() for line in dataset.splitlines()]
    domains = [_domain(line, data, reward) for line in lines if line and line[0] != "#"]
    names = [domain.name for domain in domains]
    if double := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"{FLAG} names {double[0]!r} twice; give each data set a name of its own."
        )
    alike = [domain.name for domain in domains if domain.data.heldout == data.heldout]
    if data.heldout and len(alike) > 1:
        raise ValueError(
            f"--data.heldout {data.heldout} would be the held-out rows of {', '.join(alike)} alike; write heldout=FILE "
            "behind the data set that it belongs to."
        )
    return tuple(domains)


def domains_of(arguments: Mapping[str, Any]) -> tuple[Domain, ...]:
    """The data sets of a recipe's arguments; none for a recipe that takes one data set."""
    data, reward = arguments.get("data"), arguments.get("reward")
    if not (isinstance(arguments.get("mix"), Mix) and isinstance(data, Data)):
        return ()
    paid = reward if isinstance(reward, RewardWeights) else RewardWeights()
    return read_domains(str(arguments["dataset"]), data, paid)


def open_domains(domains: Sequence[Domain], mix: Mix, seed: int) -> tuple[Mixture, Alternating]:
    """Training prompts, drawn by weight, and held-out ones of each in turn. Raises ValueError."""
    weights = weights_of(domains, mix)
    opened = {one.name: open_data(one.dataset, one.data, seed) for one in domains}
    train = {name: prompts for name, (prompts, _) in opened.items()}
    heldout = {name: prompts for name, (_, prompts) in opened.items()}
    return Mixture(train, weights, seed, mix.ends), Alternating(heldout)


def labelled(domains: Sequence[Domain]) -> frozenset[str]:
    """Names of the data sets that are learned by their labels."""
    return frozenset(domain.name for domain in domains if domain.labelled)


def refuse_labels(domains: Sequence[Domain], recipe: str) -> None:
    """Raise ValueError for learn=next-token where a recipe has no such loss."""
    if names := sorted(labelled(domains)):
        raise ValueError(
            f"{FLAG} {names[0]}=… learn=next-token: {recipe} learns from rewards alone; leave learn= out, or use mmrl "
            "recap."
        )


def objectives_of(domains: Sequence[Domain], asked: Sequence[str]) -> tuple[str, ...]:
    """Parts of the reward that are objectives: those that are asked for, or all that weigh anything.

    Raises ValueError for one that no data set is paid for.
    """
    parts: dict[str, float] = {}
    for domain in domains:
        for name, (weight, _) in domain.reward.parts(style_of(domain.data.style)).items():
            if not domain.labelled:
                parts[name] = max(parts.get(name, 0.0), abs(weight))
    if unknown := sorted(set(asked) - set(parts)):
        raise ValueError(
            f"--recap.objectives has {unknown[0]!r}, but the data sets are paid for {sorted(parts)}; name some of "
            "these, or none for all that weigh anything."
        )
    return tuple(asked) or tuple(name for name, weight in parts.items() if weight)


def heldout_of_each(domains: Sequence[Domain], seed: int) -> Alternating:
    """Held-out prompts of each data set in turn, whatever the weights; all rows of one that sets none aside."""
    opened = {one.name: open_data(one.dataset, one.data, seed) for one in domains}
    return Alternating({name: heldout for name, (_, heldout) in opened.items()})


def weights_of(domains: Sequence[Domain], mix: Mix) -> dict[str, float]:
    """Name -> share of the prompts, summing to 1. Raises ValueError in the words of the flag."""
    try:
        return shares(mix.by_name(), [domain.name for domain in domains])
    except ValueError as problem:
        raise ValueError(f"--mix.weights: {problem}") from None


def rewards_of(domains: Sequence[Domain], mix: Mix) -> DomainRewards:
    """Each data set's own rewards; without `form_first` a right answer in the wrong form is paid as well."""
    paid = {}
    for domain in domains:
        style = style_of(domain.data.style)
        gated = mix.form_first and "format" in domain.reward.parts(style)
        paid[domain.name] = domain.reward.rewards(style, gate="format" if gated else None)
    main = {domain.name: domain.measured_by() for domain in domains}
    return DomainRewards(paid, {name: part for name, part in main.items() if part})


def look_ahead(domains: Sequence[Domain], mix: Mix | None = None) -> None:
    """Raise ValueError for what is wrong with the settings of a data set, before anything is loaded."""
    if mix is not None:
        weights_of(domains, mix)
    for domain in domains:
        try:
            domain.data.template()
            domain.data.refuse_drawn(domain.dataset)
            domain.reward.correct_by(domain.reward.parts(style_of(domain.data.style)))
        except ValueError as problem:
            raise ValueError(f"{FLAG} {domain.name}={domain.dataset}: {problem}") from None


def lines_of(prompts: Prompts) -> list[str]:
    """One line for each data set of a mixture: its rows and its share of the prompts; none for other prompts."""
    if not isinstance(prompts, Mixture):
        return []
    lines = []
    for name, part in prompts.parts.items():
        rows = "endless" if part.size is None else f"{part.size:,} rows"
        share = prompts.weights[name]
        lines.append(
            f"{name}: {rows}, " + (f"{share:.1%} of the prompts" if share else "evaluated only")
        )
    return lines


def first_of_others(prompts: Prompts, seen: Sequence[Prompt]) -> list[Prompt]:
    """The first usable row of each data set of a mixture that none of the seen prompts is of."""
    if not isinstance(prompts, Mixture):
        return []
    known = {domain_of(prompt.extra) for prompt in seen}
    parts = {name: part for name, part in prompts.parts.items() if name not in known}
    return [
        row for name in parts for row in heldout_prompts(Alternating({name: parts[name]}), 1)
    ]


def _domain(line: str, data: Data, reward: RewardWeights) -> Domain:
    try:
        first, *words = shlex.split(line)
    except ValueError as problem:
        raise ValueError(f"{FLAG} {line}: {problem}; quotes come in pairs.") from None
    named = NAMED.fullmatch(first)
    if named is None:
        raise ValueError(
            f"{FLAG} {line}: each of several data sets has a name in front (letters, digits, - and _): {EXAMPLE}."
        )
    given: dict[str, list[str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        key = key.replace("_", "-")
        if not equals or key not in _words():
            raise _unknown_word(line, word, key)
        given.setdefault(key, []).append(value)
    try:
        asked = replace(data, **_of_data(given))
        paid = replace(reward, **_of_reward(given))
    except ValueError as problem:
        raise ValueError(f"{FLAG} {line}: {problem}") from None
    learn = given.get("learn", ["reward"])
    if len(learn) > 1 or learn[0] not in LEARN:
        raise ValueError(f"{FLAG} {line}: learn= is one of {', '.join(LEARN)}, given once.")
    return Domain(named[1], named[2], asked, paid, LEARN[learn[0]])


def _words() -> list[str]:
    of_data = [field.name.replace("_", "-") for field in fields(Data)]
    return [*of_data, "reward", *OF_REWARD, "learn"]


def _unknown_word(line: str, word: str, key: str) -> ValueError:
    close = difflib.get_close_matches(key, _words(), 1)
    hint = f" Perhaps you meant {close[0]}=." if close else ""
    if key == "weight":
        hint = " Weights are those of --mix.weights charts=2 boxes=1."
    return ValueError(
        f"{FLAG} {line}: {word!r} is no setting of a data set; behind NAME=PLACE stand words such as style=box, of "
        f"{', '.join(_words())}.{hint}"
    )


def _of_data(given: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Fields of `Data` from the words that name them."""
    hints = typing.get_type_hints(Data)
    found: dict[str, Any] = {}
    for name, hint in hints.items():
        values = given.get(name.replace("_", "-"))
        if values is None:
            continue
        if name in SEVERAL:
            found[name] = tuple(values)
        else:
            found[name] = _one(name, values, hint)
    return found


def _of_reward(given: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Fields of `RewardWeights` from the words that name them."""
    hints = typing.get_type_hints(RewardWeights)
    found: dict[str, Any] = {}
    if "reward" in given:
        found["own"] = tuple(given["reward"])
    for word in OF_REWARD:
        if word in given:
            name = word.replace("-", "_")
            found[name] = _one(name, given[word], hints[name])
    return found


def _one(name: str, values: Sequence[str], hint: Any) -> Any:
    """The value of a word that comes once, as its field has it. Raises ValueError."""
    word = name.replace("_", "-")
    if len(values) > 1:
        raise ValueError(f"{word}= is given {len(values)} times; give it once.")
    kinds = typing.get_args(hint) or (hint,)
    # Numbers and truth values as a configuration file would have them; a text stays one, whatever it looks like.
    plain = {int, float, bool} & set(kinds)
    value = yaml.safe_load(values[0]) if plain else values[0]
    if float in kinds and type(value) is int:
        value = float(value)
    return rebuilt(hint, value, word)
