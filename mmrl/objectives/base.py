"""The one seam of the core: a paper overrides `shape`, `terms` or both, and says what it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from mmrl.ground.declared import refuse_misspelt
from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.losses.reduce import Reduction
from mmrl.types import Batch, Divergence, Now, Role, Rollout, Scores, Shaped

LiveScores = Mapping[str, Scores]
"""Branch -> its scores in an update: "raw" and branches with gradient by the present weights, the others as stored."""
TokenMaps = dict[str, Tensor]
"""Name -> one number per token, [B, T]."""


@dataclass(frozen=True)
class ScoreRequest:
    """Scores that an objective reads."""

    branch: str
    """"raw", "ref" or the name of a visual branch."""
    stage: Literal["shape", "terms"] = "terms"
    """Before the update (stored scores) or inside it (live scores)."""
    entropy: bool = False
    """Read `Scores.entropy`, the exact entropy over the vocabulary."""
    divergence: Divergence | None = None
    """Read `Scores.divergence`: exact divergence of raw against this branch over the vocabulary.
    forward = KL(raw‖branch), reverse = KL(branch‖raw), symmetric = their mean, js = Jensen–Shannon."""
    vocabulary_mean: bool = False
    """Read `Scores.vocabulary_mean`. Where raw scores are stored for the ratio, theirs is stored too."""
    top: int = 0
    """Read `Scores.top_logp` and `top_ids` of so many tokens (or more, if somebody else asks for them)."""
    slot: tuple[int | str, ...] = ()
    """Read `Scores.slot`: log-probs of these tokens, by id or text, in the place behind each answer; special tokens
    that the model does not use, never one that stands for pictures. All who ask for slots of a branch ask for the
    same."""
    suffix: Callable[[Rollout], Tensor] | None = None
    """Read `Scores.suffix`: log-probs of these tokens, long [S], behind the answer. They count in
    `Run.tokens_per_pass`; the function is asked several times per answer."""
    picked: Callable[[Rollout], Tensor] | None = None
    """Read `Scores.picked`: log-probs, with gradient, of these tokens, long [T, k], in each place of an answer."""
    words: bool = False
    """Read `Scores.words`: log-probs of the words of the prompt, without template and pictures."""
    states: bool = False
    """Read `Scores.states`: B × T × D numbers in the model's format; 64 answers of 2,048 tokens and 3,584 channels in
    bf16 are 0.94 GB."""

    def __post_init__(self) -> None:
        require(self, top=(self.top >= 0, "0 (none) or positive"))


@dataclass(frozen=True)
class AnswerKind:
    """Answers beyond the policy's plain ones: an objective reads them, a rollout function brings them.

    The two meet if name and branch are equal; what else a kind says is for the checks before a run.
    """

    name: str
    """For example "label"."""
    branch: str = ""
    """The view that they are sampled under; "" if they see the real pixels."""
    # Not compared: an objective asks by name, and need not repeat what the rollout function knows.
    sampled: bool = field(default=True, compare=False)
    """False: nobody sampled them, so the sampler has no probabilities of theirs."""
    trained: bool = field(default=True, compare=False)
    """False: they are scored, but stand in no mask."""
    filtered: bool = field(default=False, compare=False)
    """True: what brings them has a filter of its own, which no other filter may forestall."""
    remedy: str = field(default="", compare=False)
    """How to get them, for the message if they are missing: which rollout function brings them."""

    def __str__(self) -> str:
        return f"{self.name}:{self.branch}" if self.branch else self.name


LABEL = AnswerKind(
    "label",
    sampled=False,
    remedy="it needs the label in each group; use rollout=WithLabel(policy.processing.encode_answer, ...)",
)
"""The row's label as a trained member of each group."""
EXPERT = AnswerKind(
    "expert",
    sampled=False,
    trained=False,
    remedy="it needs an expert answer next to each group; use rollout=WithExpert(policy.processing.encode_answer)",
)
"""An expert's answer next to each group, only scored."""
TEACHERS = AnswerKind(
    "teachers",
    sampled=False,
    trained=False,
    remedy="it needs answers of teachers in the groups; use rollout=WithTeachers(policy.processing.encode_answer)",
)
"""Answers of several teachers next to each group; trained only if an objective trains the role EXPERT."""
EXPERIENCE = AnswerKind(
    "experience",
    sampled=False,
    trained=False,
    remedy="it needs texts about the policy's mistakes behind the groups; use rollout=MELRollout(mel)",
)
"""What the policy wrote about its mistakes, in groups of its own; trained only if an objective trains role EXPERT."""
SELF_TAUGHT = AnswerKind(
    "self-taught",
    sampled=False,
    trained=False,
    remedy="it needs solutions with a teacher's tokens; use rollout=SSBRollout(Teacher(policy, ssb), ...)",
)
"""Solutions that the policy wrote with hints; trained only if an objective trains role EXPERT."""
HINTS = AnswerKind(
    "hints",
    sampled=False,
    trained=False,
    remedy="it needs answers that begin with hints; use rollout=SEELERollout(processing=policy.processing)",
)
"""Answers whose first tokens are a part of the row's solution; trained only if an objective trains the role HINT."""
PROBED = AnswerKind(
    "probed",
    remedy="it needs answers with the potentials of their steps; use rollout=SPAERollout(policy.processing, spae)",
)
"""Answers whose steps were asked for their result (`Rollout.valued`)."""
CRITIQUED = AnswerKind(
    "critiqued",
    remedy="it needs answers whose steps were read; use rollout=CAPORollout(policy.processing, critique.wrong)",
)
"""Answers whose wrong steps were named (`Rollout.valued`)."""
CHECKLIST = AnswerKind(
    "checklist",
    filtered=True,
    remedy="it needs answers to checklists; use rollout=ChecklistRollout(ask, mark, pearl)",
)
"""Answers to a checklist about the picture, in groups of their own."""


def noisy_prompts(branch: str) -> AnswerKind:
    """Whole groups that are sampled under a noisy view, for some of the prompts."""
    how = "use rollout=NoisyPrompts(policy, view, branch), or another draw"
    remedy = f"it needs answers sampled under that branch; {how}"
    return AnswerKind("noisy prompts", branch, remedy=remedy)


def noisy_answers(branch: str) -> AnswerKind:
    """Some answers of each group that are sampled under a noisy view."""
    how = "use rollout=NoisyRollout(policy, view, branch)"
    remedy = f"it needs answers sampled under that branch; {how}"
    return AnswerKind("noisy answers", branch, remedy=remedy)


class Memory(Protocol):
    """What an objective or a rollout function remembers from step to step. The trainer owns it and saves it.

    An objective is given it by `shape`, a rollout function asks for it: `supply.memory(self)`.
    """

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep; JSON-serialisable or tensors."""
        ...

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        ...


class Objective:
    """A paper's change to GRPO. Subclasses are frozen dataclasses whose fields are the paper's symbols.

    An objective holds settings only. What `shape` finds for the step travels in the `Shaped` that it returns, what must
    outlive the step in the memory that it is given.
    """

    reductions: ClassVar[Mapping[str, Reduction]] = {}
    """Term -> rule by which it is reduced, whatever `GRPO.reduction` says."""
    single_rollout: ClassVar[bool] = False
    """Does it train one answer per prompt? Then nothing may compare the answers of a group."""
    moves_prompts: ClassVar[bool] = False
    """Does it change which prompts come next (a curriculum)? Then none is read before its step."""
    spans_batch: ClassVar[bool] = True
    """Does `shape` look beyond the answers of one group, or log a number of the step? Then it is given the answers of
    all processes, those of others without their pictures."""
    remedies: ClassVar[Mapping[str, str]] = {}
    """Alarm of `monitor.py` ("divergence", "entropy", "length") -> what the paper does about it."""
    needs_correct: ClassVar[bool] = False
    """Does it read `Batch.correct`? Then the rewards must declare which part says whether an answer is right."""
    needs_whole_groups: ClassVar[bool] = False
    """Do its terms compare the answers of a group? Then no pass holds a part of one."""
    trains_roles: ClassVar[tuple[Role, ...]] = (Role.POLICY,)
    """Whose tokens it trains: those of all objectives together are in `Batch.mask`."""
    off: ClassVar[Mapping[str, Any] | None] = {}
    """Fields and values with which it is GRPO bit for bit; None if it has no such setting, because it owns a slot."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        refuse_misspelt(cls, Objective)

    def remembers_prompts(self) -> bool:
        """Is its memory keyed by `Prompt.id`? Then no two rows may share one."""
        return False

    def owns(self) -> tuple[Slot, ...]:
        """What it alone decides. "estimator": its `shape` replaces the advantage, so it stands before all that shape.
        "surrogate": its terms are the policy's loss, and the core computes none."""
        return ()

    def traits(self) -> tuple[str, ...]:
        """What it says about itself for the table of combinations that mean nothing (`ground.traits.TRAITS`)."""
        return ()

    def answer_kinds(self) -> tuple[AnswerKind, ...]:
        """Which answers the rollout function must bring besides the policy's plain ones."""
        return ()

    def score_requests(self) -> tuple[ScoreRequest, ...]:
        """Which scores it reads. Empty when its coefficients are zero: then no branch is scored for it."""
        return ()

    def start_memory(self) -> Memory | None:
        """A fresh memory for one run; None (the default) if nothing outlives a step."""
        return None

    def shape(self, advantage: Tensor, batch: Batch, now: Now, memory: Any = None) -> Shaped:
        """Change the advantage [B, T]. Runs once a step, without gradient, in the order in which objectives are listed.

        `memory` is what `start_memory` returned for this run, with all that earlier steps put into it; an objective
        without one need not take it.
        """
        return Shaped(advantage)

    def terms(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """Named loss terms, each a token map [B, T] that is reduced like the surrogate and minimised.

        `live["raw"]` carries gradient; `live[branch]` does if the branch has `grad=True`. `batch` holds the same rows,
        and in `batch.kept` those of the maps that this objective's `shape` kept.
        """
        return {}

    def metrics(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """Token maps [B, T] to log as masked means under `<objective>/<name>`; called without gradient.

        Names that end in `_max` are logged as the largest value. What `shape` knows it logs itself (`Shaped.logged`).
        """
        return {}


def on_tokens(own: Tensor, like: Tensor) -> Tensor:
    """One number per answer [B] as a token map [B, T] of the type of another, also on padding."""
    return own.to(like).unsqueeze(-1).expand(like.shape)


def shaped_in_turn(
    objectives: Sequence[Objective], memories: Sequence[Any], batch: Batch, now: Now
) -> Batch:
    """The batch after every objective's `shape`, each given the advantage of the one before it."""
    shaped: list[Shaped] = []
    advantage = batch.advantage
    for objective, memory in zip(objectives, memories, strict=True):
        # An objective without a memory has no parameter for one.
        remembered = () if memory is None else (memory,)
        found = objective.shape(advantage, batch, now, *remembered)
        if not isinstance(found, Shaped):
            raise ValueError(
                f"{type(objective).__name__}.shape returned a {type(found).__name__}; it returns "
                "mmrl.types.Shaped(advantage), with what it wants logged."
            )
        shaped.append(found)
        advantage = found.advantage  # the next objective shapes what this one made
        if found.trained is not None:
            batch = replace(batch, mask=batch.mask & found.trained.unsqueeze(-1))
    return replace(batch, advantage=advantage, shaped=shaped)


def judged(objective: Objective, batch: Batch) -> Tensor:
    """Which answers are right, bool [B]. Raises ValueError if that is not known of all."""
    if batch.correct is None:
        raise ValueError(
            f"{type(objective).__name__} reads whether answers are right, but the batch does not say it of all; pay "
            "them with Rewards(correct=...), and leave out what was not judged (the trainer does)."
        )
    return batch.correct


def old_logp(live: LiveScores, batch: Batch) -> Tensor:
    """Log-probs at sampling time [B, T], without gradient: as stored, or the policy's own if there is one update."""
    stored = batch.scores.get("raw")
    return live["raw"].logp.detach() if stored is None else stored.logp


def started(
    objectives: Sequence[Objective], memories: Sequence[Memory | None] | None
) -> list[Memory | None]:
    """One memory per objective: those given, or fresh ones. Raises ValueError for another number of them."""
    if memories is None:
        return [objective.start_memory() for objective in objectives]
    if len(memories) != len(objectives):
        raise ValueError(
            f"Trainer got {len(memories)} memories for {len(objectives)} objectives; give one for each, in their order "
            "(None for an objective without), or leave memories out."
        )
    return list(memories)


def named(
    objectives: Sequence[Objective], memories: Sequence[Memory | None]
) -> list[tuple[str, Memory | None]]:
    """Every objective's memory under its place and class, since two objectives may be of one class."""
    pairs = zip(objectives, memories, strict=True)
    return [
        (f"{place}:{type(objective).__name__}", memory)
        for place, (objective, memory) in enumerate(pairs)
    ]
