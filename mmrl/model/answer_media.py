"""Pictures and clips inside answers, as tools return them: where their tokens are, their positions, their pixels.

    | answer: words | <vision start> placeholders <vision end> | words |     the middle has the role OBSERVATION

`Rollout.media` holds the media in the order of their placeholders, which `observed` repeats to the number of visual
tokens as in a prompt. Each medium gets the size that it would have as the only one of a prompt, so that what a node of
a tree reads does not depend on what else its answers show.

Positions behind a medium go on after its largest one, as in a prompt. A node may end before or behind a medium, and an
answer must not end with one: its last token predicts nothing, so it would never be read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmrl.model.answer_trees import AnswerTree
from mmrl.model.drawing import drawing, spoils
from mmrl.model.encoded import Encoded
from mmrl.model.mrope import Block
from mmrl.model.patches import Patches
from mmrl.model.processing import Plan, Processing
from mmrl.model.row_layout import ROOT
from mmrl.model.tree_row import Node
from mmrl.types import Media, Now, Prompt, Role, Rollout, VisualBranch

WITHIN = -1
"""In the place of a position: a medium has begun and not ended."""


@dataclass(frozen=True, eq=False)
class Inside:
    """The media within one answer of T tokens, and what they do to its positions."""

    positions: Tensor
    """long [3, T]: time, row and column, counted from the beginning of the answer."""
    begins: Tensor
    """long [T + 1]: where what follows so many tokens begins, on all three axes; `WITHIN` inside a medium."""
    slots: tuple[Tensor, ...]
    """Per medium, long [its tokens]: where its placeholders stand in the answer."""
    visual: tuple[Patches, ...]
    """One per medium."""

    def within(self, start: int, end: int) -> list[int]:
        """Numbers of the media between these tokens."""
        return [n for n, slot in enumerate(self.slots) if start <= int(slot[0]) < end]

    def node(
        self, fed: Tensor, start: int, end: int, parent: int = ROOT, base: int = 0
    ) -> Node:
        """The tokens `start` to `end`, as a node: `fed` long [n] are these without the last, or with words behind them.

        Raises ValueError if a medium lies across either end.
        """
        for border in (start, end):
            if self.begins[border] == WITHIN:
                raise ValueError(
                    f"A node of an answer's path ends after {border} tokens, within the tokens of a picture or clip; "
                    "let it end before or behind it."
                )
        begin, further = int(self.begins[start]), advance(self, start, end)
        own = self.positions[:, start : min(start + len(fed), end)] - begin
        # Words behind the node: a suffix that is scored.
        behind = torch.arange(len(fed) - own.shape[1])
        positions = torch.cat([own, (behind + further).expand(3, -1)], dim=1)
        slots = tuple(self.slots[n] - start for n in self.within(start, end))
        return Node(fed, positions, further + len(behind), parent, slots, base)

    def pixels(self, start: int, end: int) -> tuple[Patches, ...]:
        """What is shown between these tokens."""
        return tuple(self.visual[n] for n in self.within(start, end))


def advance(inside: Inside | None, start: int, end: int) -> int:
    """How far the tokens `start` to `end` of an answer are from each other in positions."""
    return end - start if inside is None else int(inside.begins[end] - inside.begins[start])


def piece_of(
    answer: Tensor, inside: Inside | None, start: int, end: int, base: int
) -> tuple[Node, tuple[Patches, ...]]:
    """The tokens `start` to `end` of an answer [T] as a node at position `base`, and what is shown in it."""
    tokens = answer[start:end]
    if inside is None:
        return Node.text(tokens, base=base), ()
    return inside.node(tokens, start, end, base=base), inside.pixels(start, end)


def refuse_other_media(tree: AnswerTree, inside: Sequence[Inside | None]) -> None:
    """Raise ValueError if answers show different pixels where their paths say that they share a node."""
    for number, way in enumerate(tree.ways):
        for piece in (tree.pieces[one] for one in way):
            here, first = (
                [] if one is None else [medium.key for medium in one.pixels(*piece.span)]
                for one in (inside[number], inside[piece.answer])
            )
            if here != first:
                start, end = piece.span
                raise ValueError(
                    f"Answers {piece.answer} and {number} of a group share the tokens {start} to {end - 1} by "
                    "their paths, but the pictures that they show there differ."
                )


def observed(processing: Processing, text: str, media: Sequence[Media]) -> Tensor:
    """Ids long [n] of what is put into an answer: `text` with the family's placeholder once per medium, in order.

    Raises `BadRow` for a medium that cannot be shown to the model.
    """
    ids, _, _ = processing.expand(text, [_plan(processing, medium) for medium in media])
    return torch.tensor(ids, dtype=torch.long)


class AnswerMedia:
    """The media inside the answers of a step. Each is cut into patches once, however many answers show it."""

    def __init__(self, processing: Processing) -> None:
        self._processing = processing
        self._known: dict[int, tuple[Media, Plan, Patches]] = {}
        """By object, which is kept alive so that no other can take its name."""

    def of(self, rollout: Rollout) -> Inside | None:
        """What an answer shows; None if it shows nothing.

        Raises ValueError if its placeholders and its media do not belong together.
        """
        processing = self._processing
        known = torch.tensor(
            sorted(processing.family.placeholder_ids(processing.config).values()),
            dtype=torch.long,
        )
        pads = torch.isin(rollout.tokens, known).nonzero()[:, 0]
        if not len(pads) and not rollout.media:
            return None
        blocks, slots = self._places(rollout, pads)
        self._refuse(rollout, pads, slots)
        length = len(rollout.tokens)
        positions = processing.family.positions(length, blocks)
        behind = positions.max() + 1
        begins = torch.cat([positions[0], behind[None]])
        for slot in slots:
            begins[int(slot[0]) + 1 : int(slot[-1]) + 1] = WITHIN
        return Inside(
            positions, begins, slots, tuple(self._cut(medium)[1] for medium in rollout.media)
        )

    def _places(self, rollout: Rollout, pads: Tensor) -> tuple[list[Block], tuple[Tensor, ...]]:
        """Runs of visual tokens in the answer, and each medium's places."""
        blocks: list[Block] = []
        slots: list[Tensor] = []
        done = 0
        for number, medium in enumerate(rollout.media):
            plan, _ = self._cut(medium)
            family = self._processing.family
            pad = family.video if medium.is_video else family.image
            ids, _, (runs,) = self._processing.expand(pad, [plan])
            first, last = runs[0].start, runs[-1].start + runs[-1].tokens
            # From its first placeholder to its last, time stamps of a clip between them.
            expected = torch.tensor(ids[first:last])
            ahead = pads[pads >= done]
            start = int(ahead[0]) if len(ahead) else len(rollout.tokens)
            done = start + len(expected)
            if not torch.equal(rollout.tokens[start:done], expected):
                kind = "clip" if medium.is_video else "picture"
                raise _misfit(
                    rollout,
                    f"its medium {number}, a {kind}, takes {sum(run.tokens for run in runs)} visual tokens from token "
                    f"{start} on, but other tokens stand there; let `answer_media.observed` write them",
                )
            own = [replace(run, start=run.start - first + start) for run in runs]
            blocks += own
            slots.append(
                torch.cat([torch.arange(run.start, run.start + run.tokens) for run in own])
            )
        return blocks, tuple(slots)

    def _refuse(self, rollout: Rollout, pads: Tensor, slots: Sequence[Tensor]) -> None:
        """Raise ValueError for placeholders without a medium, of another role, or at the very end."""
        shown = sum(map(len, slots))
        if len(pads) != shown:
            raise _misfit(
                rollout,
                f"it holds {len(pads)} placeholders of visual tokens, and its {len(slots)} media take {shown}; every "
                "one needs its medium in Rollout.media",
            )
        if (rollout.roles[pads] != int(Role.OBSERVATION)).any():
            raise _misfit(
                rollout,
                "its visual tokens are not all of the role OBSERVATION; nobody wrote them",
            )
        if int(pads[-1]) == len(rollout.tokens) - 1:
            raise _misfit(
                rollout,
                "it ends with a picture or clip, which nothing would read; let at least one token follow",
            )

    def _cut(self, medium: Media) -> tuple[Plan, Patches]:
        if id(medium) not in self._known:
            plan = _plan(self._processing, medium)
            self._known[id(medium)] = (medium, plan, plan.patches())
        _, plan, patches = self._known[id(medium)]
        return plan, patches


def rendered(
    processing: Processing,
    rollout: Rollout,
    number: int,
    encoded: Encoded,
    plain: Patches,
    name: str,
    branch: VisualBranch,
    now: Now,
    answer: int,
    saliency: Callable[[Patches], Tensor],
) -> Patches:
    """The n-th medium of an answer under a branch, whose draw is that of one more medium of the prompt.

    `encoded`: the prompt; `plain`: the medium as it is. Raises ValueError if the view would change the answer.
    """
    prompt, medium = rollout.prompt, rollout.media[number]
    if reason := spoils(branch.view, prompt):
        raise ValueError(
            f"The branch {name!r} cannot show what an answer to {prompt.id!r} shows: {reason}"
        )
    # Views find their medium behind those of the prompt.
    place = len(prompt.media) + number
    whole = replace(prompt, media=(*prompt.media, *rollout.media))

    def attended(_: int) -> Tensor | None:
        return saliency(plain) if branch.view.reads_saliency else None

    look = drawing(whole, name, branch, now, answer, attended)
    alone = replace(prompt, media=(medium,))
    (seen,) = processing.rerender(
        alone,
        replace(encoded, visual=(plain,)),
        lambda frames, _: look(frames, place),
        branch.stage,
    )
    return seen


def _plan(processing: Processing, medium: Media) -> Plan:
    """How a medium is shown, sized as the only one of a prompt. Raises `BadRow`."""
    kind = "clip" if medium.is_video else "picture"
    (plan,) = processing.plans(Prompt(f"a {kind} inside an answer", (), (medium,)))
    return plan


def _misfit(rollout: Rollout, why: str) -> ValueError:
    return ValueError(
        f"An answer to prompt {rollout.prompt.id!r} cannot be shown to the model: {why}."
    )
