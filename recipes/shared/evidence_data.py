"""How evidence is asked for, and the embedded model that says which cell of a drawn picture it looks at.

`warm_evidence()` teaches the tiny model of the look-ups, supervised, to name the box of the asked cell before it
answers. Half of the lessons name any cell's box: it knows the form, and where to look only unsurely, so that
reinforcement learning has something to find out. It takes a minute, once.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mmrl.data.drawn.drawn import Drawn
from mmrl.data.drawn.scenes import cell_box
from mmrl.ground.seeds import philox
from mmrl.perception.longrlvr import ContextReward, EvidenceScore, GroundedAccuracy, LongRLVR
from mmrl.recipes.shared.embedded import WarmUp, warm_model
from mmrl.recipes.shared.opening import EMBEDDED
from mmrl.recipes.shared.paying import RewardWeights, Style
from mmrl.recipes.shared.supervised import published, supervised
from mmrl.rewards.pay import Rewards
from mmrl.training.run import Run
from mmrl.types import Prompt, Prompts

ASK = (
    "Think first, inside <think> </think>. Then say inside <evidence> </evidence> where the answer can be seen: boxes "
    "[x0, y0, x1, y1], frames (frame 3, frames 5-8) or seconds (2.5 to 4 s), each picture on a line of its own that "
    "begins with its number if there are several (picture 2). Last, give the answer alone inside <answer> </answer>."
)
"""What stands below a question about pictures or clips."""
ASK_CHUNKS = (
    "Think first, inside <think> </think>. Then list inside <useful_chunks> </useful_chunks> the chunks that hold the "
    "answer, as <CHUNK_3>, <CHUNK_7>. Last, give the answer alone inside <answer> </answer>."
)
"""What stands below a question about numbered chunks of a text."""


@dataclass(frozen=True)
class EvidenceWarmUp:
    """Supervised warm-up on look-ups with evidence."""

    steps: int = 60
    batch: int = 32
    lr: float = 3e-3
    elsewhere: float = 0.5
    """Share of lessons that name the box of any cell."""
    seed: int = 2000


class EvidenceLessons(Prompts):
    """Look-ups whose target names a box first."""

    def __init__(self, settings: EvidenceWarmUp) -> None:
        self.settings, self.size = settings, None
        scene = WarmUp()
        self.lookups = Drawn(
            "lookup",
            seed=settings.seed,
            cells=scene.cells,
            size_px=scene.size_px,
            swapped=scene.swapped,
        )

    def __getitem__(self, index: int) -> Prompt:
        prompt, side = self.lookups[index], self.lookups.cells
        rng = philox("evidence lesson", self.settings.seed, index)
        row, column = prompt.extra["row"] - 1, prompt.extra["column"] - 1
        if rng.random() < self.settings.elsewhere:
            row, column = divmod(int(rng.integers(side**2)), side)
        box = [int(edge) for edge in cell_box(self.lookups.side, side, row, column)]
        target = f"<evidence> {box} </evidence> {prompt.extra['target']}"
        return replace(prompt, extra={**prompt.extra, "target": target})


def warm_evidence(settings: EvidenceWarmUp = EvidenceWarmUp()) -> Path:
    """Folder of the warmed-up model, from the cache if it is there."""
    sources = [inspect.getsource(part) for part in (EvidenceLessons, supervised)]
    lessons = partial(_lessons, settings)
    return published("evidence", warm_model(), lessons, settings, sources)


def _lessons(settings: EvidenceWarmUp, run: Run) -> Prompts:
    return EvidenceLessons(settings)


def evidence_model(model: str) -> str:
    """The folder of the model that was taught evidence for "embedded", else the model itself."""
    return str(warm_evidence()) if model == EMBEDDED else model


def evidence_rewards(reward: RewardWeights, style: Style, longrlvr: LongRLVR) -> Rewards:
    """The rewards of a run: accuracy of answers with both blocks, the context reward, and F, which is only logged."""
    if not longrlvr.weight:
        return reward.rewards(style)
    if reward.own:
        raise ValueError(
            f"--reward.own is {list(reward.own)}, but the context reward goes with the style's accuracy; leave it out, "
            "or set --longrlvr.weight 0."
        )
    accuracy = reward.accuracy_of(style)
    grounded = GroundedAccuracy(accuracy, longrlvr)
    gated = replace(style, accuracy=grounded)
    context = (reward.accuracy * longrlvr.weight, ContextReward(accuracy, longrlvr))
    plain = replace(reward, grader="ours")
    return plain.rewards(gated, context=context, evidence=(0.0, EvidenceScore(longrlvr)))
