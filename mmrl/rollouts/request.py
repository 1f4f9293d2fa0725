"""What an engine is asked and what it says: one record each, the same for every engine.

    requests  = asked_of(policy, prompts, sampling, now, …)     one per prompt
    results   = engine.answer(requests)                         one per answer, those of a request adjacent
    rollouts  = [rollout_of(policy, request, result) …]

`Asking` is the base of engines that are written this way: it has the call forms of `Engine.generate` and leaves only
`answer` and `sync` to write. What an engine can do beyond plain answers it declares in `abilities`, what a rollout
function needs in `RolloutFunction.needs`; what does not fit is refused where the trainer is made (`refuse_beyond`).

Draws are keyed by (run seed, step, prompt id, view, number of the answer). Numbers go on from `Request.first`, so a
prompt that is there twice, or is asked again in the same step, gets other answers.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mmrl.model.encoded import Encoded
from mmrl.model.policy import Policy
from mmrl.model.processing import Patches
from mmrl.types import Media, Now, Prompt, Role, Rollout, Sampling

Ability = Literal[
    "other pixels",
    "forced prefixes",
    "temperature per position",
    "counts per prompt",
    "forks",
    "likely tokens",
]
"""What not every engine can do: answer to other pixels than the prompt's, go on from a given start, change the
temperature within an answer, give each prompt its own number of answers, numbered on from earlier ones, let answers
fork at any token (`forking.forest`), and say with their tokens how sure it was of each (entropy, likeliest ones)."""
ABILITIES: frozenset[Ability] = frozenset(get_args(Ability))
"""All of them."""
Meaning = Literal["whole", "allowed", "none"]
"""Of log-probs: over the whole vocabulary at the sampling temperature, as training computes them; over the ids that
could be drawn; or there are none."""

Temperature = Callable[[int], float]
"""Place of a token in its answer -> what its logits are divided by."""
Prefix = Tensor | Sequence[Tensor]
"""Long [n] that every answer to a prompt begins with, or one such tensor per answer."""


@dataclass(frozen=True, eq=False)
class Within:
    """A picture that the forced start of an answer shows."""

    medium: Media
    pixels: Patches
    tokens: int
    """Its visual tokens among the start's."""


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt, and how it is to be answered."""

    prompt: Prompt
    group: int
    """Its place among the prompts of the call."""
    encoded: Encoded
    """The prompt's ids with its placeholders, and its text with one placeholder per medium."""
    pixels: tuple[Patches, ...]
    """uint8, what it shows under `branch`: one per medium, at the sizes and on the grids of `encoded`."""
    sampling: Sampling
    """How answers are drawn; `count` and not `group_size` says how many there are."""
    count: int
    """Answers."""
    seed: tuple[int, int]
    """Run seed and step."""
    banned: tuple[int, ...]
    """Ids that are never drawn, ascending."""
    branch: str = "raw"
    """The name of the view."""
    first: int = 0
    """Number of its first answer."""
    forced: tuple[tuple[int, ...], ...] = ()
    """Ids that answers begin with, one tuple per answer; empty: nothing is forced."""
    temperature_at: Temperature | None = None
    """In place of the sampling's temperature."""
    within: tuple[Within, ...] = ()
    """What the one forced start shows, in the order of its placeholders."""

    def __post_init__(self) -> None:
        assert self.count >= 1, "a request asks for at least one answer"
        assert len(self.forced) in (0, self.count), "one forced start per answer, or none"
        assert self.count == 1 or not self.within, "pictures belong to one start"

    def key(self, answer: int) -> tuple[int | str, ...]:
        """What keys the draws of its n-th answer."""
        return (*self.seed, self.prompt.id, self.branch, self.first + answer, "answer")

    def start(self, answer: int) -> tuple[int, ...]:
        """Ids that its n-th answer begins with."""
        return self.forced[answer] if self.forced else ()

    def temperatures(self, length: int) -> float | Tensor:
        """What the logits of an answer's tokens are divided by: a number, or float64 [length]."""
        if self.temperature_at is None:
            return (
                self.sampling.temperature or 1.0
            )  # greedy answers are scored at temperature 1
        heat = [self.temperature_at(t) or 1.0 for t in range(length)]
        return torch.tensor(heat, dtype=torch.float64)

    def needs(self) -> list[Ability]:
        """What the engine must be able to do."""
        own = zip(self.pixels, self.encoded.visual, strict=True)
        found: list[tuple[Ability, bool]] = [
            ("other pixels", any(shown.key != real.key for shown, real in own)),
            ("forced prefixes", any(self.forced)),
            ("temperature per position", self.temperature_at is not None),
        ]
        return [ability for ability, needed in found if needed]


@dataclass(frozen=True)
class Result:
    """One answer as the engine gives it."""

    tokens: Sequence[int]
    """The forced start and the end token included."""
    logp: Sequence[float] | Tensor | None
    """Of each token; None if `meaning` is "none"."""
    stop: str
    """"eos", "length" or the stop string."""
    meaning: Meaning = "whole"
    seen: Tensor | None = None
    """long [P]: the prompt's ids as the engine read them; None: those that it was given."""
    version: int | None = None
    """`Policy.version` of the weights that it was drawn from, if the engine says so."""
    seconds: float = 0.0
    """From the call to the answer's end."""


Tell = Callable[[int, Sequence[Result]], None]
"""Is given a request's place and its results."""
Done = Callable[[Sequence[Rollout]], None]
"""Is given all answers to a prompt."""


class Asking:
    """An engine that answers requests. Subclasses write `answer` and `sync`, and declare `abilities`."""

    abilities: Collection[Ability] = ()
    policy: Policy

    def answer(self, requests: Sequence[Request]) -> list[Result]:
        """`count` results for each request, in the order of the requests."""
        raise NotImplementedError(f"{type(self).__name__} has no answer.")

    def stream(self, requests: Sequence[Request], tell: Tell) -> list[Result]:
        """As `answer`; whoever can tells a request's results as soon as the last of them has ended."""
        return self.answer(requests)

    def plant(self, requests: Sequence[Request]) -> Any:
        """A `forking.Forest` without answers on the prompts of these requests; for engines that declare "forks"."""
        raise NotImplementedError(f"{type(self).__name__} has no plant.")

    def sync(self, policy: Policy) -> None:
        """Take over the policy's current weights."""
        raise NotImplementedError(f"{type(self).__name__} has no sync.")

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        now: Now,
        *,
        visual: Sequence[tuple[Patches, ...]] | None = None,
        branch: str = "raw",
        prefixes: Sequence[Prefix] | None = None,
        temperature_at: Temperature | None = None,
        counts: Sequence[int] | None = None,
        first: Sequence[int] | None = None,
        done: Done | None = None,
    ) -> list[Rollout]:
        """The answers to each prompt, adjacent and with its index as `group`.

        `visual`: pixels of each prompt under `branch`; `prefixes`: per prompt what is forced as the start of its
        answers, with role HINT; `temperature_at`: temperature of answer position t; `counts`: answers of each prompt in
        place of `sampling.group_size`; `first`: the number of each prompt's first answer, which keys the draws; `done`:
        is given the answers to a prompt while others are still being drawn, where the engine tells, and no others.
        """
        requests = asked_of(
            self.policy,
            prompts,
            sampling,
            now,
            visual=visual,
            branch=branch,
            prefixes=prefixes,
            temperature_at=temperature_at,
            counts=counts,
            first=first,
        )
        return answered(self, requests, done)


def answered(
    engine: Asking, requests: Sequence[Request], done: Done | None = None
) -> list[Rollout]:
    """The engine's answers to the requests as rollouts. Raises ValueError for what it cannot do.

    `done` is given the very records that are returned.
    """
    if not requests:
        return []
    for request in requests:
        refuse_beyond(engine, request.needs(), f"prompt {request.prompt.id!r}")
    told: dict[int, list[Rollout]] = {}

    def tell(place: int, results: Sequence[Result]) -> None:
        told[place] = _rollouts(engine.policy, requests[place], results)
        assert done is not None
        done(told[place])

    results = engine.answer(requests) if done is None else engine.stream(requests, tell)
    assert len(results) == sum(request.count for request in requests), "one result per answer"
    left = iter(results)
    found: list[Rollout] = []
    for place, request in enumerate(requests):
        its = [next(left) for _ in range(request.count)]
        # Not made twice: who was given a record shall find it again.
        found += told.get(place) or _rollouts(engine.policy, request, its)
    return found


def _rollouts(policy: Policy, request: Request, results: Sequence[Result]) -> list[Rollout]:
    """The results of a request as rollouts."""
    return [rollout_of(policy, request, *each) for each in enumerate(results)]


def asked_of(
    policy: Policy,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    now: Now,
    *,
    visual: Sequence[tuple[Patches, ...]] | None = None,
    branch: str = "raw",
    prefixes: Sequence[Prefix] | None = None,
    temperature_at: Temperature | None = None,
    counts: Sequence[int] | None = None,
    first: Sequence[int] | None = None,
) -> list[Request]:
    """One request per prompt that asks for at least one answer; arguments as `Asking.generate`. Raises `BadRow`."""
    requests: list[Request] = []
    copies: Counter[str] = Counter()
    banned = never_drawn(policy)
    for index, prompt in enumerate(prompts):
        count = sampling.group_size if counts is None else counts[index]
        # A prompt that is there twice gets other answers the second time: their numbers go on.
        number = copies[prompt.id] + (0 if first is None else first[index])
        copies[prompt.id] += count
        if count == 0:
            continue
        encoded = policy.encode(prompt)
        pixels = encoded.visual if visual is None else visual[index]
        forced = () if prefixes is None else _starts(prefixes[index], count)
        requests.append(
            Request(
                prompt=prompt,
                group=index,
                encoded=encoded,
                pixels=pixels,
                sampling=sampling,
                count=count,
                seed=(now.seed, now.step),
                banned=banned,
                branch=branch,
                first=number,
                forced=forced,
                temperature_at=temperature_at,
            )
        )
    return requests


def rollout_of(policy: Policy, request: Request, answer: int, result: Result) -> Rollout:
    """A result as a rollout: the n-th answer to a request."""
    tokens = torch.tensor(result.tokens, dtype=torch.long)
    roles = torch.full((len(tokens),), int(Role.POLICY), dtype=torch.uint8)
    # What was forced is conditioned on and never trained.
    roles[: len(request.start(answer))] = int(Role.HINT)
    logp: Tensor | None = None
    if result.logp is not None:
        kind = torch.promote_types(policy.dtype, torch.float32)
        logp = torch.as_tensor(result.logp, dtype=kind)
    return Rollout(
        prompt=request.prompt,
        group=request.group,
        prompt_ids=request.encoded.ids if result.seen is None else result.seen,
        tokens=tokens,
        roles=roles,
        text=policy.processing.answer_text(tokens),
        stop=result.stop,
        logp=logp,
        temperature=request.temperatures(len(tokens)),
        branch=request.branch,
        version=result.version,
    )


def never_drawn(policy: Policy) -> tuple[int, ...]:
    """Ids that are never drawn, ascending: vision markers, and rows of the head that stand for no token."""
    padding = range(len(policy.processing.tokenizer), len(policy.base.lm_head.weight))
    return tuple(sorted({*policy.processing.banned_ids, *padding}))


def abilities_of(engine: Any) -> frozenset[Ability]:
    """What an engine can do beyond plain answers: as it declares, or as the arguments of its `generate` say."""
    declared = getattr(engine, "abilities", None)
    if declared is not None:
        # Whoever answers requests gets one number of answers with each.
        always: tuple[Ability, ...] = (
            ("counts per prompt",) if isinstance(engine, Asking) else ()
        )
        return frozenset((*declared, *always))
    takes = inspect.signature(engine.generate).parameters
    names: dict[Ability, tuple[str, ...]] = {
        "other pixels": ("visual", "branch"),
        "forced prefixes": ("prefixes",),
        "temperature per position": ("temperature_at",),
        "counts per prompt": ("counts", "first"),
    }
    return frozenset(kind for kind, given in names.items() if all(n in takes for n in given))


def refuse_beyond(engine: Any, needs: Collection[Ability], who: str) -> None:
    """Raise ValueError for the first need that the engine cannot meet; `who` needs it."""
    # Not even asked where nothing is needed: anything may speak then.
    for need in sorted(set(needs) - abilities_of(engine)) if needs else ():
        raise ValueError(lacks(engine, need, who))


def lacks(engine: Any, need: Ability, who: str) -> str:
    """The message for something that an engine cannot do."""
    able = ", ".join(sorted(abilities_of(engine))) or "plain answers"
    return (
        f"{who} needs {need!r}, which {type(innermost(engine)).__name__} cannot do (it can: {able}); use HFEngine, the "
        "engine in this process."
    )


def innermost(engine: Any) -> Any:
    """The engine that speaks in the end, behind those that stand for others."""
    inside = getattr(engine, "stands_for", None)
    return engine if inside is None else innermost(inside)


def _starts(prefix: Prefix, count: int) -> tuple[tuple[int, ...], ...]:
    """The forced start of each answer."""
    if isinstance(prefix, Tensor):
        return (tuple(prefix.tolist()),) * count
    if len(prefix) != count:
        raise ValueError(
            f"{len(prefix)} prefixes for {count} answers; give one per answer, or one tensor for all."
        )
    return tuple(tuple(one.tolist()) for one in prefix)
