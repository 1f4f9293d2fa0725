"""The central records and protocols. Whoever knows these names knows the framework.

Letters: P prompts of a step, G answers per prompt, B = all answers of a batch, T answer tokens (padded right),
L prompt + answer tokens, F frames of one medium, H W pixels, V vocabulary, D hidden size.

One invariant for all token tensors: shape [B, T], column t belongs to answer token t and
`logp[b, t]` = log π(token t | prompt, tokens < t). The shift by one happens once, in `Policy.score`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from mmrl.ground.calls import Call
from mmrl.ground.declared import refuse_misspelt
from mmrl.ground.require import require

Divergence = Literal["forward", "reverse", "symmetric", "js"]
"""Exact divergence of raw against a branch: KL(raw‖branch), KL(branch‖raw), their mean, Jensen–Shannon."""


class Role(IntEnum):
    """Who wrote an answer token. Only POLICY tokens are trained unless an objective says otherwise."""

    # Numbers, because they stand in tensors.
    POLICY = 0
    OBSERVATION = 1
    HINT = 2
    EXPERT = 3


@dataclass(frozen=True)
class Media:
    """One image or clip: uint8 RGB pixels, never a path."""

    frames: Tensor
    """uint8 [F, 3, H, W], RGB, 0 to 255."""
    times: Tensor | None = None
    """float64 [F], seconds from the start of the clip; None for an image."""
    duration: float | None = None
    """Length of the clip in seconds, if known."""

    @property
    def is_video(self) -> bool:
        return self.times is not None


@dataclass(frozen=True)
class Prompt:
    """One question. `messages` is a chat whose contents are strings or lists of parts
    ({"type": "text", "text": ...}, {"type": "image"}, {"type": "video"}); the n-th visual part shows `media[n]`."""

    id: str
    messages: Sequence[Mapping[str, Any]]
    media: tuple[Media, ...] = ()
    answer: Any = None
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of the row, e.g. `evidence`, `problem_type`, `label` (an expert answer)."""


# Checked by its names and not by its ancestry: collections that run in processes without torch cannot derive from it.
@runtime_checkable
class Prompts(Protocol):
    """A lazy collection of prompts: pixels are decoded when an index is read.

    Derive from it for the defaults; a class that has size, __getitem__ and drain of its own need not.
    """

    size: int | None = None
    """Number of rows; None if endless."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        refuse_misspelt(cls, Prompts)

    def __getitem__(self, index: int) -> Prompt:
        """The prompt at this index; the same index always gives the same prompt. Raises `ground.faults.BadRow`."""
        ...

    def drain(self) -> Mapping[str, int]:
        """What was counted since the last call (metric name -> count), for the log; nothing by default."""
        return {}


@dataclass(frozen=True)
class Rollout:
    """One answer. Paying it makes a new record."""

    prompt: Prompt
    group: int
    prompt_ids: Tensor
    """long [P_i]: what the engine really saw."""
    tokens: Tensor
    """long [T_i], end token included when one was sampled."""
    roles: Tensor
    """uint8 [T_i], values of `Role`."""
    text: str
    """What was written, without what tools answered."""
    stop: str
    """"eos", "length" or the stop string."""
    logp: Tensor | None = None
    """float [T_i]: the sampler's log-probs on the support that training uses, or None."""
    temperature: float | Tensor = 1.0
    """What its logits are divided by, in sampling and training: a number, or float64 [T_i], one per token."""
    branch: str = "raw"
    """The view it was sampled under."""
    media: tuple[Media, ...] = ()
    """Media that appear inside the answer (tool results), in the order of their placeholders among `tokens`, which have
    the role OBSERVATION (`model/answer_media.py`)."""
    origin: Literal["policy", "label", "expert", "kept"] = "policy"
    """Who wrote it; "kept": the policy at an earlier step."""
    teacher: str = ""
    """Who wrote an expert's answer, if the row says so."""
    version: int | None = None
    """`Policy.version` of the weights that it was sampled from; None where no engine said so."""
    path: tuple[tuple[int, int], ...] = ()
    """(node, tokens) from the prompt to its end, T_i tokens in all: answers of a group whose paths begin with the same
    nodes have these tokens in common, and they are computed once. Empty: it shares nothing beyond the prompt."""
    calls: tuple[Call, ...] = ()
    """Calls of tools, in their order."""
    unheeded: bool = False
    """True: no token of it is trained, though it counts in its group."""
    valued: tuple[tuple[int, float], ...] = ()
    """(tokens, value) from the prompt on: what a search, or a probe behind each step, finds these runs of tokens worth.
    A search's reach to the end. Empty: neither."""
    top_ids: Tensor | None = None
    """long [T_i, k]: in each place the k tokens that a teacher finds most likely; None without a teacher."""
    top_logp: Tensor | None = None
    """float [T_i, k]: the teacher's log-probs of these, at `temperature`."""
    reward: float | None = None
    parts: Mapping[str, float | None] = field(default_factory=dict)
    """Reward part name -> value; None means not available (never 0)."""
    correct: bool | None = None
    """Is the answer right, by the part that the rewards declare for it (`Rewards(correct=...)`), never by their sum;
    None if they declare none, or if that part is not available."""


@dataclass(frozen=True)
class Scores:
    """What the policy thinks of given tokens under one view."""

    logp: Tensor
    """float [B, T]; 0 on padding."""
    entropy: Tensor | None = None
    """float [B, T]: exact entropy over the vocabulary."""
    divergence: Tensor | None = None
    """float [B, T]: exact divergence between raw and this branch."""
    vocabulary_mean: Tensor | None = None
    """float [B, T]: mean log-prob over all tokens that the tokenizer has."""
    top_logp: Tensor | None = None
    """float [B, T, k]: log-probs of the k most likely tokens, falling; without gradient."""
    top_ids: Tensor | None = None
    """long [B, T, k]: which tokens these are."""
    slot: Tensor | None = None
    """float [B, n]: log-probs of the n ids that were asked for in the place behind the answer, at temperature 1."""
    suffix: Tensor | None = None
    """float [B, S]: log-probs of given tokens behind each answer, at temperature 1; without gradient."""
    suffix_mask: Tensor | None = None
    """bool [B, S]: where they are; padded right."""
    words: Tensor | None = None
    """float [B, n]: log-probs of the words of the prompt's messages, at temperature 1; without gradient."""
    words_mask: Tensor | None = None
    """bool [B, n]: where they are; padded right."""
    states: Tensor | None = None
    """float [B, T, D]: last hidden state of each token after it was read, in the model's format; without gradient."""
    picked: Tensor | None = None
    """float [B, T, k]: log-probs of k given tokens in each place."""

    def __getitem__(self, rows: Tensor) -> Scores:
        """The scores of some rows."""
        return self.each(lambda numbers: numbers[rows])

    def detach(self) -> Scores:
        """The same numbers without a graph."""
        # Views of the same memory: nobody may write into scores in place.
        return self.each(torch.Tensor.detach)

    def each(self, change: Callable[[Tensor], Tensor]) -> Scores:
        """The same change to each of the tensors that are there."""
        return Scores(**{name: change(x) for name, x in self.present().items()})

    def at(self, tokens: Tensor) -> Scores:
        """The same with 0 where `tokens` bool [B, T] is off, whatever stood there; what is of whole rows stays."""
        kept = dict(self.present())
        for name in kept.keys() & PER_TOKEN:
            numbers = kept[name]
            on = tokens.view(*tokens.shape, *[1] * (numbers.ndim - 2))
            # By selection, not by multiplication: 0 · NaN is NaN, in the value and in its gradient.
            kept[name] = torch.where(on, numbers, 0)
        return Scores(**kept)

    def present(self) -> dict[str, Tensor]:
        """Name -> tensor of all that is there."""
        return {name: x for name, x in vars(self).items() if x is not None}


PER_TOKEN = frozenset(
    {
        "logp",
        "entropy",
        "divergence",
        "vocabulary_mean",
        "top_logp",
        "top_ids",
        "states",
        "picked",
    }
)
"""Fields of `Scores` with a number, or several, for each answer token."""


@dataclass(frozen=True)
class Shaped:
    """What an objective's `shape` returns."""

    advantage: Tensor
    """float [B, T]: the new advantage."""
    logged: Mapping[str, float | Tensor] = field(default_factory=dict)
    """Numbers of the step, or token maps [B, T] that are averaged over trained tokens, for the log."""
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    """Token maps [B, T] that the same objective's `terms` and `metrics` read of the rows at hand, as `Batch.kept`."""
    trained: Tensor | None = None
    """bool [B]: answers that stay in the batch; the others leave the mask and all counts. None: all stay."""

    def __getitem__(self, rows: Tensor) -> Shaped:
        """What belongs to some rows."""
        # A number of the step is the same for any of its rows.
        logged = {
            name: value[rows] if isinstance(value, Tensor) else value
            for name, value in self.logged.items()
        }
        kept = {name: value[rows] for name, value in self.kept.items()}
        trained = None if self.trained is None else self.trained[rows]
        return Shaped(self.advantage[rows], logged, kept, trained)


@dataclass(frozen=True)
class Batch:
    """All that is known before the update."""

    rollouts: Sequence[Rollout]
    group: Tensor
    """long [B]: answers of one prompt share a number."""
    tokens: Tensor
    """long [B, T], padded right."""
    mask: Tensor
    """bool [B, T]: tokens that are trained (role POLICY)."""
    reward: Tensor
    """float [B]."""
    advantage: Tensor
    """float [B, T]; zero before the estimator ran."""
    roles: Tensor
    """uint8 [B, T], `Role` of each token; padding is OBSERVATION."""
    scores: Mapping[str, Scores] = field(default_factory=dict)
    """"raw" (the policy at sampling time), "ref", "sampler", and each visual branch."""
    shaped: Sequence[Shaped] = ()
    """What each objective's `shape` returned, in their order; empty before they ran."""
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    """Token maps [B, T] that the objective which is asked now kept in its `shape`; no other objective sees them."""
    correct: Tensor | None = None
    """bool [B]: `Rollout.correct`; None unless it is known of every answer."""

    def __len__(self) -> int:
        return len(self.rollouts)


@dataclass(frozen=True)
class Now:
    """Time, for schedules and seeds."""

    step: int
    progress: float
    """Share of the run that is done when this step ends, in [0, 1]: step n of N is at n/N, as in the official code of
    NoisyRollout and VOGUE, so the last step is at 1."""
    seed: int = 0
    """The run's seed."""

    def following(self) -> Now:
        """The next step of the same run."""
        steps = round(self.step / self.progress) if self.progress else 0
        return Now(self.step + 1, (self.step + 1) / steps if steps else 0.0, self.seed)


@dataclass(frozen=True)
class ViewContext:
    """What a view may look at besides the pixels."""

    prompt: Prompt
    medium: int
    """Which of the prompt's media is rendered."""
    saliency: Tensor | None = None
    """float [h, w] or [F', h, w]: the policy's visual attention on a grid, if the view asked for it."""


class View:
    """A way of seeing: uint8 [F, 3, H, W] in, the same shape and dtype out. All draws come from `rng`. Derive from it.

    The attributes say what the core must know of a view, alone or inside another one. A view that says nothing may
    change any answer, and is refused where the rows say that this matters.
    """

    # True, because a wrong answer that is trained is worse than a view that must be asked again.
    changes_geometry: bool = True
    """May it change the answer to a question about places, sides, angles, or counts near the border?"""
    changes_order: bool = True
    """May it change the answer to a question about what happens when?"""
    shows: Literal["changed", "plain", "nothing"] = "changed"
    """What becomes of the pixels: they are "changed" by `__call__`; they stay as they are ("plain"); or there are none
    ("nothing"): the visual tokens leave the prompt and what answers show, and `__call__` paints the report alone."""
    reads_saliency: bool = False
    """Does it want `ViewContext.saliency`, the policy's own visual attention? That costs a pass of the tower."""
    runs_ahead: bool = False
    """May it run in a worker process, before its step? Then it depends on its arguments alone, and needs no GPU."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        refuse_misspelt(cls, View)

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no __call__.")

    def strength(self, now: Now) -> float | None:
        """How strong the view is now, for the log (`branch/NAME/strength`); None if it has no such number."""
        return None


class AsIs(View):
    """The pixels as they are, for branches that change the question only."""

    changes_geometry = False
    changes_order = False
    shows = "plain"

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        return frames

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsIs)

    def __hash__(self) -> int:
        return hash(AsIs)


def require_view(where: str, view: object) -> None:
    """Raise ValueError unless `view` is a `View`: a bare function does not say what it changes."""
    if not isinstance(view, View):
        raise ValueError(
            f"{where} is {view!r}; it must be a View. Derive a class from mmrl.types.View, or wrap a function of "
            "pixels in mmrl.perception.perturb.Transform, and say what it changes."
        )


@dataclass(frozen=True)
class VisualBranch:
    """A second look at the same answers."""

    view: View = field(default_factory=AsIs)
    grad: bool = False
    """Does gradient flow through this branch? If so it is scored inside the update."""
    share_in_group: bool = True
    """One draw per prompt (True) or one per answer."""
    refresh: bool = False
    """Score again with the current weights at each update (no gradient) instead of once per rollout batch."""
    stage: Literal["original", "resized"] = "original"
    """Does the view see the original pixels or those after the pixel-budget resize?"""
    reworded: Callable[[Prompt], Prompt] | None = None
    """How the question is asked instead, with the same media in the same order; None: as it is."""

    def __post_init__(self) -> None:
        # Here, where the user wrote it, and not deep in a step.
        require_view("VisualBranch.view", self.view)


LONGEST_ANSWER, LARGEST_GROUP, HOTTEST = 1 << 20, 1 << 16, 100.0
"""Beyond these nobody means it: tokens of an answer, answers to a prompt, temperature (all tokens alike)."""


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled."""

    group_size: int = 8
    """Answers per prompt (G)."""
    temperature: float = 1.0
    """Divides the logits, in sampling and in every log-prob. 0 means greedy."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with at least this probability."""
    top_k: int = 0
    """Keep only the k most likely tokens; 0 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the most likely one."""
    max_tokens: int = 512
    """Longest answer in tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer."""

    def __post_init__(self) -> None:
        require(
            self,
            group_size=(1 <= self.group_size <= LARGEST_GROUP, f"1 to {LARGEST_GROUP:,}"),
            temperature=(
                0 <= self.temperature <= HOTTEST,
                f"0 (greedy) or positive, at most {HOTTEST:g}",
            ),
            top_p=(0 < self.top_p <= 1, "in (0, 1]"),
            top_k=(self.top_k >= 0, "0 (off) or positive"),
            min_p=(0 <= self.min_p < 1, "in [0, 1)"),
            max_tokens=(1 <= self.max_tokens <= LONGEST_ANSWER, f"1 to {LONGEST_ANSWER:,}"),
        )
