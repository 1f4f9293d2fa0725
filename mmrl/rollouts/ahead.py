"""Answers to the next step's prompts are drawn while this step's update runs (`--run.staleness 1`).

    rollouts = inner(engine, …)          of its requests, those that were asked ahead have their answers already
    coming   = supply.coming()           the next step's prompts, which stay where they are
    flight   = engine.begin(requests)    the server draws answers to them by the weights of now; nobody waits
    (the update moves the weights)

So answers are older than the weights by the updates of one step, and never by more. Their log-probs are those of the
weights that drew them, and the importance weights of `GRPO.mismatch`, without which such a run is refused, correct for
the difference together with that between the two programs.

What is asked ahead is what the next step will ask for first, if it asks as plain groups do: a request that is not
exactly one of these (other numbers of answers, a retry's seeds, another round) is put to the present weights, and
answers that nobody took are counted and dropped. Which answers a step learns from therefore does not depend on timing.

A checkpoint holds the answers that were under way when it was written, since the weights that drew them are in no
checkpoint: a run that goes on from it learns from the same answers as one that was not stopped. If a server loses them,
the step's prompts are asked anew, by newer weights; that is counted, and such a run is not repeated bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmrl.ground.contents import digest
from mmrl.ground.printable import logger
from mmrl.ground.stopping import is_late
from mmrl.model.ranks import Ranks
from mmrl.objectives.base import Objective
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import Pay, RolloutCall, RolloutFunction, chain, group_rollout
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.request import (
    Ability,
    Asking,
    Request,
    Result,
    Tell,
    abilities_of,
    asked_of,
    innermost,
)
from mmrl.rollouts.stages import OneStep
from mmrl.types import Now, Rollout, Sampling

log = logger(__name__)
TellOf = Callable[[str, Sequence[Result]], None]
"""Is given a request's key and its results."""
FIELDS = ("tokens", "logp", "stop", "meaning", "version", "seconds")
"""Of a result, what a checkpoint keeps: vLLM's results have no others."""
LOOK = 0.1
"""Seconds between two looks at whether answers have come."""


class _Asked:
    """The answers to one step's requests: on their way, there, or lost."""

    def __init__(self, answers: Mapping[str, list[Result]] | None = None) -> None:
        self._answers = answers
        """By request; None while they are on their way."""
        self._engine: Any = None
        self._flight: Any = None

    @staticmethod
    def of(engine: Any, requests: Sequence[Request]) -> _Asked:
        """Ask and do not wait."""
        asked = _Asked()
        asked._engine, asked._flight = engine, engine.begin(requests)
        return asked

    def answers(self, tell: TellOf | None = None) -> Mapping[str, list[Result]]:
        """By request; waits for them. Empty if they are lost, which is counted and said.

        `tell` is given the key and results of each request that comes meanwhile, also if the rest is lost then.
        """
        flight = self._flight  # a checkpoint may be waiting for it, too
        if self._answers is not None:
            return self._answers
        requests: Sequence[Request] = flight.asked.requests
        problems: list[Exception] = []

        def heard(number: int, found: Sequence[Result]) -> None:
            try:
                (tell or _nobody)(key_of(requests[number]), found)
            except Exception as problem:  # the listener's, and none of the answers
                problems.append(problem)

        try:
            results = self._engine.landed(flight, heard)
            each = _by_request(requests, results)
            self._answers = {key_of(r): its for r, its in zip(requests, each, strict=True)}
        # Whatever it was: asked again in the step itself, it is raised there if it lasts.
        except Exception as problem:
            count = sum(request.count for request in requests)
            self._engine.policy.counters["rollout/ahead_lost"] += count
            log.warning("Answers that were asked ahead are asked for anew: %s", problem)
            self._answers = {}
        self._flight = None
        for problem in problems:
            raise problem
        return self._answers

    def as_json(self) -> dict[str, list[list[Any]]]:
        """For a checkpoint, which waits for them, but not after the time that a signal leaves."""
        while self._flight is not None and not self._flight.done(LOOK):
            if is_late():
                log.warning(
                    "Answers that were asked ahead have not come in time for the checkpoint; the run that goes on from "
                    "it asks for them anew, by newer weights."
                )
                return {}
        return {key: [_kept(one) for one in found] for key, found in self.answers().items()}

    def __deepcopy__(self, memo: Any) -> _Asked:
        # Answers do not change, and a thread cannot be copied.
        return self


class UnderWay:
    """What was asked ahead for the next step. The memory of `AskedAhead`."""

    def __init__(self) -> None:
        self.ranks = Ranks.alone()
        self._asked = _Asked({})
        self._taken: set[str] = set()
        self._of_all = False
        """Does it hold answers for all ranks, from a checkpoint?"""

    def begin(self, engine: Any, requests: Sequence[Request]) -> None:
        """Ask for answers and do not wait for them."""
        self._asked, self._taken, self._of_all = _Asked.of(engine, requests), set(), False

    def take(self, request: Request) -> list[Result] | None:
        """The answers to a request, if it was asked ahead and nobody took them yet; waits for them."""
        key = key_of(request)
        if key in self._taken:
            return None
        self._taken.add(key)
        return self._asked.answers().get(key)

    def listen(self, places: Mapping[str, int], tell: Tell) -> None:
        """Wait for the answers, and tell of those that are asked at these places, by key, when they come."""

        def heard(key: str, results: Sequence[Result]) -> None:
            if key in places and key not in self._taken:
                tell(places[key], results)

        self._asked.answers(heard)

    def drop(self) -> int:
        """Forget what nobody took; how many answers. All ranks call it."""
        answers, taken = self._asked.answers(), self._taken
        if self._of_all and self.ranks.several:
            # What others took is used, and what nobody took is counted once.
            taken = set().union(*self.ranks.gathered(sorted(taken)))
            answers = answers if self.ranks.first else {}
        self._asked, self._taken, self._of_all = _Asked({}), set(), False
        return sum(len(found) for key, found in answers.items() if key not in taken)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep: all ranks' answers. Of one rank they are waited for when it is written."""
        if not self.ranks.several:
            return {"answers": self._asked}
        whole: dict[str, Any] = {}
        for each in self.ranks.gathered(self._asked.as_json()):
            whole |= each
        return {"answers": whole}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned; those of other ranks are dropped when the step is over."""
        found = {
            key: [Result(**dict(zip(FIELDS, one, strict=True))) for one in rows]
            for key, rows in state["answers"].items()
        }
        self._asked, self._taken, self._of_all = _Asked(found), set(), True


def key_of(request: Request) -> str:
    """Equal for requests that are answered by the same draws, and for no others."""
    fields = (request.key(0), request.count, repr(request.sampling), request.forced)
    shown = [patches.key for patches in request.pixels]
    heat = "" if request.temperature_at is None else repr(request.temperature_at)
    return digest((fields, shown, request.encoded.ids.tolist(), request.banned, heat)).hex()


@dataclass(frozen=True)
class AskedAhead(RolloutFunction):
    """A rollout function whose first answers were asked for during the update before."""

    inner: RolloutCall = group_rollout

    def start_memory(self) -> UnderWay:
        """Nothing is under way."""
        return UnderWay()

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        under_way: UnderWay = supply.memory(self)
        under_way.ranks = supply.ranks
        server: Any = innermost(engine)
        rollouts = self.inner(OneStep(_Ahead(server, under_way)), pay, supply, sampling, now)
        if unused := under_way.drop():
            server.policy.counters["rollout/ahead_unused"] += unused
        if now.progress < 1:
            prompts = supply.coming()
            following = replace(now.following(), seed=supply.seed)
            with supply.ranks.together():
                under_way.begin(server, asked_of(server.policy, prompts, sampling, following))
        return rollouts


class _Ahead(Asking):
    """The engine, which has answered some requests already."""

    def __init__(self, engine: Any, under_way: UnderWay) -> None:
        self.stands_for, self.policy, self._under_way = engine, engine.policy, under_way

    @property
    def abilities(self) -> Collection[Ability]:  # type: ignore[override]
        """Those of the engine."""
        return abilities_of(self.stands_for)

    def answer(self, requests: Sequence[Request]) -> list[Result]:
        """As `Asking.answer`."""
        return self._known_and(requests, lambda missing, _: self.stands_for.answer(missing))

    def stream(self, requests: Sequence[Request], tell: Tell) -> list[Result]:
        """As `Asking.stream`: answers that were asked ahead are told as they come, and then the others."""
        told: set[int] = set()

        def first(place: int, results: Sequence[Result]) -> None:
            told.add(place)
            tell(place, results)

        def others(missing: Sequence[Request], places: Sequence[int]) -> list[Result]:
            def again(number: int, results: Sequence[Result]) -> None:
                told.discard(places[number])
                tell(places[number], results)

            found = self.stands_for.stream(missing, again)
            # Some came before the rest was lost: what was told of them does not count any more.
            each = _by_request(missing, found)
            for place, results in zip(places, each, strict=True):
                if place in told:
                    tell(place, results)
            return found

        self._under_way.listen({key_of(r): n for n, r in enumerate(requests)}, first)
        return self._known_and(requests, others)

    def _known_and(
        self,
        requests: Sequence[Request],
        others: Callable[[Sequence[Request], Sequence[int]], list[Result]],
    ) -> list[Result]:
        """Results of all: those that were asked ahead, and what `others` says to the rest and its places."""
        known = [self._under_way.take(request) for request in requests]
        places = [place for place, found in enumerate(known) if found is None]
        missing = [requests[place] for place in places]
        fresh = iter(others(missing, places) if missing else ())
        results: list[Result] = []
        for request, found in zip(requests, known, strict=True):
            if found is None:
                results += [next(fresh) for _ in range(request.count)]
                continue
            self.policy.counters["rollout/ahead"] += len(found)
            # Here and not when they came, so that a run that was stopped counts the same.
            self.policy.counters["tokens/decode"] += sum(len(one.tokens) for one in found)
            results += found
        return results

    def sync(self, policy: Any) -> None:
        """As the engine."""
        self.stands_for.sync(policy)


def asked_ahead(
    rollout: RolloutCall, engine: Any, staleness: int, objectives: Sequence[Objective]
) -> RolloutCall:
    """The rollout function of a run with this `run.staleness`. Raises ValueError where nothing can be asked ahead."""
    if staleness == 0:
        return rollout
    given = f"--run.staleness is {staleness}"
    if not getattr(engine, "answers_alone", False):
        raise ValueError(
            f"{given}, but {type(innermost(engine)).__name__} cannot answer while the policy learns; a server can, if "
            "each process has its own: --load.engine http://HOST:PORT (python -m mmrl.rollouts.vllm_serve starts one)."
        )
    for part in chain(rollout):
        if part.owns() or part.sampled_under():
            raise ValueError(
                f"{given}, but {type(part).__name__} decides in each step how its prompts are answered, so they cannot "
                "be asked ahead; leave --run.staleness 0."
            )
    for objective in objectives:
        if objective.moves_prompts:
            raise ValueError(
                f"{given}, but {type(objective).__name__} decides after each step which prompts come next; leave "
                "--run.staleness 0."
            )
    return AskedAhead(rollout)


def _nobody(key: str, results: Sequence[Result]) -> None:
    """Nobody wants to know before all are there."""


def _by_request(requests: Sequence[Request], results: Sequence[Result]) -> list[list[Result]]:
    left = iter(results)
    return [[next(left) for _ in range(request.count)] for request in requests]


def _kept(result: Result) -> list[Any]:
    return [getattr(result, name) for name in FIELDS]
