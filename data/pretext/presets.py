"""Named mixes of tasks. A preset is a list of ingredients: task, weight, knobs.

Sources: videossr-30k from the files named in the training script (four perturbations in equal parts, jigsaw of six,
counting; 12 : 12 : 6); visual-jigsaw from paper and code (3×3 tiles, six clips, six depths); puzzlecraft from section 2
(grids of two to nine tiles with both sides at most three, four angles, 3/5/7 decoys; 15 : 15 : 10). Where a paper
leaves a leak open (no gap between tiles), the `-paper` preset keeps it and the plain one closes it.
The evaluation preset follows VIUBench's composition. NP-Engine's sizes are those of its generators' scripts (easy,
medium, hard), as far as the tasks reach: knapsacks of 50 items at most, bisections of an even number of nodes, and as
many subsets as elements. MR-RLVR's and HopChain's mixes are built after the descriptions of the papers, whose data is
not public. `mmrl-mix-v1` is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmrl.data.pretext.contract import KnobValue
from mmrl.data.pretext.surface import Surface


@dataclass(frozen=True)
class Ingredient:
    """One task in a mix."""

    task: str
    weight: float = 1.0
    knobs: Mapping[str, KnobValue] = field(default_factory=dict)
    """Fixed settings; the level moves only the others."""
    intended: tuple[str, ...] = ()
    """Auditors that may beat chance at these knobs, besides those the task declares."""


@dataclass(frozen=True)
class TaskMix:
    """A mix under a name."""

    name: str
    ingredients: tuple[Ingredient, ...]
    surface: Surface = field(default_factory=Surface)
    note: str = ""
    stages: tuple[str, ...] = ()
    """Names of mixes, from easy to hard, that together are this one."""

    def __post_init__(self) -> None:
        if not self.ingredients or any(part.weight <= 0 for part in self.ingredients):
            raise ValueError(
                f"preset {self.name!r} needs at least one ingredient and positive weights only."
            )


THINK, BOX = Surface(thinking="think"), Surface(tags="boxed", thinking="think")
PLAIN = Surface(tags="plain")
GRIDS = (
    *((1, 2), (2, 1)),
    *((1, 3), (3, 1)),
    *((2, 2), (2, 3), (3, 2), (3, 3)),
)
"""All grids of two to nine tiles with both sides at most three."""
TOUCHING: Mapping[str, KnobValue] = {"gap": 0.0, "jitter": False}
"""Tiles as in the papers."""


SCENES = (
    *("hop-chain", "hop-chain-photo", "scene-count", "scene-compare"),
    *("clock", "chart-reading", "table-reading", "redraw"),
)
"""Drawn scenes with programs as oracles, and programs over photographs."""
LOGIC = (
    "maze-exit",
    "np-tsp",
    "np-colouring",
    "np-clique",
    "np-independent-set",
    "np-set-cover",
    "np-knapsack",
)
"""Drawn puzzles with exact solvers."""
FEW = ("boundary", "histogram")
"""With up to six pieces, or with tiles that touch as in the papers, continuity of brightness is what there is to see:
declared, so that it is shown and does not fail the audit."""
HALVES = ("sharpness",)
"""Of two halves the sky is the smoother one: this, too, is what there is to see."""


def _jigsaws(weight: float, extra: Mapping[str, KnobValue]) -> tuple[Ingredient, ...]:
    parts = []
    for rows, columns in GRIDS:
        intended: tuple[str, ...] = ()
        if rows * columns <= 6 or extra.get("gap") == 0.0:
            intended += FEW
        if rows * columns == 2:
            intended += HALVES
        knobs = {"rows": rows, "columns": columns, "gamma": 1.0, **extra}
        parts.append(Ingredient("jigsaw", weight / len(GRIDS), knobs, intended))
    return tuple(parts)


def _patchfits(weight: float) -> tuple[Ingredient, ...]:
    parts = [Ingredient("patchfit", weight / 3, {"decoys": decoys}) for decoys in (3, 5, 7)]
    return tuple(parts)


def _anomalies(weight: float, kinds: tuple[str, ...]) -> tuple[Ingredient, ...]:
    parts = []
    for kind in kinds:
        # As in the paper: 48 frames and no harmless jumps.
        knobs: dict[str, KnobValue] = {"kind": kind, "frames": 48, "decoys": 0}
        parts.append(Ingredient("anomaly-grounding", weight / len(kinds), knobs))
    return tuple(parts)


NP_SIZES: Mapping[str, tuple[tuple[int, int], ...]] = {
    "np-tsp": ((10, 20), (20, 30), (35, 45)),
    "np-longest-cycle": ((15, 20), (20, 30), (30, 40)),
    "np-colouring": ((8, 12), (15, 22), (25, 32)),
    "np-clique": ((4, 8), (8, 12), (12, 16)),
    "np-independent-set": ((12, 20), (20, 30), (30, 40)),
    "np-bisection": ((42, 42), (44, 44), (46, 46)),
    "np-meetings": ((4, 5), (5, 6), (6, 7)),
    "np-set-cover": ((10, 20), (20, 25), (25, 30)),
    "np-subset-sum": ((5, 10), (8, 12), (12, 15)),
    "np-knapsack": ((14, 25), (23, 37), (35, 50)),
}
"""Task -> smallest and largest size of easy, medium and hard instances, as NP-Engine draws them for training."""
LEVELS = ("association", "intervention", "counterfactual")
"""Kinds of causal questions."""
NP_LEVELS = ("np-engine-easy", "np-engine-medium", "np-engine-hard")


def _np_words(level: int) -> tuple[Ingredient, ...]:
    """The ten problems in words, each in three sizes of a level (0 easy, 1 medium, 2 hard)."""
    parts = []
    for task, levels in NP_SIZES.items():
        least, most = levels[level]
        sizes = sorted({least, (least + most) // 2, most})
        for size in sizes:
            knobs: dict[str, KnobValue] = {"show": "text", "size": size}
            parts.append(Ingredient(task, 1 / len(sizes), knobs))
    return tuple(parts)


def _np_pictures(sizes: tuple[int, ...]) -> tuple[Ingredient, ...]:
    """The ten problems as pictures; meetings have two fewer, because their plans are wide."""
    parts = []
    for task in NP_SIZES:
        for size in sizes:
            shown = size - 2 if task == "np-meetings" else size
            parts.append(Ingredient(task, 1 / len(sizes), {"show": "picture", "size": shown}))
    return tuple(parts)


def _hop_chains(part: str) -> tuple[Ingredient, ...]:
    """Chains through three to six objects, drawn and on photographs; `part` is how much of each is asked."""
    parts = []
    for instances, objects in ((3, 8), (4, 8), (5, 10), (6, 12)):
        # Besides the links between them, a chain has the selection of the first object and the reading of the last.
        knobs: dict[str, KnobValue] = {"hops": instances + 1, "objects": objects, "part": part}
        parts += [Ingredient(task, 1.0, knobs) for task in ("hop-chain", "hop-chain-photo")]
    return tuple(parts)


def _brick_stacks(symbols: bool) -> tuple[Ingredient, ...]:
    """Stacks of three to eight bricks beside another one, in words and with the picture."""
    parts = []
    for bricks, others in ((3, 2), (4, 2), (5, 3), (6, 3), (8, 4)):
        for show in ("text", "picture", "both"):
            knobs: dict[str, KnobValue] = {"bricks": bricks, "others": others, "show": show}
            parts.append(Ingredient("brick-stack", 1.0, {**knobs, "symbols": symbols}))
    return tuple(parts)


def _causal_queries(levels: tuple[str, ...], show: str) -> tuple[Ingredient, ...]:
    """Models of ten variables, as in the paper, in equal parts of the levels."""
    return tuple(
        Ingredient("causal-query", 1.0, {"variables": 10, "level": level, "show": show})
        for level in levels
    )


_ROTATION = Ingredient("rotation", 10.0, {"step": 90})
_SIX_CLIPS = {"clips": 6, "per_clip": 8, "trim": 0.0, "reward": "footrule"}

PRESETS: tuple[TaskMix, ...] = (
    TaskMix(
        "mmrl-mix-v1",
        (
            Ingredient("jigsaw", 2.0),
            Ingredient("rotation"),
            Ingredient("patchfit"),
            Ingredient("odd-tile"),
            Ingredient("differences"),
            Ingredient("relative-position"),
            Ingredient("crop-location"),
            Ingredient("mosaic"),
            Ingredient("edit-program"),
            Ingredient("correspondence"),
            Ingredient("camera-motion"),
            Ingredient("overlay-count"),
            Ingredient("quality-order", 0.5),
            Ingredient("depth-order"),
            Ingredient("temporal-jigsaw", 2.0),
            Ingredient("anomaly-grounding", 2.0),
            Ingredient("needle-clip"),
            Ingredient("frame-time"),
            Ingredient("clip-insertion"),
            Ingredient("arrow-of-time"),
            Ingredient("interleaved-clips"),
            Ingredient("video-count"),
            Ingredient("sprite-times"),
            Ingredient("sprite-path"),
            *(Ingredient(task, 0.5) for task in SCENES),
            *(Ingredient(task, 0.2) for task in LOGIC),
        ),
        THINK,
        "Our own mix of image and video tasks; tasks without fitting media are left out.",
    ),
    TaskMix(
        "videossr-30k",
        (
            *_anomalies(12.0, ("channel-swap", "mirror", "zoom-out", "rotate180")),
            Ingredient("temporal-jigsaw", 12.0, _SIX_CLIPS),
            Ingredient(
                "video-count", 6.0, {"motion": "still", "asked": 3, "most": 8, "frames": 48}
            ),
        ),
        PLAIN,
        "VideoSSR's training mix with our defences (counts drawn uniformly up to 8).",
    ),
    TaskMix(
        "viubench-like",
        (
            *_anomalies(5.0, ("channel-swap", "rotate180", "zoom-out", "mirror", "shuffle")),
            Ingredient("video-count", 1.0, {"motion": "still", "most": 5, "frames": 48}),
            Ingredient("video-count", 1.0, {"motion": "still", "most": 8, "frames": 48}),
            Ingredient("temporal-jigsaw", 1.0, _SIX_CLIPS),
            Ingredient("temporal-jigsaw", 1.0, _SIX_CLIPS | {"clips": 8, "per_clip": 6}),
        ),
        PLAIN,
        "An evaluation mix composed like VIUBench. Use it with the held-out split.",
    ),
    TaskMix(
        "visual-jigsaw-image",
        (Ingredient("jigsaw", 1.0, {"rows": 3, "columns": 3, "gamma": 0.2}),),
        BOX,
        "Visual Jigsaw, 3×3 tiles, with gaps.",
    ),
    TaskMix(
        "visual-jigsaw-image-paper",
        (Ingredient("jigsaw", 1.0, {"rows": 3, "columns": 3, "gamma": 0.2, **TOUCHING}, FEW),),
        BOX,
        "As published: tiles touch, so boundary matching solves it (see `audit`).",
    ),
    TaskMix(
        "visual-jigsaw-video",
        (
            Ingredient(
                "temporal-jigsaw",
                1.0,
                {"clips": 6, "per_clip": 12, "fps": 2.0, "trim": 0.1, "gamma": 0.2},
            ),
        ),
        BOX,
        "Visual Jigsaw on six clips, two frames a second, a tenth trimmed at both ends as in the code (paper: 5 %).",
    ),
    TaskMix(
        "visual-jigsaw-depth",
        (Ingredient("depth-order", 1.0, {"points": 6, "apart": 0.2, "gamma": 0.2}),),
        BOX,
        "Visual Jigsaw 3D: six points from near to far. Needs RGB-D media.",
    ),
    TaskMix("puzzlecraft-jigsaw", _jigsaws(1.0, {}), THINK, "PuzzleCraft's jigsaw, with gaps."),
    TaskMix(
        "puzzlecraft-jigsaw-paper", _jigsaws(1.0, TOUCHING), THINK, "As published: tiles touch."
    ),
    TaskMix("puzzlecraft-rotation", (_ROTATION,), THINK, "PuzzleCraft's rotation."),
    TaskMix("puzzlecraft-patchfit", _patchfits(1.0), THINK, "PuzzleCraft's PatchFit."),
    TaskMix(
        "puzzlecraft-mix",
        (*_jigsaws(15.0, {}), *_patchfits(15.0), _ROTATION),
        THINK,
        "PuzzleCraft's mix 15 : 15 : 10, with gaps.",
    ),
    TaskMix(
        "puzzlecraft-mix-paper",
        (*_jigsaws(15.0, TOUCHING), *_patchfits(15.0), _ROTATION),
        THINK,
        "PuzzleCraft's mix 15 : 15 : 10 as published: tiles touch.",
    ),
    TaskMix(
        "videossr-30k-paper",
        (
            *_anomalies(12.0, ("channel-swap", "mirror", "zoom-out", "rotate180")),
            Ingredient("temporal-jigsaw", 12.0, _SIX_CLIPS),
            Ingredient(
                "video-count",
                6.0,
                {
                    "motion": "still",
                    "asked": 3,
                    "most": 9,
                    "law": "frames",
                    "distractors": 0,
                    "frames": 48,
                },
            ),
        ),
        PLAIN,
        "VideoSSR's training mix as published: counts are sums over frames, no other shapes.",
    ),
    *(
        TaskMix(name, _np_words(level), THINK, "NP-Engine's ten problems in words, one level.")
        for level, name in enumerate(NP_LEVELS)
    ),
    TaskMix(
        "np-engine",
        tuple(part for level in range(len(NP_LEVELS)) for part in _np_words(level)),
        THINK,
        "NP-Engine's ten problems in words, of the sizes it trains on.",
        NP_LEVELS,
    ),
    TaskMix(
        "np-engine-picture",
        _np_pictures((6, 8, 10)),
        THINK,
        "The ten problems as pictures: maps, graphs, tables, cards and plans.",
    ),
    TaskMix(
        "mr-rlvr",
        (Ingredient("masked-fill"), Ingredient("step-reorder")),
        THINK,
        "MR-RLVR's two tasks, one to one, on drawn calculations.",
    ),
    TaskMix(
        "chain-of-symbol",
        _brick_stacks(True),
        THINK,
        "Brick stacks in words and pictures, with the chain of symbols first.",
    ),
    TaskMix("brick-world", _brick_stacks(False), THINK, "The same without symbols."),
    *(
        TaskMix(
            name,
            _causal_queries(levels, show),
            THINK,
            f"Causal models of ten variables, {what}.",
        )
        for name, levels, show, what in (
            ("causal-reasoning", LEVELS, "text", "all three levels, in words"),
            ("causal-reasoning-picture", LEVELS, "picture", "with drawn graphs (ours)"),
            ("causal-association", LEVELS[:1], "text", "what is seen"),
            ("causal-intervention", LEVELS[1:2], "text", "what is done"),
            ("causal-counterfactual", LEVELS[2:], "text", "what would have been"),
        )
    ),
    TaskMix(
        "hopchain", _hop_chains("full"), BOX, "HopChain: chains through three to six objects."
    ),
    TaskMix(
        "hopchain-half", _hop_chains("second-half"), BOX, "Only the second half of each chain."
    ),
    TaskMix("hopchain-last", _hop_chains("last-hop"), BOX, "Only the last hop of each chain."),
)


def preset(name: str) -> TaskMix:
    """The preset of this name; the name of a task gives that task alone."""
    from mmrl.data.pretext.catalogue import TASKS  # here: the presets alone need no task

    for entry in PRESETS:
        if entry.name == name:
            return entry
    if any(task.name == name for task in TASKS):
        return TaskMix(name, (Ingredient(name),), note="One task with its default knobs.")
    names = [entry.name for entry in PRESETS]
    tasks = [task.name for task in TASKS]
    raise ValueError(
        f"there is no preset {name!r}; presets are {names}, and any task: {tasks}."
    )
