"""A look without pictures: the visual tokens leave the prompt and its answers, and all other positions stay.

What is left reads and predicts exactly what it would if no token might look at a visual one, in every layer that
attends; but the rows are shorter, and the tower is not asked. The words around a picture (where it begins and ends, the
time stamps of a clip) stay. Layers with linear attention carry a state instead: there the visual tokens simply never
came.

Columns of `Scores` where a visual token stands (pictures inside answers) are 0: nobody wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmrl.model.answer_media import Inside
from mmrl.model.answer_trees import Path
from mmrl.model.encoded import Encoded
from mmrl.model.row_draft import Group

UNSEEN = "unseen"
"""What `Encoded.variant` says of a prompt without its visual tokens."""


def without_sight(group: Group) -> Group:
    """The group as it is read without any visual token; the group itself if it shows nothing."""
    if not group.encoded.visual and not any(group.inside):
        return group
    stay = [_staying(len(a), i) for a, i in zip(group.answers, group.within, strict=True)]
    words = group.words
    return replace(
        group,
        encoded=blind(group.encoded),
        visual=(),
        answers=tuple(a[s] for a, s in zip(group.answers, stay, strict=True)),
        columns=tuple(stay),
        temperatures=tuple(
            t[s] if isinstance(t, Tensor) and t.ndim else t
            for t, s in zip(group.temperatures, stay, strict=True)
        ),
        ends=tuple(int((s < e).sum()) for e, s in zip(group.ends, stay, strict=False)),
        words=None if words is None else _renumbered(words, group.encoded),
        paths=tuple(_shorter(p, s) for p, s in zip(group.paths, stay, strict=False)),
        inside=tuple(
            None if i is None else _positions_of(i, s)
            for i, s in zip(group.inside, stay, strict=False)
        ),
        picked=tuple(p[s] for p, s in zip(group.picked, stay, strict=False)),
    )


def blind(encoded: Encoded) -> Encoded:
    """A prompt without its visual tokens; the same record if it has none."""
    if not encoded.visual:
        return encoded
    kept = _kept(encoded)
    return replace(
        encoded,
        ids=encoded.ids[kept],
        positions=encoded.positions[:, kept],
        visual=(),
        slots=(),
        types=encoded.types[kept],
        stands_for=encoded.original,
        variant=encoded.variant + UNSEEN,
    )


def _kept(encoded: Encoded) -> Tensor:
    """Which of a prompt's ids stay, long [n]."""
    return _complement(len(encoded.ids), encoded.slots)


def _staying(length: int, inside: Inside | None) -> Tensor:
    """Which tokens of an answer stay, long [n]."""
    return _complement(length, () if inside is None else inside.slots)


def _complement(length: int, slots: Sequence[Tensor]) -> Tensor:
    on = torch.ones(length, dtype=torch.bool)
    for slot in slots:
        on[slot] = False
    return on.nonzero()[:, 0]


def _renumbered(words: Tensor, encoded: Encoded) -> Tensor:
    """Where the words of a prompt stand when its visual tokens are gone; no word is one."""
    return torch.searchsorted(_kept(encoded), words)


def _shorter(path: Path, stay: Tensor) -> Path:
    """The path with the tokens that are left in each node, some of which may have none."""
    found: list[tuple[int, int]] = []
    start = 0
    for node, count in path:
        left = ((stay >= start) & (stay < start + count)).sum()
        found.append((node, int(left)))
        start += count
    return tuple(found)


def _positions_of(inside: Inside, stay: Tensor) -> Inside:
    """What is left of an answer that shows something: the positions of its other tokens."""
    positions = inside.positions[:, stay]
    # Where something begins may depend only on what comes before it: answers that part there must agree. So the jump
    # behind a picture belongs to the token that follows it.
    begins = torch.cat([torch.zeros(1, dtype=torch.long), positions[0] + 1])
    return Inside(positions, begins, (), ())
