"""What counts as a reward function, and how it is called. No torch.

A part of `Rewards` is a function, or (weight, function). Its parameters say how it is called:

1. `f(rollout) -> float | None`: one answer. None means not available, never 0.
2. `@batch f(rollouts) -> list[float | None]`: all answers of the step, those of one prompt adjacent.
   `@grouped f(rollouts) -> list[float | None]`: the same, called once for each group, with all of its answers.
3. `f(prompts, completions, **columns) -> list[float | None]`: TRL's convention, recognised by the name `completions`.
   Completions are `[{"role": "assistant", "content": text}]` each, as TRL gives them for chat prompts (strings if the
   prompt's `messages` is a string). Columns are `Prompt.extra` by name and the reference answer as `answer`,
   `solution` and `ground_truth` unless the row has a column so called; then `completion_ids`, `trainer_state` (None),
   `source` and `prompt_id`. A function without `**kwargs` gets the columns that it names.

All three may be `async`. A callable object counts as the function of its `__call__`; markers may be attributes of it.

What an isolated function sees is not the `Rollout` but a record with the same names (`Seen`): tokens and roles are
lists, tensors in `extra` or `answer` are numpy arrays. `media`, `prompt_ids` and `logp` travel only if the function is
marked `@needs("media", ...)`, because pixels are large; media frames are numpy uint8 [F, 3, H, W].

Departure from TRL: there None drops a part for one completion; here `Rewards` drops it for the whole group, so that
answers of one prompt are always compared by the same sum.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mmrl.rewards.contract import refuse_misspelt_markers
from mmrl.rewards.worker import marker

if TYPE_CHECKING:
    from mmrl.types import Media, Prompt, Rollout

Function = TypeVar("Function", bound=Callable[..., Any])
Convention = Literal["rollout", "group", "batch", "trl"]
OPTIONAL = ("media", "prompt_ids", "logp")
"""Attributes that an isolated reward sees only if it asks for them."""
RIGHT_ABOVE = 0.5
"""An answer is right where the declared part exceeds this, unless another number is given."""
_ANY_KEYWORD = inspect.Parameter.VAR_KEYWORD
_TRL_ONLY = ("trainer_state", "log_extra", "log_metric", "environments")
Reason = Literal[
    "timeout", "memory", "exception", "exit", "unavailable", "nonfinite", "not_a_number"
]


def batch(function: Function) -> Function:
    """Mark a reward that takes all rollouts at once and returns one value for each.

    If the call fails it is repeated for each group and, where that fails too, for each answer alone.
    """
    function.batched = True  # type: ignore[attr-defined]
    return function


def grouped(function: Function) -> Function:
    """Mark a reward that compares the answers of a group: it takes them all at once and returns one value for each.

    If the call fails it fails for the group, and for no other.
    """
    function.grouped = True  # type: ignore[attr-defined]
    return function


def in_process(function: Function) -> Function:
    """Mark a plain reward that runs in the trainer's process, without time or memory limit (it holds a model, say)."""
    function.in_process = True  # type: ignore[attr-defined]
    return function


def needs(*attributes: str) -> Callable[[Function], Function]:
    """Mark an isolated reward that reads "media", "prompt_ids" or "logp" of a rollout."""
    if unknown := sorted(set(attributes) - set(OPTIONAL)):
        raise ValueError(
            f"@needs names {unknown}; it takes {list(OPTIONAL)}, everything else is always there."
        )

    def mark(function: Function) -> Function:
        function.needs = attributes  # type: ignore[attr-defined]
        return function

    return mark


def needs_tags(*tags: str) -> Callable[[Function], Function]:
    """Mark a reward that pays nothing for an answer without these tags: a run warns if the model cannot write them."""

    def mark(function: Function) -> Function:
        function.needs_tags = tags  # type: ignore[attr-defined]
        return function

    return mark


def preloads(*modules: str) -> Callable[[Function], Function]:
    """Mark an isolated reward that imports these modules when called: a worker imports them while it starts."""

    def mark(function: Function) -> Function:
        function.preload = modules  # type: ignore[attr-defined]
        return function

    return mark


class Seen(SimpleNamespace):
    """A rollout, prompt or medium as an isolated reward sees it: the same names without tensors."""

    # By identity: a namespace would compare its arrays, and that has no truth value.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    # Reached only for names that the record lacks.
    def __getattr__(self, name: str) -> Any:
        hint = f'; mark the reward function with @needs("{name}")' if name in OPTIONAL else ""
        raise AttributeError(f"an isolated reward sees no attribute {name!r} here{hint}")


@dataclass(frozen=True)
class Failure:
    """Why a call gave no value."""

    reason: Reason
    message: str = ""


@dataclass(frozen=True)
class Call:
    """One call of one reward part."""

    part: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    several: bool = False
    """A sequence of values is expected rather than one."""
    limit: float = 10.0
    """Seconds."""


Outcome = list[float | str | None] | Failure
"""One value per answer (a text describes what is no number), or why the whole call failed."""
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""


@dataclass(frozen=True)
class Part:
    """One named summand of the reward."""

    name: str
    weight: float
    function: Callable[..., Any]
    convention: Convention
    is_async: bool
    in_process: bool
    needs: tuple[str, ...] = ()
    lacks_alone: bool = False
    """Does a None concern its answer alone, and not the group?"""

    @property
    def several(self) -> bool:
        """Does one call score many answers?"""
        return self.convention != "rollout"

    def arguments(self, rollouts: Sequence[Any]) -> Arguments:
        """Positional and keyword arguments for these rollouts (exactly one for the convention "rollout")."""
        if self.convention == "rollout":
            return (rollouts[0],), {}
        if self.convention in ("group", "batch"):
            return (list(rollouts),), {}
        return (), self._columns(rollouts)

    def _columns(self, rollouts: Sequence[Any]) -> dict[str, Any]:
        """The columns that a function of TRL's convention takes; all of them for `**kwargs`."""
        parameters = inspect.signature(self.function).parameters
        columns = trl_columns(rollouts)
        if any(parameter.kind is _ANY_KEYWORD for parameter in parameters.values()):
            return columns
        # What only TRL's trainer could fill is there, but empty: its functions look before they use it.
        for name in _TRL_ONLY:
            columns.setdefault(name, None)
        required = [name for name, parameter in parameters.items() if _is_required(parameter)]
        missing = [name for name in required if name not in columns]
        if missing:
            raise ValueError(
                f"The reward part {self.name!r} asks for the columns {missing}, but the rows have "
                f"{sorted(set(columns) - set(_TRL_ONLY))}. Map the columns when loading, or give a default."
            )
        return {name: columns[name] for name in parameters if name in columns}


def parse_part(name: str, given: object, isolate: bool = True) -> Part:
    """Turn `function` or `(weight, function)` into a Part. Raises ValueError if it fits no convention."""
    weight, function = 1.0, given
    if isinstance(given, tuple) and len(given) == 2:
        weight, function = given
    if not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ValueError(
            f"The weight of the reward part {name!r} is {weight!r}; give a finite number."
        )
    if not callable(function):
        raise ValueError(
            f"The reward part {name!r} is {given!r}; give a function or (weight, function), "
            f"for example {name}=(0.9, boxed_accuracy)."
        )
    refuse_misspelt_markers(name, function)
    # A callable object is as async as its __call__, which the first question does not see.
    is_async = inspect.iscoroutinefunction(function)
    is_async = is_async or inspect.iscoroutinefunction(type(function).__call__)
    return Part(
        name=name,
        weight=float(weight),
        function=function,
        convention=_convention(name, function),
        is_async=is_async,
        in_process=bool(marker(function, "in_process", False)) or not isolate,
        needs=tuple(marker(function, "needs", ())),
        lacks_alone=bool(marker(function, "lacks_alone", False)),
    )


def correct_by(
    given: str | tuple[str, float] | None, parts: Mapping[str, Part]
) -> tuple[str, float] | None:
    """The part that says whether an answer is right, and what it must exceed. Raises ValueError for no such part."""
    if given is None:
        return None
    part, above = (
        given if isinstance(given, tuple) and len(given) == 2 else (given, RIGHT_ABOVE)
    )
    if not isinstance(part, str) or part not in parts:
        raise ValueError(
            f"Rewards got correct={given!r}: it declares which part says whether an answer is right, and names one of "
            f"{sorted(parts)}, or one with the number that it must exceed: ({min(parts)!r}, {RIGHT_ABOVE})."
        )
    if not isinstance(above, int | float) or not math.isfinite(above):
        raise ValueError(
            f"Rewards got correct={given!r}; the number that {part!r} must exceed must be finite."
        )
    return part, float(above)


def seen(rollouts: Sequence[Rollout], asks: Sequence[str] = ()) -> list[Seen]:
    """The rollouts as isolated rewards see them; answers of one prompt share its record."""
    # By identity: a pickled batch then holds each prompt, with its pictures, once and not once per answer.
    prompts: dict[int, Seen] = {}
    records: list[Seen] = []
    for rollout in rollouts:
        key = id(rollout.prompt)
        if key not in prompts:
            prompts[key] = _seen_prompt(rollout.prompt, "media" in asks)
        records.append(_seen_rollout(rollout, prompts[key], asks))
    return records


def trl_columns(rollouts: Sequence[Any]) -> dict[str, Any]:
    """The keyword arguments of TRL's convention, each a list with one entry per rollout."""
    prompts = [rollout.prompt for rollout in rollouts]
    columns: dict[str, Any] = {
        "prompts": [_chat(prompt.messages) for prompt in prompts],
        "completions": [_completion(rollout) for rollout in rollouts],
        "completion_ids": [_tokens(rollout.tokens) for rollout in rollouts],
        "trainer_state": None,
        "source": [prompt.source for prompt in prompts],
        "prompt_id": [prompt.id for prompt in prompts],
    }
    for alias in ("answer", "solution", "ground_truth"):
        columns[alias] = [prompt.answer for prompt in prompts]
    # The row's own columns come last and win, but never over what is scored.
    own = set().union(*(prompt.extra for prompt in prompts))
    for name in sorted(own - {"prompts", "completions"}):
        columns[name] = [prompt.extra.get(name) for prompt in prompts]
    return columns


def _convention(name: str, function: Callable[..., Any]) -> Convention:
    """How a function wants to be called, read off its parameters. Raises ValueError if they fit no convention."""
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"The reward part {name!r} is {function!r}, whose parameters are not known; wrap it in a def of your own."
        ) from error
    if "completions" in parameters:
        return "trl"
    required = [one for one in parameters.values() if _is_required(one) and not _is_open(one)]
    positional = [one for one in parameters.values() if _is_positional(one)]
    # One argument is what we give: the one that is required, or the only one that there is.
    takes_one = len(required) == 1 or (not required and len(positional) == 1)
    if positional and takes_one:
        if marker(function, "grouped", False):
            return "group"
        return "batch" if marker(function, "batched", False) else "rollout"
    raise ValueError(
        f"The reward part {name!r} has the parameters ({', '.join(parameters)}), which fit no convention: a reward is "
        "f(rollout) -> float | None, @batch or @grouped f(rollouts) -> list, or TRL's f(prompts, completions, "
        "**columns) -> list. Bind further parameters with functools.partial."
    )


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty


def _is_open(parameter: inspect.Parameter) -> bool:
    """Is it `*args` or `**kwargs`? These have no default and yet need nothing."""
    return parameter.kind in (parameter.VAR_POSITIONAL, _ANY_KEYWORD)


def _is_positional(parameter: inspect.Parameter) -> bool:
    return parameter.kind not in (parameter.KEYWORD_ONLY, _ANY_KEYWORD)


def _chat(messages: Any) -> Any:
    return messages if isinstance(messages, str) else list(messages)


def _completion(rollout: Any) -> Any:
    """A text behind a text prompt, a message behind a chat, as TRL hands them over."""
    if isinstance(rollout.prompt.messages, str):
        return rollout.text
    return [{"role": "assistant", "content": rollout.text}]


def _tokens(tokens: Any) -> list[int]:
    # A list already for isolated parts, a tensor for those that run in the trainer's process.
    return tokens if isinstance(tokens, list) else tokens.tolist()


def _seen_prompt(prompt: Prompt, with_media: bool) -> Seen:
    record = Seen(
        id=prompt.id,
        messages=_without_tensors(prompt.messages),
        answer=_without_tensors(prompt.answer),
        source=prompt.source,
        extra=_without_tensors(prompt.extra),
    )
    if with_media:
        record.media = tuple(_seen_media(medium) for medium in prompt.media)
    return record


def _seen_rollout(rollout: Rollout, prompt: Seen, asks: Sequence[str]) -> Seen:
    record = Seen(
        prompt=prompt,
        group=rollout.group,
        tokens=rollout.tokens.tolist(),
        roles=rollout.roles.tolist(),
        text=rollout.text,
        stop=rollout.stop,
        temperature=_plain(rollout.temperature),
        branch=rollout.branch,
        origin=rollout.origin,
        calls=rollout.calls,
        reward=rollout.reward,
        parts=dict(rollout.parts),
    )
    if "media" in asks:
        record.media = tuple(_seen_media(medium) for medium in rollout.media)
    if "prompt_ids" in asks:
        record.prompt_ids = rollout.prompt_ids.tolist()
    if "logp" in asks:
        # Some engines return none: then the attribute is there and None.
        record.logp = None if rollout.logp is None else rollout.logp.tolist()
    return record


def _plain(temperature: Any) -> Any:
    """A number, or a list of one per token."""
    return temperature.tolist() if hasattr(temperature, "tolist") else temperature


def _seen_media(medium: Media) -> Seen:
    times = None if medium.times is None else medium.times.numpy()
    return Seen(
        frames=medium.frames.numpy(),
        times=times,
        duration=medium.duration,
        is_video=medium.is_video,
    )


def _without_tensors(value: Any) -> Any:
    """The same value with tensors as numpy arrays and mappings as dictionaries."""
    # Asked by its methods: this module imports no torch.
    if hasattr(value, "detach") and hasattr(value, "numpy"):
        tensor = value.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":
            tensor = tensor.float()  # NumPy has no bfloat16
        return tensor.numpy()
    if isinstance(value, Mapping):
        return {key: _without_tensors(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_tensors(one) for one in value]
    # Plain tuples only: a named tuple would not take a list of its values.
    if type(value) is tuple:
        return tuple(_without_tensors(one) for one in value)
    return value
