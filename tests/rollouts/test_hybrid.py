"""Sampling with linear attention: states begin at the prompt's end, go on with their row, and leave with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmrl.model import tiny
from mmrl.model.budget import Budget, Costs
from mmrl.model.packing import Group
from mmrl.model.policy import Policy
from mmrl.model.recurrent_row import Carried, carried_bytes
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.rollouts.advance import Pace
from mmrl.rollouts.engine import HFEngine
from mmrl.rollouts.seating import Lengths, fill
from mmrl.types import Media, Now, Prompt, Rollout, Sampling

NOW = Now(step=3, progress=0.1, seed=7)
SAMPLING = Sampling(4, 1.0, max_tokens=24, stop=("e", "a"))
"""Strings that random answers hit early or late."""


def ask(number: int, images: int, words: int) -> Prompt:
    rng = torch.Generator().manual_seed(number)
    parts = [{"type": "image"}] * images + [{"type": "text", "text": "red" + " blue" * words}]
    pictures = (
        Media(torch.randint(0, 256, (1, 3, 32, 32), generator=rng, dtype=torch.uint8))
        for _ in range(images)
    )
    return Prompt(f"q{number}", [{"role": "user", "content": parts}], tuple(pictures))


PROMPTS = [ask(1, 1, 0), ask(2, 0, 80), ask(3, 0, 1)]


@pytest.fixture(scope="module", params=["qwen3_5", "qwen3_5_moe"])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """Five layers: full attention in the fourth and the last one, so that numbers of layers and of keys differ."""
    size = tiny.TinySize(hidden=64, layers=5, vision_hidden=32)
    folder = tiny.build(tmp_path_factory.mktemp("hybrid") / request.param, request.param, size)
    return Policy.load(folder, device="cpu", dtype="float32")


def generated(policy: Policy, rows: int = 256, pace: Pace | None = None) -> list[Rollout]:
    engine = HFEngine(policy, rows_at_once=rows)
    if pace is not None:
        engine.pace = pace
    return engine.generate(PROMPTS, SAMPLING, NOW)


def forced(policy: Policy, rollouts: Sequence[Rollout]) -> list[torch.Tensor]:
    """Log-probs of the same tokens from one packed row."""
    groups = []
    for number in sorted({r.group for r in rollouts}):
        rows = [i for i, r in enumerate(rollouts) if r.group == number]
        encoded = policy.encode(rollouts[rows[0]].prompt)
        answers = tuple(rollouts[i].tokens for i in rows)
        ones = (1.0,) * len(rows)
        groups.append(Group(encoded, encoded.visual, answers, tuple(rows), ones))
    longest = max(len(r.tokens) for r in rollouts)
    shape = (len(rollouts), longest)
    logp = score_packed(policy, {"raw": groups}, {"raw": ScoreOutputs()}, shape)["raw"].logp
    return [row[: len(r.tokens)] for row, r in zip(logp, rollouts, strict=True)]


def gap(policy: Policy, rollouts: Sequence[Rollout]) -> float:
    pairs = zip(rollouts, forced(policy, rollouts), strict=True)
    return max((r.logp - logp).abs().max().item() for r, logp in pairs)  # type: ignore[operator]


@pytest.mark.parametrize("rows", [256, 5, 1])
def test_sampled_logp_equals_training_while_rows_end_and_are_given_on(
    policy: Policy, rows: int
) -> None:
    rollouts = generated(policy, rows)
    lengths = {len(r.tokens) for r in rollouts}
    assert len(lengths) > 3, "rows must end at different times"
    assert gap(policy, rollouts) < 1e-5
    whole = generated(policy)
    same = sum(torch.equal(a.tokens, b.tokens) for a, b in zip(rollouts, whole, strict=True))
    assert same >= len(whole) - 1


def _not_begun(self: Carried, rows: torch.Tensor, others: Sequence[Carried]) -> None:
    """Answers begin with what the last one in their row has left."""


def _not_moved(self: Carried, rows: torch.Tensor) -> None:
    """Sequences stay where they are when rows are arranged anew."""
    if self.states:
        ARRANGE(self, torch.arange(len(rows)) % len(self.states[0]))


ARRANGE = Carried.arrange


@pytest.mark.parametrize(("name", "broken"), [("put", _not_begun), ("arrange", _not_moved)])
def test_the_comparison_sees_a_wrong_state(
    policy: Policy, name: str, broken: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Carried, name, broken)
    rollouts = generated(policy, rows=5)
    monkeypatch.undo()
    assert gap(policy, rollouts) > 0.01


def test_recorded_steps_give_the_same(policy: Policy) -> None:
    """A recorder that calls the step again, as a CUDA graph does: what a step changes must be known to it."""
    pace = Pace(look_every=4, buckets=(2, 4, 8), recorder=lambda run: run)
    recorded = generated(policy, rows=6, pace=pace)
    assert gap(policy, recorded) < 1e-5


def test_checkpointing_changes_nothing(tmp_path: Path) -> None:
    size = tiny.TinySize(hidden=64, layers=3, vision_hidden=32)
    folder = tiny.build(tmp_path / "model", "qwen3_5", size)
    plain = Policy.load(folder, device="cpu", dtype="float32", checkpointing=False)
    recomputing = Policy.load(folder, device="cpu", dtype="float32", checkpointing=True)
    for a, b in zip(generated(plain), generated(recomputing), strict=True):
        assert torch.equal(a.tokens, b.tokens)
        assert torch.equal(a.logp, b.logp)  # type: ignore[arg-type]


def test_what_is_carried_is_counted_as_it_is(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Carried] = []
    put = Carried.put

    def watched(self: Carried, rows: torch.Tensor, others: Sequence[Carried]) -> None:
        found.extend(others)
        put(self, rows, others)

    monkeypatch.setattr(Carried, "put", watched)
    generated(policy)
    costs = Costs.of_model(policy.base)
    taken = {sum(x.numel() * x.element_size() for x in one.tensors()) for one in found}
    assert taken == {costs.carried}
    text = policy.base.config.get_text_config()
    # Keys lie in two layers of five.
    assert costs.token == 2 * 2 * text.num_key_value_heads * text.head_dim * 4


def test_states_bound_the_rows() -> None:
    costs = Costs(token=1, prefill=1, patch=1, row=1, carried=1000)
    one = [Lengths(8)] * 16
    budget = Budget(20_000, 10**9, 10**9, 1, 1, 1)

    def rows(costs: Costs) -> int:
        return fill(one, 4, 8, 256, 8, costs, budget).rows

    assert rows(replace(costs, carried=0)) == 64
    # Twelve answers and the states of twice three prompts, with few bytes of keys.
    assert rows(costs) == 12


@pytest.mark.parametrize(
    ("layers", "heads", "megabytes"),
    # Qwen3.5-9B and 27B: 24 and 48 layers of linear attention with 32 and 48 heads of 128 x 128 numbers.
    [(32, 32, 50), (64, 48, 151)],
)
def test_released_models_carry_what_was_computed(
    layers: int, heads: int, megabytes: int
) -> None:
    from transformers import Qwen3_5TextConfig

    text = Qwen3_5TextConfig(num_hidden_layers=layers, linear_num_value_heads=heads)
    states = carried_bytes(text, 2)
    inputs = layers * 3 // 4 * 3 * (2 * 16 + heads) * 128 * 2
    assert round((states - inputs) / 1e6) == megabytes
    assert carried_bytes(Qwen3_5TextConfig(layer_types=["full_attention"] * 32), 2) == 0
