"""Saliency from the policy's own tower: against recorded attention weights, in place, and through a branch."""

from __future__ import annotations

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mmrl.model.branches import Views, render_branch
from mmrl.model.policy import Policy
from mmrl.model.visual_attention import token_saliency, whole_frame_blocks
from mmrl.perception.masking import PatchMask, SaliencyMask
from mmrl.perception.perturb import ColourJitter, ViewChain
from mmrl.types import Media, Now, Prompt, Role, Rollout, VisualBranch

NOW = Now(1, 0.0, 0)
VIEW = VisualBranch(SaliencyMask(ratio=0.5))


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def policy(request, tiny_folder, tiny3_folder):
    folder = {"qwen2_5_vl": tiny_folder, "qwen3_vl": tiny3_folder}[request.param]
    return Policy.load(folder, device="cpu", dtype="float32")


def picture(height=96, width=64, seed=0, frames=None):
    rng = torch.Generator().manual_seed(seed)
    count = frames or 1
    pixels = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=rng)
    return Media(pixels, torch.arange(count, dtype=torch.float64) if frames else None)


def asked(medium, name="p"):
    kind = "video" if medium.is_video else "image"
    content = [{"type": kind}, {"type": "text", "text": "What is this?"}]
    return Prompt(name, [{"role": "user", "content": content}], (medium,))


def recorded(visual, patches, blocks):
    """The softmax weights [heads, n, n] of each frame and block, from the library's own attention."""
    kept = []

    def plain(module, query, key, value, attention_mask, scaling, **rest):
        weights = (query @ key.transpose(2, 3) * scaling).softmax(-1)
        if module in [visual.blocks[i].attn for i in blocks]:
            kept.append(weights[0])
        return (weights @ value).transpose(1, 2), weights

    ALL_ATTENTION_FUNCTIONS.register("recording", plain)
    before, visual.config._attn_implementation = visual.config._attn_implementation, "recording"
    try:
        out = visual(patches.values, grid_thw=torch.tensor([patches.grid]), return_dict=True)
    finally:
        visual.config._attn_implementation = before
    return kept, out.pooler_output


@pytest.mark.parametrize("frames", [None, 6])
def test_it_is_the_attention_that_patches_receive(policy, frames):
    patches = policy.encode(asked(picture(frames=frames), f"attention {frames}")).visual[0]
    visual = policy.base.model.visual
    blocks = whole_frame_blocks(visual)
    with torch.no_grad():
        kept, _ = recorded(visual, patches, blocks)
    depth, rows, columns = patches.grid
    assert len(kept) == depth * len(blocks)
    each = [(w.mean(0).sum(0) - w.mean(0).diagonal()) for w in kept]
    total = sum(torch.cat(each[i * depth : (i + 1) * depth]) for i in range(len(blocks))) / len(
        blocks
    )
    found = token_saliency(visual, patches.values, patches.grid)
    assert found.shape == (depth, rows // 2, columns // 2) and found.min() >= 0
    assert torch.allclose(found.sum(), total.sum() / 4, atol=1e-4)
    assert torch.allclose(
        found.flatten().sort().values, total.view(-1, 4).mean(1).sort().values, atol=1e-5
    )


def test_tokens_stand_where_the_tower_puts_them(policy):
    """Each score belongs to the token whose merged feature comes out at the same place."""
    patches = policy.encode(asked(picture(160, 112), "order")).visual[0]
    visual, order = policy.base.model.visual, []
    handle = visual.merger.register_forward_hook(lambda m, args, out: order.append(out))
    with torch.no_grad():
        kept, merged = recorded(visual, patches, whole_frame_blocks(visual))
    handle.remove()
    place = torch.cdist(merged, order[-1]).argmin(1)  # row of the tower for each token
    assert sorted(place.tolist()) == list(range(len(merged)))
    weights = [w.mean(0) for w in kept]
    inside = torch.stack([w.sum(0) - w.diagonal() for w in weights]).mean(0).view(-1, 4).mean(1)
    scores = token_saliency(visual, patches.values, patches.grid).flatten()
    assert torch.allclose(scores, inside[place], atol=1e-5)
    assert policy.processing.family.model_type == "qwen3_vl" or not torch.equal(
        place, torch.arange(len(place))
    )


def test_the_branch_masks_what_the_policy_looks_at(policy):
    prompt = asked(picture(64, 64), "masked")
    rollout = Rollout(
        prompt,
        0,
        torch.zeros(1),
        torch.ones(2, dtype=torch.long),
        torch.full((2,), int(Role.POLICY)),
        "",
        "eos",
    )
    before = policy.counters["patches/saliency"]
    (seen,) = render_branch(policy, prompt, "salient", VIEW, NOW)
    both = VisualBranch(ViewChain((ColourJitter(0.0, 0.0), VIEW.view)))
    (chained,) = render_branch(policy, prompt, "salient", both, NOW)
    (again,) = Views(policy, [rollout], {"salient": VIEW}, NOW).pixels("salient", 0)
    assert seen.key == again.key == chained.key != policy.encode(prompt).visual[0].key
    assert policy.counters["patches/saliency"] - before == len(seen.values), (
        "computed once per picture and weights"
    )
    render_branch(policy, prompt, "random", VisualBranch(PatchMask()), NOW)
    assert policy.counters["patches/saliency"] - before == len(seen.values)
    with policy.vision.no_update():
        pass
    render_branch(policy, prompt, "salient", VIEW, NOW)
    assert policy.counters["patches/saliency"] - before == 2 * len(seen.values)
