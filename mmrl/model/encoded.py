"""A prompt as the model reads it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmrl.model.patches import Patches


@dataclass(frozen=True, eq=False)
class Encoded:
    """One prompt as the model reads it (length P)."""

    ids: Tensor
    """long [P]."""
    positions: Tensor
    """long [3, P]: time, row, column; equal where the family counts on one axis."""
    next_position: int
    """Position of the first answer token, on all three axes."""
    visual: tuple[Patches, ...]
    """One per medium, in the order of the prompt."""
    slots: tuple[Tensor, ...]
    """Per medium, long [its tokens]: where its placeholders stand in `ids`."""
    types: Tensor
    """long [P]: 0 text, 1 image, 2 video (`mm_token_type_ids`)."""
    text: str
    """The rendered chat, placeholders not expanded."""
    seconds_per_grid: tuple[float, ...] = ()
    """Per video, seconds between temporal patches."""
    stands_for: Encoded | None = None
    """The same question as it is asked, if a branch asks it in other words or without its pictures."""
    variant: str = ""
    """Which of these it is; "" for the question as it is asked."""

    @property
    def original(self) -> Encoded:
        """The question as it is asked."""
        return self if self.stands_for is None else self.stands_for
