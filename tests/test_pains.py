"""Pains of the field (docs/pains.md) that no other room's tests hold."""

import json

import pytest
import torch
from PIL import Image

from mmrl.losses import kl
from mmrl.model.packing import Group
from mmrl.model.policy import Policy
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.recipes.shared.opening import Data, open_data
from mmrl.rollouts.next_token import drawn, truncated
from mmrl.rollouts.prompt_order import Supply
from mmrl.training.optim import Optim, Optimizer
from mmrl.types import Media, Prompt, Sampling


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_p=0.9, top_k=200, min_p=1e-4)])
def test_a_hundred_thousand_draws_hold_no_placeholder(tiny_folder, sampling):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32")
    tokenizer, banned = policy.processing.tokenizer, set(policy.processing.banned_ids)
    marks = {
        tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("image_pad", "video_pad", "vision_start", "vision_end", "vision_pad")
    }
    assert marks <= banned
    vocabulary = policy.base.lm_head.weight.shape[0]
    assert vocabulary < 1000
    random = torch.Generator().manual_seed(0)
    found: set[int] = set()
    for _ in range(100):  # every draw likes a placeholder best
        logits = torch.randn(1000, vocabulary, generator=random)
        logits[:, sorted(marks)] += 3
        prob = truncated(logits.log_softmax(-1), sampling, torch.tensor(sorted(banned)))
        found |= set(drawn(prob, torch.rand(1000, generator=random)).tolist())
    assert not found & banned and len(found) > 100


def shade(index):
    return (index * 7 % 256, index, 255 - index)


def rows_of(folder, count):
    """A file whose pictures show their own row."""
    for index in range(count):
        Image.new("RGB", (8, 8), shade(index)).save(folder / f"{index}.png")
    rows = [
        {"question": f"Which row is <image>? {n}", "images": [f"{n}.png"], "answer": str(n)}
        for n in range(count)
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def assert_bound(prompt):
    index = int(prompt.answer)
    assert f"? {index}" in json.dumps(prompt.messages)
    (medium,) = prompt.media
    assert tuple(medium.frames[0, :, 0, 0].tolist()) == shade(index)


def test_every_prompt_keeps_its_own_picture(tmp_path):
    path = rows_of(tmp_path, 40)
    (tmp_path / "5.png").write_bytes(b"no picture")
    training, heldout = open_data(str(path), Data(heldout_rows=4), seed=1)
    kept = [Supply(side, 7, seed=2) for side in (training, heldout)]
    sides = [[p for _ in range(15) for p in supply.take()] for supply in kept]
    for prompt in sides[0] + sides[1]:  # portions of seven do not divide an epoch
        assert_bound(prompt)
    one, other = ({prompt.answer for prompt in side} for side in sides)
    assert not one & other and one | other == {str(n) for n in range(40) if n != 5}


@pytest.mark.parametrize("name", ["k1", "k2", "k3", "absolute"])
@pytest.mark.parametrize("distance", [80.0, -80.0, 1e4, -1e4])
def test_log_ratios_of_eighty_give_finite_values_and_gradients(name, distance):
    a = torch.tensor([-1.0], requires_grad=True)
    found = getattr(kl, name)(a, torch.tensor([-1.0 + distance]))
    (gradient,) = torch.autograd.grad(found.sum(), a)
    assert found.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "symmetric_kl", "jensen_shannon"])
def test_exact_divergences_of_sure_policies_are_finite(name):
    a = torch.tensor([[80.0, 0.0, -80.0]], requires_grad=True)
    found = getattr(kl, name)(a, torch.tensor([[-80.0, 0.0, 80.0]]))
    (gradient,) = torch.autograd.grad(found.sum(), a)
    assert found.isfinite().all() and gradient.isfinite().all()


def test_frozen_weights_keep_their_bytes(tiny_folder):
    policy = Policy.load(
        tiny_folder, device="cpu", dtype="float32", freeze=("vision", "merger")
    )
    frozen = {n: p for n, p in policy.base.named_parameters() if not p.requires_grad}
    moving = {n: p for n, p in policy.base.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in (frozen | moving).items()}
    assert frozen and moving
    optimizer = Optimizer(policy.named_parameters(), Optim(lr=1e-2, weight_decay=0.1))
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    parts = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    encoded = policy.encode(Prompt("p", [{"role": "user", "content": parts}], (Media(pixels),)))
    group = Group(encoded, encoded.visual, (torch.tensor([70, 80, 90]),), (0,), (1.0,))
    for _ in range(10):
        wanted = {"raw": ScoreOutputs(grad=True)}
        scores = score_packed(policy, {"raw": [group]}, wanted, (1, 3))
        scores["raw"].logp.sum().backward()
        policy.vision.backward()
        assert all(p.grad is None for p in frozen.values())
        optimizer.step(planned=10)
        policy.stepped()
    assert all(torch.equal(p, before[n]) for n, p in frozen.items())
    assert any(not torch.equal(p, before[n]) for n, p in moving.items())
    assert len(optimizer.state()["adam"]["state"]) == len(moving)
