"""Wide groups of models with linear attention: the prompt is run once, its states go to every slice of answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmrl.model import linear_attention
from mmrl.model.linear_attention import over_plan
from mmrl.model.load import LoRA
from mmrl.model.packing import collate
from tests.model.test_open_prompts import assert_close, learned, load, rollouts_of


@pytest.mark.parametrize(
    "settings",
    [{}, {"checkpointing": True}, {"lora": LoRA(rank=2, vision=True), "checkpointing": True}],
)
def test_slices_learn_what_one_row_learns(tiny35_folder: Path, settings: dict) -> None:
    policy = load(tiny35_folder, "float32", **settings)
    batch = collate(rollouts_of(policy, [[5, 1, 0, 7], [2, 4], [6, 1]]))
    shortest = min(len(r.prompt_ids) for r in batch.rollouts)
    expected = learned(policy, batch, policy.prompts.parts(batch, 10_000))
    tokens = dict(policy.counters)
    for budget in (shortest + 7, 1):  # some groups fit, none fits
        parts = policy.prompts.parts(batch, budget)
        assert len(parts) > 3
        assert_close(learned(policy, batch, parts), expected, 1e-5, 1e-4)
        assert policy.counters["tokens/update"] == tokens["tokens/update"], (
            "a prompt came twice"
        )


def test_a_past_that_is_not_looked_at_is_seen(
    tiny35_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load(tiny35_folder, "float32")
    batch = collate(rollouts_of(policy, [[5, 1, 3, 7]]))
    expected = learned(policy, batch, policy.prompts.parts(batch, 10_000))

    def from_nothing(*args: object, pasts: list[torch.Tensor], **kwargs: object) -> object:
        return over_plan(*args, pasts=[past * 0 for past in pasts], **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(linear_attention, "over_plan", from_nothing)
    found = learned(policy, batch, policy.prompts.parts(batch, 1))
    assert (found[0] - expected[0]).abs().max() > 0.01
