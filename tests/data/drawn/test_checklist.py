"""The checklist of a drawn picture: all cells in one answer."""

from __future__ import annotations

import pytest
import torch

from mmrl.data.drawn.checklist import cells_prompt, cells_seen
from mmrl.data.drawn.drawn import Drawn
from mmrl.types import Role, Rollout


def answer(prompt, text):
    roles = torch.full((1,), int(Role.POLICY), dtype=torch.uint8)
    return Rollout(
        prompt, 0, torch.zeros(1), torch.zeros(1, dtype=torch.long), roles, text, "eos"
    )


def test_the_target_of_a_description_is_all_right():
    for index in range(10):
        lookup = Drawn("lookup", cells=2, size_px=32)[index]
        asked = cells_prompt(lookup)
        assert (
            asked is not None
            and asked.media is lookup.media
            and asked.extra["checklist_of"] == lookup.id
        )
        assert (
            asked.messages == Drawn("describe", cells=2, size_px=32)[index].messages
            and asked.id != lookup.id
        )
        described = f"<answer> {', '.join(lookup.extra['cells'])} </answer>"
        assert cells_seen(answer(asked, described)) == 1.0


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("<answer> a b, nothing, c </answer>", 0.75),
        ("<answer> a  b ,nothing,c,d e </answer>", 1.0),
        ("<answer> nothing, a b, c, d e </answer>", 0.5),
        ("<answer> a b, nothing, c, d e, a b, a b, a b, a b </answer>", 0.5),
        ("a b, nothing, c, d e", 0.0),
        ("<answer> </answer>", 0.0),
        ("", 0.0),
    ],
)
def test_each_cell_counts_at_its_place(text, share):
    asked = cells_prompt(Drawn("lookup")[0])
    assert asked is not None
    asked.extra["cells"][:] = ["a b", "nothing", "c", "d e"]  # type: ignore[index]
    assert cells_seen(answer(asked, text)) == share


def test_rows_without_cells_have_no_checklist():
    assert (
        cells_prompt(Drawn("jigsaw")[0]) is None
        and cells_prompt(Drawn("lookup", pictures=2)[0]) is None
    )
