"""One owner of a picture's life: from the encoded prompt to the gradient that reaches the vision tower.

The tower runs once per distinct picture, branch and version of its weights. Features are keyed by the content of the
pixels and that version. While the weights are unchanged, the same forward serves rollout, scoring and update:

    with policy.vision.step():
        sample, score, loss.backward()

Inside, a feature may keep the tower's graph. Then everyone gets one detached leaf, gradients collect in it over all
parts of the update, and a second backward sends them through the tower once, at the latest when the block is left.
Leaving it also forgets the encoded prompts and frees all graphs, after an error as well.

Outside a step everything works, without sharing graphs: `no_update` marks answers that nobody learns from.

What is kept when not all features fit: the passes of a step read the same pictures in the same order, and in such a
circle whoever forgets the oldest forgets each picture just before it is asked for. So a step (or a `no_update` block
outside one, or a single call outside both) is a *turn*: pictures of earlier turns make room for those of this one, the
latest first, and within a turn who came first stays. With room for K of N pictures each pass then runs the tower over
N - K of them, the least that is possible. What the tower reads a second time in one turn, with the same weights, is
counted as `vision/recomputed`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mmrl.model.gradients import collect_in_fp32
from mmrl.model.vision_tower import FROZEN, VisionTower, VisualFeatures

if TYPE_CHECKING:
    from mmrl.model.budget import Budget
    from mmrl.model.encoded import Encoded
    from mmrl.model.processing import Patches
    from mmrl.types import Now, Prompt, VisualBranch

Key = tuple[str, str]
"""(version of the weights, content of the pixels)."""


@dataclass
class _Entry:
    """Features of one medium."""

    leaf: VisualFeatures
    """What is given out: cut off from the tower, so that gradients stop and collect here."""
    graph: VisualFeatures | None
    """The tower's own outputs, while its graph is held."""
    run: int
    """Which run of the tower made it: media of one run share a graph, which goes as a whole."""
    turn: int
    """The last turn that asked for it."""
    place: int
    """When it came into that turn, counted up."""


@dataclass(frozen=True)
class Drawn:
    """What branches show of one prompt at one step."""

    now: Now
    branches: Mapping[str, VisualBranch]
    shown: Mapping[str, tuple[Patches, ...]]
    """By the name of the branch."""


class VisionCache:
    """Remembers encoded prompts and features, keeps graphs for an update, and finishes its backward."""

    def __init__(
        self,
        tower: VisionTower,
        encode: Callable[[Prompt], Encoded],
        *,
        limit: int | None = None,
        graph_limit: int | None = None,
        budget: Callable[[], Budget] | None = None,
        counters: Counter[str] | None = None,
    ) -> None:
        self.tower = tower
        self.limit = limit
        """Bytes of features that are remembered; None: what the budget says, all of them without one."""
        self.graph_limit = graph_limit
        """Bytes that graphs of a rollout may take; beyond them its update runs the tower again. None: as above."""
        self._budget = budget
        self.counters: Counter[str] = Counter() if counters is None else counters
        self._encode = encode
        self._entries: dict[Key, _Entry] = {}
        self._ran: set[Key] = set()
        """What the tower has read in this turn."""
        self._turn = self._runs = self._places = self._blocks = 0
        self._encoded: dict[str, tuple[Prompt, Encoded]] = {}
        self._drawn: dict[str, tuple[Prompt, Drawn]] = {}
        self._answered: dict[int, tuple[Prompt, set[str]]] = {}
        """By the prompt as an object, which is kept alive: contents that answers to it show."""
        self._saliency: dict[Key, Tensor] = {}
        self._in_step = False
        self._shares_graphs = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """One rollout and the updates that learn from it. Leaving it finishes the backward and frees what it held.

        Raises RuntimeError inside another step.
        """
        if self._in_step:
            raise RuntimeError(
                "A step is open already; leave its `with` block before the next."
            )
        self._in_step, self._shares_graphs = True, self.tower.trains
        try:
            with self._one_turn():
                yield
                self.backward()
        except BaseException:
            self.clear()  # a step that broke off may have changed weights without saying so
            raise
        finally:
            self._in_step = self._shares_graphs = False
            self._drop_graphs()
            self._forget_prompts()

    @contextmanager
    def no_update(self) -> Iterator[None]:
        """Inside, no graph is kept, for no update will use it; leaving forgets the prompts that were encoded inside."""
        shared, encoded, saliency = self._shares_graphs, self._encoded, self._saliency
        self._shares_graphs = False
        if self._in_step:  # the step's own prompts live on; outside one nobody waits for them
            self._encoded, self._saliency = dict(encoded), dict(saliency)
        try:
            with self._one_turn():
                yield
        finally:
            self._shares_graphs = shared
            if self._in_step:
                self._encoded, self._saliency = encoded, saliency
            else:
                self._forget_prompts()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """As `no_update`; leaving it also forgets the features that were made inside, and no others.

        Whoever comes next runs the tower over the same batches of pictures as if nothing had been here: equal bits.
        """
        known, ran, turn = self._entries, self._ran, self._turn
        # Copies, for who is asked for inside would otherwise stay longer afterwards.
        self._entries = {key: replace(entry) for key, entry in known.items()}
        try:
            with self.no_update():
                yield
        finally:
            self._entries, self._ran, self._turn = known, ran, turn

    def encoded(self, prompt: Prompt) -> Encoded:
        """The prompt as the model reads it, made once per step. Raises `BadRow`."""
        known = self._encoded.get(prompt.id)
        # Two prompts may carry one id (a row that is read again after a change), so the object decides.
        if known is None or known[0] is not prompt:
            known = (prompt, self._encode(prompt))
            self._encoded[prompt.id] = known
        return known[1]

    def remember(self, prompt: Prompt, encoded: Encoded, drawn: Drawn | None = None) -> None:
        """Take over what a prompt was encoded to elsewhere, and views of it, until the step ends."""
        self._encoded[prompt.id] = (prompt, encoded)
        if drawn is not None:
            self._drawn[prompt.id] = (prompt, drawn)

    def drawn(
        self, prompt: Prompt, name: str, branch: VisualBranch, now: Now
    ) -> tuple[Patches, ...] | None:
        """What a branch shows of a prompt now, if that was drawn elsewhere for this very step."""
        owner, known = self._drawn.get(prompt.id, (None, None))
        if known is None or owner is not prompt or known.now != now:
            return None
        shown = known.shown.get(name)
        return None if shown is None or known.branches[name] is not branch else shown

    def answered(self, prompt: Prompt, media: Sequence[Patches]) -> None:
        """An answer to this prompt shows these: `forget` forgets them with the prompt."""
        _, known = self._answered.setdefault(id(prompt), (prompt, set()))
        known.update(medium.key for medium in media)

    def forget(self, prompts: Sequence[Prompt]) -> None:
        """Nobody asks for these prompts again: their encodings go at once, and with them the pictures' features.

        With them go pictures that answers to them show. Those that another prompt of the step or an answer to it shows
        stay, and features of weights that never change do, as far as they fit: another epoch may ask for them.
        """
        gone = {id(prompt) for prompt in prompts}
        dropped: set[str] = set()
        kept: set[str] = set()
        for name, (prompt, encoded) in list(self._encoded.items()):
            own = {medium.key for medium in encoded.visual}
            if id(prompt) in gone:
                dropped |= own
                del self._encoded[name]
                self._drawn.pop(name, None)
            else:
                kept |= own
        for number, (_, shown) in list(self._answered.items()):
            if number in gone:
                dropped |= shown
                del self._answered[number]
            else:
                kept |= shown
        leave = {key for key in self._entries if key[0] != FROZEN and key[1] in dropped - kept}
        # A graph goes as a whole, so who shares a run with a picture that stays waits with it.
        waiting = self._runs_of(self._entries.keys() - leave)
        for key in leave:
            entry = self._entries[key]
            if entry.graph is None or entry.run not in waiting:
                del self._entries[key]

    def saliency(self, medium: Patches) -> Tensor:
        """Attention that each visual token receives in the tower, float32 [F', h, w]; computed once per step."""
        key = (self.tower.version, medium.key)
        if key not in self._saliency:
            self._saliency[key] = self.tower.saliency(medium)
        return self._saliency[key]

    def features(self, media: Sequence[Patches], grad: bool = False) -> list[VisualFeatures]:
        """Features of each medium; the tower runs once for all that are not known yet.

        With `grad` the tensors are leaves whose gradients `backward` passes on to the tower, if it learns.
        """
        grad = grad and self.tower.trains
        version = self.tower.version
        if not self._blocks:
            self._begin_turn()
        self._run_tower(self._missing(media, version, grad), version, grad)
        out: list[VisualFeatures] = []
        for medium in media:
            entry = self._entries[version, medium.key]
            self._ask_for(entry)
            leaf = entry.leaf
            # Without `grad` nobody may add to the gradient that collects in a leaf.
            out.append(leaf if grad else _cut(leaf, needs_grad=False))
        self._forget_surplus()
        return out

    def sampling_features(self, media: Sequence[Patches]) -> list[VisualFeatures]:
        """Features for a rollout. Inside a step the graph is kept for the update, if the tower learns and it fits."""
        return self.features(media, grad=self._keeps_graphs_of(media))

    def end_part(self, following: Sequence[Patches] = ()) -> None:
        """Call after the backward of one part of an update: its graphs go now, unless other parts share them.

        `following`: media that the next part shows as well, so that their graphs wait for it.
        """
        if not self._shares_graphs:
            version = self.tower.version
            self.backward(self._runs_of({(version, medium.key) for medium in following}))

    def backward(self, waiting: Container[int] = ()) -> None:
        """Send the collected gradients through the tower and drop its graphs, but those of the runs `waiting`."""
        outputs: list[Tensor] = []
        grads: list[Tensor] = []
        for entry in self._entries.values():
            if entry.graph is None or entry.run in waiting:
                continue
            for out, leaf in zip(entry.graph.tensors(), entry.leaf.tensors(), strict=True):
                if leaf.grad is not None:
                    outputs.append(out)
                    grads.append(leaf.grad.to(out.dtype))
        # One call for all: media that went through the tower together share one graph, which a first call would free.
        if outputs:
            torch.autograd.backward(outputs, grads)
        self._drop_graphs(waiting)

    def stepped(self) -> None:
        """The optimizer has changed the weights: old features are forgotten, and the rollout's graphs with them."""
        # Only the first update has the weights of the rollout; the graphs of later ones serve one part each.
        self._shares_graphs = False
        self.clear(keep=None if self.tower.trains else FROZEN)

    def clear(self, keep: str | None = None) -> None:
        """Forget all features but those of one version of the weights."""
        self._entries = {k: e for k, e in self._entries.items() if k[0] == keep}

    def rows_in_graphs(self, besides: Container[str] = ()) -> int:
        """Visual tokens whose graph is held, not counting media with the keys `besides`."""
        rows = 0
        for (_, content), entry in self._entries.items():
            if entry.graph is not None and content not in besides:
                rows += len(entry.leaf.merged)
        return rows

    def _missing(self, media: Sequence[Patches], version: str, grad: bool) -> list[Patches]:
        """Each distinct medium that the tower must read; features without a graph are no use to an update."""
        missing: dict[str, Patches] = {}
        for medium in media:
            entry = self._entries.get((version, medium.key))
            if entry is None or (grad and entry.graph is None):
                missing.setdefault(medium.key, medium)
        return list(missing.values())

    def _run_tower(self, media: Sequence[Patches], version: str, grad: bool) -> None:
        if not media:
            return
        # Sampling runs without gradient; the graph for its update is made here all the same.
        with torch.set_grad_enabled(grad):
            found = self.tower(media)
        keys = {(version, medium.key) for medium in media}
        if again := len(keys & self._ran):
            self.counters["vision/recomputed"] += again
        self._ran |= keys
        self._runs += 1
        for medium, features in zip(media, found, strict=True):
            # Asked of the output: in a half-frozen tower it may depend on nothing that learns.
            needs_grad = grad and features.merged.requires_grad
            leaf, graph = _cut(features, needs_grad), features if needs_grad else None
            old = self._entries.get((version, medium.key))
            # One that was there keeps its place: a new graph does not make it a newcomer.
            turn, place = (-1, 0) if old is None else (old.turn, old.place)
            self._entries[version, medium.key] = _Entry(leaf, graph, self._runs, turn, place)

    def _keeps_graphs_of(self, media: Sequence[Patches]) -> bool:
        """Shall the tower keep its graph over these media? Ends the sharing of this step when it would not fit."""
        if not (self._shares_graphs and self.tower.trains):
            return False
        new = {medium.key: len(medium) for medium in media}
        # Graphs of all chunks of a rollout are alive together, so the earlier ones count too.
        held = self.rows_in_graphs(besides=new) * self.tower.merge**2
        if self.tower.graph_bytes(sum(new.values()) + held) > self._most("graphs"):
            # All or nothing: with half of the graphs the update would run the tower for the rest in each part.
            self._shares_graphs = False
            self._drop_graphs()
        return self._shares_graphs

    def _runs_of(self, keys: Container[Key]) -> set[int]:
        """The runs of the tower whose graphs hold any of these."""
        held = ((key, entry) for key, entry in self._entries.items() if entry.graph is not None)
        return {entry.run for key, entry in held if key in keys}

    def _drop_graphs(self, waiting: Container[int] = ()) -> None:
        """Free what the tower keeps for a backward; the features stay."""
        for entry in self._entries.values():
            if entry.run in waiting:
                continue
            entry.graph = None
            for tensor in entry.leaf.tensors():
                tensor.grad = None

    def _forget_prompts(self) -> None:
        self._encoded = {}
        self._drawn = {}
        self._answered = {}
        self._saliency = {}

    def _most(self, kind: Literal["features", "graphs"]) -> float:
        """Bytes that may be held of features or graphs."""
        own = self.limit if kind == "features" else self.graph_limit
        if own is not None or self._budget is None:
            return math.inf if own is None else own
        # Asked each time: a budget is decided when work begins, not when the policy is made.
        return getattr(self._budget(), kind)

    @contextmanager
    def _one_turn(self) -> Iterator[None]:
        """A block whose passes read the same pictures; inside another one it is a part of that."""
        if not self._blocks:
            self._begin_turn()
        self._blocks += 1
        try:
            yield
        finally:
            self._blocks -= 1

    def _begin_turn(self) -> None:
        self._turn += 1
        self._ran = set()

    def _ask_for(self, entry: _Entry) -> None:
        """This turn has use for it. What is made aside for nobody's update counts as of the turn before."""
        passing = self._in_step and self._blocks > 1
        turn = self._turn - passing
        if entry.turn < turn:
            self._places += 1
            entry.turn, entry.place = turn, self._places

    def _forget_surplus(self) -> None:
        """Keep to the limit: earlier turns go first, of them the latest; within this one who came last."""
        size, most = (
            sum(_bytes(entry) for entry in self._entries.values()),
            self._most("features"),
        )
        if size <= most:
            return

        def staying(key: Key) -> tuple[bool, int, int]:
            entry = self._entries[key]
            return entry.turn == self._turn, -entry.turn, -entry.place

        for key in sorted(self._entries, key=staying):
            if size <= most:
                return
            if self._entries[key].graph is None:  # a graph is waited for by a backward
                size -= _bytes(self._entries.pop(key))


def _cut(features: VisualFeatures, needs_grad: bool) -> VisualFeatures:
    """The same numbers, detached from whatever made them."""
    merged, *deep = (x.detach().requires_grad_(needs_grad) for x in features.tensors())
    collect_in_fp32((merged, *deep))
    return VisualFeatures(merged, tuple(deep))


def _bytes(entry: _Entry) -> int:
    return sum(x.numel() * x.element_size() for x in entry.leaf.tensors())
