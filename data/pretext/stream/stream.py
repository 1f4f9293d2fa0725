"""The stream: sample number `index` of a preset on a source, without end.

    sample(index) = f(source, preset, seed, index), for given levels and weights

Nothing else enters: not the rank, not the worker, not what was asked before. Rank r of W takes the indices ≡ r mod W;
a killed run continues at any index. Media are taken in an order that is shuffled in blocks of `BLOCK` (so a huge
folder is read no further than needed); `REUSE` samples, `SPREAD` indices apart, share one medium, which is decoded
once. A medium that is broken, belongs to the other split, or is refused by the task gives way to the next one in the
same order; the number of such hops is in `meta`, each is counted by reason, and an index for which `HOPS` media fail
is passed over and counted. Tasks that draw everything themselves are split by what they ask. If `GIVE_UP` indices in a
row fail, the stream stops with the reasons.

A task takes media of the first of its kinds that the source has; image tasks fall back to stills of clips. Tasks
without fitting media are left out and named in `left_out`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, islice
from itertools import count as count_from
from typing import Any

from mmrl.data.pretext.catalogue import find
from mmrl.data.pretext.contract import (
    Array,
    ArrayClip,
    Draft,
    Kind,
    Knobs,
    Medium,
    Reject,
    Sample,
    Task,
)
from mmrl.data.pretext.difficulty import DefaultKnobs, LevelSchedule
from mmrl.data.pretext.mixture import BaseWeights, Weights
from mmrl.data.pretext.presets import Ingredient, TaskMix
from mmrl.data.pretext.stream.media import still_of
from mmrl.data.pretext.stream.samples import draft_identity, make, replay
from mmrl.data.pretext.stream.sources import OtherSide, Source, SplitSource
from mmrl.data.pretext.surface import Surface
from mmrl.ground.faults import BadMedia
from mmrl.ground.printable import logger
from mmrl.ground.quarantine import Quarantine
from mmrl.ground.seeds import philox

log = logger(__name__)

BLOCK = 4096
"""Media shuffled together."""
REUSE, SPREAD = 3, 16
"""Samples per decoded medium, and how many indices lie between them."""
HOPS, OTHER_SIDE_HOPS = 12, 400
"""Media tried per index: refused or broken ones, and ones of the other split."""
GIVE_UP = 64
"""Indices in a row without a sample before the stream stops."""
CACHE_BYTES = 48 << 20
"""Decoded media kept per worker."""


@dataclass(frozen=True)
class Fit:
    """An ingredient with its task and the kind of media it takes from this source."""

    ingredient: Ingredient
    task: Task
    kind: Kind
    still: bool = False
    """Take stills of clips."""


class SampleStream:
    """Samples of a preset on a source. See the module's first lines."""

    def __init__(
        self,
        source: Source,
        preset: TaskMix,
        seed: int = 0,
        *,
        surface: Surface | None = None,
        levels: LevelSchedule = DefaultKnobs(),
        weights: Weights = BaseWeights(),
        quarantine: Quarantine | None = None,
    ) -> None:
        self.source, self.preset, self.seed = source, preset, seed
        self.surface, self.levels, self.weights = surface or preset.surface, levels, weights
        self.quarantine = quarantine or Quarantine()
        self.progress = 0.0
        """Share of the run that is done; scheduled levels read it."""
        self.counts: Counter[str] = Counter()
        """made/<task>, refused/<task>/<reason>, skipped/<reason>, none/<task>."""
        self.left_out: list[str] = []
        self._fits = self._fitting()
        self._cache: OrderedDict[tuple[Any, ...], Medium] = OrderedDict()
        self._orders: OrderedDict[tuple[Kind, int, int], Array] = OrderedDict()
        self._bad: dict[tuple[Kind, int], tuple[str, str, str]] = {}
        """What is wrong with a medium. Not the error itself: its traceback would keep the file's bytes."""

    def sample(self, index: int) -> Sample | None:
        """Sample number `index`, or None if every medium tried for it was refused."""
        fit = self._choose(index)
        knobs = self.knobs(fit)
        hop = other = 0
        # Media of the other split are counted apart: with a held-out share of 10 % most media are passed over.
        while hop < HOPS and other < OTHER_SIDE_HOPS:
            try:
                media, places = self._media(fit, knobs, index, hop + other)
            except OtherSide:
                other += 1
                continue
            except BadMedia as error:
                self._skip(error)
                hop += 1
                continue
            found = self._made(fit, media, knobs, index)
            if isinstance(found, Sample):
                self.counts[f"made/{fit.task.name}"] += 1
                origin = {
                    "name": self.source.name,
                    "kind": fit.kind,
                    "still": fit.still,
                    "positions": places,
                }
                return replace(found, meta={**found.meta, "source": origin, "hops": hop})
            self.counts[f"refused/{fit.task.name}/{found.reason}"] += 1
            hop += 1
        self.counts[f"none/{fit.task.name}"] += 1
        return None

    def _skip(self, error: BadMedia) -> None:
        self.quarantine.add(error)
        self.counts[f"skipped/{error.reason}"] += 1

    def iterate(
        self, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[int, Sample]]:
        """(index, sample) for the indices ≥ `start` that are ≡ `rank` mod `world`. Raises ValueError when stuck."""
        failed = 0
        for index in count_from(start + (rank - start) % world, world):
            sample = self.sample(index)
            if sample is not None:
                failed = 0
                yield index, sample
                continue
            failed += 1
            if failed >= GIVE_UP:
                raise ValueError(self._stuck())

    def first(self, count: int) -> Iterator[Sample]:
        """The first `count` samples. Raises ValueError when stuck."""
        return (sample for _, sample in islice(self.iterate(), count))

    def replay(self, sample: Sample) -> Sample:
        """The identical sample from its recipe and this source."""
        again = replay(find(sample.task), self._media_of(sample), sample.recipe, sample.surface)
        return replace(again, meta=sample.meta)

    def pictures(self, sample: Sample) -> list[Array]:
        """A still of each medium that a sample of this stream was made of."""
        pictures = []
        for medium in self._media_of(sample):
            still = medium if medium.image is not None else still_of(medium)
            pictures.append(still.picture())
        return pictures

    def _media_of(self, sample: Sample) -> list[Medium]:
        origin, avoid = sample.meta["source"], find(sample.task).avoid
        kind, still = origin["kind"], origin["still"]
        return [self._medium(kind, place, avoid, still) for place in origin["positions"]]

    def knobs(self, fit: Fit) -> Knobs:
        """Knobs of a task now: its level's (or its defaults), with the preset's settings on top."""
        level = self.levels(fit.task.name, self.progress)
        base = fit.task.defaults() if level is None else fit.task.at_level(level)
        return fit.task.complete(base | dict(fit.ingredient.knobs))

    def shares(self) -> list[float]:
        """Share of each fitting ingredient now; they sum to 1."""
        base: dict[str, float] = {}
        for fit in self._fits:
            base[fit.task.name] = base.get(fit.task.name, 0.0) + fit.ingredient.weight
        now = self.weights(base)
        shares = []
        for fit in self._fits:
            # Weights move per task; its ingredients share them as they stand to one another.
            name = fit.task.name
            shares.append(now[name] * fit.ingredient.weight / base[name])
        return shares

    @property
    def fits(self) -> Sequence[Fit]:
        """What this stream asks."""
        return self._fits

    def acceptance(self) -> dict[str, float]:
        """Share of media accepted per task; below 0.2 a source does not suit the task."""
        shares = {}
        for name in dict.fromkeys(fit.task.name for fit in self._fits):
            made = self.counts[f"made/{name}"]
            refusals = [key for key in self.counts if key.startswith(f"refused/{name}/")]
            tried = made + sum(self.counts[key] for key in refusals)
            if tried:
                shares[name] = made / tried
        return shares

    def _choose(self, index: int) -> Fit:
        edges = list(accumulate(self.shares()))
        draw = float(philox(self.seed, "task", index).random()) * edges[-1]
        return self._fits[min(bisect_right(edges, draw), len(edges) - 1)]

    def _made(
        self, fit: Fit, media: Sequence[Medium], knobs: Knobs, index: int
    ) -> Sample | Reject:
        # A source that is smaller than what the task needs gives one medium several times.
        if len({medium.id for medium in media}) < len(media):
            return Reject("too-few-media")
        wanted = partial(self._on_this_side, fit.task)
        # Media have their side already; what is drawn from nothing would be the same question on both.
        sided = not media and isinstance(self.source, SplitSource)
        try:
            return make(
                fit.task,
                media,
                knobs,
                self.surface,
                self.seed,
                index,
                wanted if sided else None,
            )
        except BadMedia as error:  # a clip that breaks while its frames are read
            self._skip(error)
            return Reject("media-broke")

    def _on_this_side(self, task: Task, draft: Draft) -> bool:
        assert isinstance(self.source, SplitSource)
        return self.source.has(draft_identity(task, draft))

    def _media(
        self, fit: Fit, knobs: Knobs, index: int, hop: int
    ) -> tuple[list[Medium], list[int]]:
        count = fit.task.media_count(knobs)
        if not count:
            return [], []
        # Indices i, i + SPREAD, … share a medium: near enough to find it decoded, far enough not to meet in one batch.
        round_of_media, place = index // (SPREAD * REUSE), index % SPREAD
        first = round_of_media * SPREAD + place + hop
        places = [self._position(fit.kind, first + offset) for offset in range(count)]
        avoid = fit.task.avoid
        media = [self._medium(fit.kind, place, avoid, fit.still) for place in places]
        return media, places

    def _position(self, kind: Kind, number: int) -> int:
        """Where the `number`-th medium of the shuffled order stands in the source."""
        # `known` looks no further into a huge folder than it must; once the number exceeds it, it is the whole.
        total = self.source.known(kind, number + 1)
        epoch, place = divmod(number, total) if number >= total else (0, number)
        block = place // BLOCK
        start = block * BLOCK
        key = (kind, epoch, block)
        if key not in self._orders:
            size = min(BLOCK, self.source.known(kind, start + BLOCK) - start)
            shuffle = philox(self.seed, "order", kind, epoch, block)
            self._orders[key] = shuffle.permutation(size)
            while len(self._orders) > 8:
                self._orders.popitem(last=False)
        return start + int(self._orders[key][place - start])

    def _medium(self, kind: Kind, position: int, avoid: Sequence[str], still: bool) -> Medium:
        if (kind, position) in self._bad:
            raise BadMedia(*self._bad[kind, position])
        key = (kind, position, tuple(avoid), still)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        try:
            medium = self.source.open(kind, position, avoid).decode()
            medium = still_of(medium) if still else medium
        except OtherSide:  # nothing is wrong with it
            raise
        except BadMedia as error:
            self._bad[kind, position] = (error.where, error.reason, error.detail)
            raise
        self._cache[key] = medium
        # Weighed anew each time: a clip grows while its frames are read. The newest one is never dropped.
        while len(self._cache) > 1 and sum(map(_weight, self._cache.values())) > CACHE_BYTES:
            self._cache.popitem(last=False)
        return medium

    def _fitting(self) -> list[Fit]:
        fits = []
        for ingredient in self.preset.ingredients:
            task = find(ingredient.task)
            task.complete(
                ingredient.knobs
            )  # refuses wrong settings now rather than at the first sample
            kind = self._kind_for(task)
            if kind is not None:
                fits.append(Fit(ingredient, task, kind))
            elif "image" in task.kinds and self.source.known("video", 1):
                fits.append(Fit(ingredient, task, "video", still=True))
            elif ingredient.task not in self.left_out:
                self.left_out.append(ingredient.task)
        if not fits:
            tasks = [find(part.task) for part in self.preset.ingredients]
            wanted = sorted({kind for task in tasks for kind in task.kinds})
            raise ValueError(
                f"{self.source.name} holds no media for preset {self.preset.name!r}, which needs {wanted}; "
                "check the folder, or take another preset."
            )
        if self.left_out:
            left_out = ", ".join(self.left_out)
            log.warning("left out for lack of media in %s: %s", self.source.name, left_out)
        return fits

    def _kind_for(self, task: Task) -> Kind | None:
        """The first of the task's kinds that the source has."""
        for kind in task.kinds:
            if kind == "none" or self.source.known(kind, 1):
                return kind
        return None

    def _stuck(self) -> str:
        reasons: Counter[str] = Counter()
        for key, count in self.counts.items():
            if key.startswith(("refused", "skipped")):
                reasons[key] = count
        top = ", ".join(f"{key} ({count})" for key, count in reasons.most_common(6))
        return (
            f"{GIVE_UP} indices in a row gave no sample of preset {self.preset.name!r} on {self.source.name}. "
            f"Most frequent: {top or 'no media of this split'}. Use larger or other media, or easier knobs."
        )


def _weight(medium: Medium) -> int:
    """Bytes of decoded pixels that a medium holds now."""
    if medium.image is not None:
        return medium.image.nbytes + (0 if medium.depth is None else medium.depth.nbytes)
    if isinstance(medium.clip, ArrayClip):
        return medium.clip.frames.nbytes
    # Clips that keep what they decoded say how much that is.
    return getattr(medium.clip, "held", 0)
