"""Noisy verifiers (arXiv 2510.00915): the pay of a verifier that errs at known rates, corrected before the estimator.

The verifier says R̃ in {0, 1} where R* is true. With ρ0 = P(R̃ = 1 | R* = 0), ρ1 = P(R̃ = 0 | R* = 1), ρ0 + ρ1 < 1

    backward    R̂ = (R̃ - ρ0) / max(1 - ρ0 - ρ1, 0.1)        E[R̂ | R*] = R*
    forward     w = R̃ + ρ1 - 1                               E[w | R*] = (1 - ρ0 - ρ1)·(R* - 1)

R̂ or w takes the place of R̃ in the reward. Since E[∇ log π] = 0 the forward weights follow the true gradient, shorter by
1 - ρ0 - ρ1, and need no ρ0. Both only map {0, 1} to two other numbers: a group's mean takes the shift away, its
deviation all of it. So they go with an estimator without a baseline (`uncentred`); with rates of their own for each
kind of question backward also with a mean of the group, which then weighs kinds by 1 / (1 - ρ0 - ρ1); and with any
estimator where rates differ within a group. What would be undone is refused before a run (`training.clashes`).

Appeals: a second verifier re-checks a share of the answers that the first one rejected. Of P accepted and N rejected
answers of a kind, n of these re-checked and m of these found right, with m' = m·N / n

    ρ̂1 = m' / (m' + P),    ρ1 ← clip(decay·ρ1 + (1 - decay)·ρ̂1, 0, largest)

The estimates are a memory of the run: saved with it, equal on all ranks. A step is corrected with those of the steps
before it, which its own answers did not make.

Degenerate groups: nothing is compared, so one answer, equal ones, cut ones and empty ones are corrected as any. An
answer that could not be judged keeps its reward. A step in which no answer of a kind is right leaves its ρ1.

Departures
1. No official code. The paper puts its corrections before GRPO's z-score, which takes exactly them away; here that is
   refused (see above).
2. The forward weights are derived from the paper's condition (aligned with the true gradient, without ρ0): this pair is
   the only one up to a factor.
3. decay, largest and the least denominator are ours; m is scaled up to all rejected answers, of which only a share was
   asked about.
4. An answer that is found right on appeal stays rejected: paying it would change the rates of those that were paid.
5. Filters inside (`inner`) see what the verifier said, and so does whoever reads whether an answer is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from mmrl.ground.require import require
from mmrl.ground.seeds import philox
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import Pay, RolloutCall, RolloutFunction, group_rollout
from mmrl.rollouts.prompt_order import Supply
from mmrl.types import Now, Rollout, Sampling

__all__ = ["NoisyVerifier", "NoisyVerifierRollout", "Rates", "appealed", "backward", "forward"]

LEAST = 0.1
"""Smallest 1 - ρ0 - ρ1 that is divided by."""
Kind = Callable[[Rollout], str]


def backward(verdict: float, false_positive: float, false_negative: float) -> float:
    """R̂ of a verdict in [0, 1] under both rates."""
    return (verdict - false_positive) / max(1.0 - false_positive - false_negative, LEAST)


def forward(verdict: float, false_negative: float) -> float:
    """w of a verdict in [0, 1]: ρ1 for a right answer, ρ1 - 1 for a wrong one."""
    return verdict + false_negative - 1.0


def appealed(accepted: int, rejected: int, asked: int, overturned: int) -> float | None:
    """ρ̂1 of a step, in [0, 1]: `overturned` of the `asked` ones among the rejected; None where nothing tells."""
    right = overturned * rejected / asked if asked else 0.0
    return right / (right + accepted) if asked and right + accepted > 0 else None


@dataclass(frozen=True)
class NoisyVerifier:
    """Rates at which the verifier errs, and how its pay is corrected."""

    correction: Literal["backward", "forward", "off"] = "backward"
    """backward: unbiased pay; forward: weights along the true gradient, without the rate of false positives."""
    false_positive: float = 0.1
    """P(accepted | wrong), ρ0."""
    false_negative: float = 0.2
    """P(rejected | right), ρ1; with appeals where the estimate starts."""
    column: str = ""
    """Column with the kind of a question, each with rates of its own; empty: one kind."""
    kinds: tuple[str, ...] = ()
    """Rates of kinds that differ from these, as KIND=FALSE_POSITIVE:FALSE_NEGATIVE."""
    appeals: float = 0.0
    """Share of rejected answers that a second verifier checks again, to estimate ρ1; 0: none."""
    decay: float = 0.9
    """What an estimate keeps of itself at each step with appeals."""
    largest: float = 0.45
    """Largest estimate of ρ1."""

    def __post_init__(self) -> None:
        require(
            self,
            correction=(self.correction in ("backward", "forward", "off"), "backward, forward or off"),
            false_positive=(0 <= self.false_positive < 1, "in [0, 1)"),
            false_negative=(
                0 <= self.false_negative < 1 - self.false_positive,
                "at least 0 and below 1 - false_positive, or the verdict says the opposite",
            ),
            appeals=(0 <= self.appeals <= 1, "in [0, 1]"),
            decay=(0 <= self.decay <= 1, "in [0, 1]"),
            largest=(
                self.false_negative <= self.largest < 1 - self.false_positive,
                "at least false_negative and below 1 - false_positive",
            ),
        )  # fmt: skip
        if self.column and not self.kinds and not self.appeals:
            raise ValueError(
                f"NoisyVerifier.column is {self.column!r}, but all kinds of questions have the same rates; "
                "give some of their own (--noisy.kinds KIND=FALSE_POSITIVE:FALSE_NEGATIVE) or estimate them "
                "(--noisy.appeals)."
            )
        for kind, (positive, negative) in self.known().items():
            if not (
                positive >= 0 and 0 <= negative <= self.largest and positive + negative < 1
            ):
                raise ValueError(
                    f"NoisyVerifier.kinds gives {kind!r} the rates {positive:g} and {negative:g}; both must be "
                    f"at least 0, their sum below 1, and the second at most largest, {self.largest:g}."
                )

    def known(self) -> dict[str, tuple[float, float]]:
        """Kind -> (ρ0, ρ1) as given. Raises ValueError for what cannot be read."""
        found: dict[str, tuple[float, float]] = {}
        for text in self.kinds:
            kind, _, rates = text.rpartition("=")
            numbers = rates.split(":")
            try:
                positive, negative = (float(number) for number in numbers)
            except ValueError:
                raise ValueError(
                    f"NoisyVerifier.kinds has {text!r}; write KIND=FALSE_POSITIVE:FALSE_NEGATIVE, as choice=0.0:0.1."
                ) from None
            found[kind] = (positive, negative)
        return found

    @property
    def corrects(self) -> bool:
        """Does it change any pay? Backward with rates of 0 does not, unless appeals may move them."""
        rates = [(self.false_positive, self.false_negative), *self.known().values()]
        is_identity = self.correction == "backward" and not any(max(pair) > 0 for pair in rates)
        return self.correction != "off" and not (is_identity and not self.appeals)


class Rates:
    """The rates of each kind as they are estimated; a rollout function's memory, the same on all ranks."""

    def __init__(self, settings: NoisyVerifier) -> None:
        self.settings = settings
        self._known = settings.known()
        self._estimated: dict[str, float] = {}

    def of(self, kind: str) -> tuple[float, float]:
        """(ρ0, ρ1) of a kind."""
        usual = (self.settings.false_positive, self.settings.false_negative)
        positive, negative = self._known.get(kind, usual)
        return positive, self._estimated.get(kind, negative)

    def observe(self, counts: Mapping[str, Sequence[int]]) -> None:
        """Kind -> accepted, rejected, asked and overturned answers of a step."""
        for kind, numbers in counts.items():
            found = appealed(*numbers)
            if found is not None:
                decay = self.settings.decay
                mixed = decay * self.of(kind)[1] + (1.0 - decay) * found
                # Together with its ρ0 the channel must stay one that says more than nothing.
                most = min(self.settings.largest, 1.0 - LEAST - self.of(kind)[0])
                self._estimated[kind] = min(max(mixed, 0.0), max(most, 0.0))

    def state(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"false_negative": dict(self._estimated)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        self._estimated = {kind: float(rate) for kind, rate in state["false_negative"].items()}


@dataclass(frozen=True)
class NoisyVerifierRollout(RolloutFunction):
    """Corrects what the verifier paid, behind the rollout function inside."""

    noisy: NoisyVerifier = NoisyVerifier()
    part: str = "accuracy"
    """Reward part that is the verifier, the one that the rewards declare as correct."""
    weight: float = 1.0
    """What this part weighs in the reward."""
    kind: Kind | None = None
    """Kind of an answer, where rates differ between the answers of a group; None: the column's."""
    recheck: Pay | None = None
    """The second verifier: pays answers again, and says of each whether it is right. Needed for appeals."""
    inner: RolloutCall = group_rollout

    needs_correct: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self, weight=(self.weight > 0, "positive"))
        if self.noisy.appeals and self.recheck is None:
            raise ValueError(
                f"NoisyVerifier.appeals is {self.noisy.appeals:g}, but there is no second verifier; give "
                "NoisyVerifierRollout(recheck=Rewards(..., correct=...)), or for a recipe a --judge.url."
            )
        if self.noisy.kinds and not self.noisy.column and self.kind is None:
            raise ValueError(
                f"NoisyVerifier.kinds is {self.noisy.kinds}, but nothing says of which kind a question is; name the "
                "column that does (--noisy.column)."
            )

    def traits(self) -> tuple[str, ...]:
        """What of the correction a statistic of the group would take away."""
        if not self.noisy.corrects:
            return ()
        shifts = self.noisy.correction == "forward"
        if self.kind is not None:  # rates differ within groups
            return ("corrects verdicts",)
        if self.noisy.column:
            alone = ("shifts each group",) if shifts else ()
            return ("corrects verdicts", "maps each group alike", *alone)
        moved = "shifts rewards" if shifts else "scales rewards"
        return ("corrects verdicts", "maps rewards alike", moved)

    def missing(self, prompt: Any) -> str:
        """The column of kinds, if the row lacks it."""
        column = self.noisy.column
        return "" if not column or self.kind or column in prompt.extra else column

    def start_memory(self) -> Rates:
        """The rates as given."""
        return Rates(self.noisy)

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        found = self.inner(engine, pay, supply, sampling, now)
        if not self.noisy.corrects:
            return found
        rates: Rates = supply.memory(self)
        corrected = [self._corrected(one, rates) for one in found]
        if self.noisy.appeals:
            counts = self._counts(found, supply, now)
            # After this step's answers were corrected: they do not decide about themselves.
            rates.observe(_summed(supply.ranks.gathered(counts)))
        return corrected

    def _corrected(self, rollout: Rollout, rates: Rates) -> Rollout:
        """The answer with R̂ or w in place of the verdict; as it is where there is none."""
        said = rollout.parts.get(self.part)
        if said is None or rollout.correct is None or rollout.reward is None:
            return rollout
        verdict, (positive, negative) = float(rollout.correct), rates.of(self._kind(rollout))
        value = forward(verdict, negative)
        if self.noisy.correction == "backward":
            value = backward(verdict, positive, negative)
        parts = {**rollout.parts, "corrected": value, "false_negative": negative}
        # By the difference, so that a correction which changes nothing changes no bit.
        reward = rollout.reward + self.weight * (value - said)
        return replace(rollout, reward=reward, parts=parts)

    def _counts(
        self, rollouts: Sequence[Rollout], supply: Supply, now: Now
    ) -> dict[str, list[int]]:
        """Kind -> accepted, rejected, asked and overturned answers of this rank."""
        counts: dict[str, list[int]] = {}
        appeals: list[Rollout] = []
        answers: Counter[str] = Counter()
        for one in rollouts:
            # By its number among the answers to its prompt, which any number of ranks count alike.
            number = answers[one.prompt.id]
            answers[one.prompt.id] += 1
            if one.correct is None:
                continue
            counts.setdefault(self._kind(one), [0, 0, 0, 0])[0 if one.correct else 1] += 1
            if not one.correct and self._is_drawn(one, number, now):
                appeals.append(one)
        assert self.recheck is not None
        for one in self.recheck(appeals) if appeals else ():
            if one.correct is not None:
                asked = counts[self._kind(one)]
                asked[2] += 1
                asked[3] += one.correct
        supply.counters["noisy_verifier/appeals"] += sum(each[2] for each in counts.values())
        supply.counters["noisy_verifier/overturned"] += sum(each[3] for each in counts.values())
        return counts

    def _is_drawn(self, rollout: Rollout, number: int, now: Now) -> bool:
        """Is this rejected answer checked again?"""
        place = ("appeal", now.seed, now.step, rollout.prompt.id, number)
        return bool(philox(*place).random() < self.noisy.appeals)

    def _kind(self, rollout: Rollout) -> str:
        if self.kind is not None:
            return self.kind(rollout)
        return str(rollout.prompt.extra.get(self.noisy.column, "")) if self.noisy.column else ""


def _summed(several: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, list[int]]:
    """The counts of all ranks."""
    found: dict[str, Counter[int]] = {}
    for counts in several:
        for kind, numbers in counts.items():
            found.setdefault(kind, Counter()).update(dict(enumerate(numbers)))
    return {kind: [total[place] for place in range(4)] for kind, total in found.items()}
