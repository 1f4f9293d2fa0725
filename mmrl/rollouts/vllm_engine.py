"""vLLM as a rollout engine, whether it runs in this process or behind a URL.

    answer    bring the weights over if the engine has others; ask; compare ids; log-probs as training reads them
    begin     the same, but while a server answers this process goes on; `landed` waits for the answers
    sync      let the device go until the next answers are asked for; the weights follow with these

Weights carry a name: a random part, made once per engine object, and `Policy.version`. The engine answers only from the
weights that it is asked for, and says with each answer which ones it read, so answers of old weights, or of another
run's, are refused (`stale="refuse"`) or counted and left to the importance weights (`"count"`).

With adapters only these travel; without, all weights do. The base of an adapter is what the engine loads from the
model folder.
"""

from __future__ import annotations

import itertools
import secrets
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from mmrl.ground.printable import logger
from mmrl.model.handing import adapts_tower, all_weights, write_adapter
from mmrl.model.policy import Policy
from mmrl.rollouts.request import Ability, Asking, Request, Result, Tell
from mmrl.rollouts.resubmitted import ResubmittedForest
from mmrl.rollouts.vllm_prompts import FAMILIES, meaning, questions_of, results_of
from mmrl.rollouts.vllm_wire import About, LogprobsMode, Question, Reply
from mmrl.types import Sampling

log = logger(__name__)

Stale = Literal["refuse", "count"]
TellReply = Callable[[int, Reply], None]


class VLLM(Protocol):
    """A vLLM: in this process (`vllm_local.LocalVLLM`) or a server's (`vllm_client.RemoteVLLM`)."""

    def about(self) -> About:
        """What it is, and which weights it holds."""
        ...

    def answer(self, questions: Sequence[Question], version: str) -> list[Reply]:
        """Replies in the order of the questions, from the weights of this version."""
        ...

    def answer_in_turn(
        self, questions: Sequence[Question], version: str, tell: TellReply
    ) -> list[Reply]:
        """As `answer`; `tell` is given each question's number and reply when the last of its answers has ended."""
        ...

    def load(self, weights: Iterable[tuple[str, Tensor]], version: str, encoder: bool) -> None:
        """Take over all weights; `encoder`: those of the tower or its merger may differ."""
        ...

    def adapt(self, folder: Path, version: str) -> None:
        """Take over an adapter instead."""
        ...

    def sleep(self) -> None:
        """Give the device's memory to the trainer."""
        ...

    @property
    def alone(self) -> bool:
        """Does it answer while this process computes something else?"""
        ...


_Ask = Callable[[Sequence[Question], str], list[Reply]]
"""Questions and the version of the weights -> replies."""
_Came = tuple[int, Reply]
"""A question's number and its reply."""


@dataclass(frozen=True, eq=False)
class _Asked:
    """What vLLM is asked."""

    requests: Sequence[Request]
    questions: Sequence[tuple[int, range, Question]]
    """Number of the request, its answers that the question is for, and the question."""
    version: str
    """Name of the weights that shall answer."""
    trained: int
    """`Policy.version` of these."""
    began: float
    results: dict[int, list[Result]] = field(default_factory=dict)
    """By request: those that are told already."""


class Flight:
    """Answers under way: a thread waits for them and touches nothing else."""

    def __init__(self, asked: _Asked, ask: Callable[[TellReply], list[Reply]]) -> None:
        self.asked = asked
        self._replies: list[Reply] = []
        self._came: list[_Came] = []
        self._over = False
        self._news = threading.Condition()
        """More has come, or nothing more will."""
        self._problem: Exception | None = None
        self._thread = threading.Thread(
            target=self._run, args=(ask,), name="mmrl-answers-ahead", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Until they are there, or cannot come."""
        self._thread.join()

    def done(self, seconds: float) -> bool:
        """Wait so long at most: are they there, or cannot come?"""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def coming(self) -> Iterator[_Came]:
        """Each as it comes; ends when no more will. Several may listen: the step, and whoever writes a checkpoint."""
        for number in itertools.count():
            with self._news:
                self._news.wait_for(lambda: self._over or len(self._came) > number)  # noqa: B023
                if number == len(self._came):
                    return
            yield self._came[number]

    def replies(self) -> list[Reply]:
        """Wait for them. Raises what went wrong."""
        self.wait()
        if self._problem is not None:
            raise self._problem
        return self._replies

    def _run(self, ask: Callable[[TellReply], list[Reply]]) -> None:
        try:
            self._replies = ask(self._heard)
        except Exception as problem:  # raised where somebody asks for the answers
            self._problem = problem
        finally:
            with self._news:
                self._over = True
                self._news.notify_all()

    def _heard(self, question: int, reply: Reply) -> None:
        with self._news:
            self._came.append((question, reply))
            self._news.notify_all()


class OldWeights(RuntimeError):
    """Answers were drawn from other weights than those that are trained."""


class VLLMEngine(Asking):
    """Answers of a vLLM. Raises ValueError for a policy that it cannot serve."""

    abilities: Collection[Ability] = ("other pixels", "forced prefixes", "forks")
    mismatch: ClassVar[Literal["truncate"]] = "truncate"
    """How its log-probs are corrected unless somebody says otherwise (`grpo.mismatch`)."""

    def __init__(
        self, policy: Policy, vllm: VLLM, *, stale: Stale = "refuse", run: str = ""
    ) -> None:
        refuse_unfit(policy)
        self.policy, self.vllm, self.stale = policy, vllm, stale
        self._run = run or secrets.token_hex(4)
        """Begins the names of its weights; given where several processes bring the same ones to one server."""
        self._adapter: tempfile.TemporaryDirectory[str] | None = None
        self._brought = False
        """Did this engine ever hold weights of this run?"""
        self._flying: Flight | None = None
        about = vllm.about()
        _refuse_adapter(policy, about)
        self.mode: LogprobsMode = about.mode

    @property
    def version(self) -> str:
        """The name of the weights that are trained now."""
        return f"{self._run}.{self.policy.version}"

    def sync(self, policy: Policy) -> None:
        """The weights follow when answers are asked for; until then the engine may give its memory away."""
        assert policy is self.policy, "this engine belongs to another policy"

    def refuse_sampling(self, sampling: Sampling) -> None:
        """Raise ValueError for sampling of which the engine knows no log-probs that training could compare."""
        if meaning(sampling, self.mode) != "none":
            return
        raise ValueError(
            f"vLLM gives its {self.mode} log-probs, and at temperature {sampling.temperature:g} with top-p "
            f"{sampling.top_p:g}, top-k {sampling.top_k}, min-p {sampling.min_p:g} these cannot be compared with "
            "training's. Sample at --sampling.temperature 1 (raw) or without truncation (processed), or give up the "
            "correction with --load.engine-correct False."
        )

    @property
    def answers_alone(self) -> bool:
        """Can it answer while the policy learns (`begin`)?"""
        return self.vllm.alone

    def answer(self, requests: Sequence[Request]) -> list[Result]:
        """As `Asking.answer`."""
        asked = self._ask(requests)
        return self._answered(asked, self.vllm.answer)

    def stream(self, requests: Sequence[Request], tell: Tell) -> list[Result]:
        """As `Asking.stream`."""
        asked = self._ask(requests)
        gather = self._gathered(asked, tell)
        return self._answered(asked, partial(self.vllm.answer_in_turn, tell=gather))

    def _answered(self, asked: _Asked, ask: _Ask) -> list[Result]:
        questions = [question for *_, question in asked.questions]
        replies = self._replies(questions, asked.version, ask)
        self.vllm.sleep()
        found = self._results(asked, replies)
        self.policy.counters["tokens/decode"] += sum(len(result.tokens) for result in found)
        return found

    def plant(self, requests: Sequence[Request]) -> ResubmittedForest:
        """As `Asking.plant`: vLLM is asked for each piece with what lies before it, which it need not compute again."""
        return ResubmittedForest(self, requests)

    def begin(self, requests: Sequence[Request]) -> Flight:
        """Ask the present weights and do not wait; they may change as soon as this returns."""
        asked = self._ask(requests)
        questions = [question for *_, question in asked.questions]
        # By itself: weights that the server has lost cannot be brought again, for by then they have changed.
        self._flying = Flight(
            asked, lambda tell: self.vllm.answer_in_turn(questions, asked.version, tell)
        )
        return self._flying

    def landed(self, flight: Flight, tell: Tell | None = None) -> list[Result]:
        """The results of what was begun, as `answer` gives them; `tell` is given a request's number and its results
        when they are there. Raises what it raises, and LostWeights."""
        gather = self._gathered(flight.asked, tell or _nobody_asks)
        for question, reply in flight.coming():
            gather(question, reply)
        replies = flight.replies()
        _refuse_missing(replies, flight.asked.questions)
        return self._results(flight.asked, replies)

    def _ask(self, requests: Sequence[Request]) -> _Asked:
        """Bring the weights and put the questions."""
        began = time.monotonic()
        version = self.bring()
        questions: list[tuple[int, range, Question]] = []
        for number, request in enumerate(requests):
            for answers, question in questions_of(self.policy, request):
                questions.append((number, answers, question))
        return _Asked(requests, questions, version, self.policy.version, began)

    def _gathered(self, asked: _Asked, tell: Tell) -> TellReply:
        """Takes replies in any order, and tells of a request when all of its are there."""
        missing = Counter(number for number, *_ in asked.questions)
        told: dict[int, list[tuple[range, Reply]]] = {number: [] for number in missing}
        known: set[int] = set()

        def take(question: int, reply: Reply) -> None:
            if question in known:
                return  # an engine that lost its weights in between is asked everything again
            known.add(question)
            number, answers, _ = asked.questions[question]
            told[number].append((answers, reply))
            if len(told[number]) == missing[number]:
                asked.results[number] = self._results_of(asked, number, told[number])
                tell(number, asked.results[number])

        return take

    def _results(self, asked: _Asked, replies: Sequence[Reply]) -> list[Result]:
        told: list[list[tuple[range, Reply]]] = [[] for _ in asked.requests]
        for (number, answers, _), reply in zip(asked.questions, replies, strict=True):
            told[number].append((answers, reply))
        found: list[Result] = []
        for number, its in enumerate(told):
            found += asked.results.get(number) or self._results_of(asked, number, its)
        return found

    def _results_of(
        self, asked: _Asked, number: int, its: Sequence[tuple[range, Reply]]
    ) -> list[Result]:
        """Of one request. Raises OldWeights and EngineDisagrees."""
        request, seconds = asked.requests[number], time.monotonic() - asked.began
        for _, reply in its:
            self._current(reply, asked.version, request)
        return results_of(self.policy, request, its, self.mode, asked.trained, seconds)

    def bring(self) -> str:
        """Bring the policy's weights over unless the engine has them; their name."""
        version = self.version
        if self._flying is not None:
            # It is answered by the weights that are there; others would take them away.
            self._flying.wait()
            self._flying = None
        if self.vllm.about().version == version:
            return version
        began = time.monotonic()
        if self.policy.has_adapter:
            folder = tempfile.TemporaryDirectory(prefix="mmrl-adapter-")
            write_adapter(self.policy, Path(folder.name))
            self.vllm.adapt(Path(folder.name), version)
            # Until the next one has come: vLLM reads it when it is first asked, and may read it again.
            self._adapter = folder
        else:
            # The first time also features of frozen weights may be another run's.
            encoder = not self._brought or self.policy.vision.tower.trains
            self.vllm.load(all_weights(self.policy), version, encoder)
        self._brought = True
        self.policy.counters["rollout/weights_sent"] += 1
        log.debug("weights %s after %.1f s", version, time.monotonic() - began)
        return version

    def _replies(self, questions: Sequence[Question], version: str, ask: _Ask) -> list[Reply]:
        """Replies from these weights, which are brought again where an engine has lost them."""
        if not questions:
            return []
        try:
            replies = ask(questions, version)
        except LostWeights:
            self.policy.counters["rollout/weights_lost"] += 1
            self.bring()
            replies = ask(questions, version)
        _refuse_missing(replies, questions)
        return replies

    def _current(self, reply: Reply, version: str, request: Request) -> None:
        """Refuse or count answers that were drawn from other weights."""
        old = [said.version for said in reply.answers if said.version != version]
        if not old:
            return
        if self.stale == "refuse":
            raise OldWeights(
                f"vLLM answered prompt {request.prompt.id!r} from the weights {old[0]!r}; trained are {version!r}. "
                "Does another run use the same engine? Give each its own, or allow it with --load.engine-stale count."
            )
        self.policy.counters["rollout/stale"] += len(old)


class LostWeights(RuntimeError):
    """The engine holds other weights than those that it is asked for: it was started again, or another run came."""


def _nobody_asks(number: int, results: Sequence[Result]) -> None:
    """Results that nobody wants before all are there."""


def _refuse_missing(replies: Sequence[Reply], questions: Sequence[object]) -> None:
    if len(replies) != len(questions):
        raise OSError(f"vLLM gave {len(replies)} replies to {len(questions)} questions.")


def refuse_unfit(policy: Policy) -> None:
    """Raise ValueError for a model whose prompts were not compared with vLLM's."""
    kind = policy.base.config.model_type
    if kind not in FAMILIES:
        raise ValueError(
            f"The model type {kind!r} was not tested with vLLM ({', '.join(FAMILIES)} were); use --load.engine here."
        )


def _refuse_adapter(policy: Policy, about: About) -> None:
    """Raise ValueError for an adapter that the engine would not take as a whole."""
    if not policy.has_adapter:
        return
    lora = policy.description.get("lora") or {}
    rank = int(lora.get("rank", 0)) or max(
        p.shape[0] for n, p in policy.named_parameters() if "lora_A" in n
    )
    if about.rank < rank:
        raise ValueError(
            f"The policy trains adapters of rank {rank}, but this vLLM takes "
            f"{f'ranks up to {about.rank}' if about.rank else 'none'}; start it with --rank {rank}."
        )
    if adapts_tower(policy) and not about.tower:
        # It would load the adapter without its tower part, and say nothing.
        raise ValueError(
            "The policy trains adapters on its vision tower, which this vLLM would leave out silently; start it with "
            "--tower, or train without --lora.vision."
        )
