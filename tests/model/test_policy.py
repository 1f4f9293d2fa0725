"""The shared-prefix pass against the repeated computation: log-probs, entropies, divergences and every gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrl.model.load import LoRA
from mmrl.model.packing import Group
from mmrl.model.policy import Policy
from mmrl.model.reference_scores import score_repeated
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.training.optim import Optim, Optimizer
from mmrl.types import Media, Prompt


def picture(seed, height=32, width=32):
    rng = torch.Generator().manual_seed(seed)
    return Media(torch.randint(0, 256, (1, 3, height, width), generator=rng, dtype=torch.uint8))


def clip(seed, frames=4):
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (frames, 3, 32, 32), generator=rng, dtype=torch.uint8)
    return Media(pixels, torch.arange(frames, dtype=torch.float64) * 0.5, frames * 0.5)


def prompt(kinds, seed=0, text="What is at row 1 column 2?"):
    media, parts = [], []
    for n, kind in enumerate(kinds):
        media.append(
            clip(seed * 10 + n)
            if kind == "video"
            else picture(seed * 10 + n, 32 + 16 * (n % 2))
        )
        parts.append({"type": kind})
    parts.append({"type": "text", "text": text + " red" * (seed % 4)})
    return Prompt(
        f"p{seed}-{'-'.join(kinds)}", [{"role": "user", "content": parts}], tuple(media)
    )


def groups_of(policy, prompts, lengths, seed=0, temperature=1.0):
    rng = torch.Generator().manual_seed(seed)
    out, row = [], 0
    allowed = torch.tensor([i for i in range(60, 300) if i not in policy.processing.banned_ids])
    for question, sizes in zip(prompts, lengths, strict=True):
        encoded = policy.encode(question)
        answers = tuple(
            allowed[torch.randint(len(allowed), (n,), generator=rng)] for n in sizes
        )
        rows = tuple(range(row, row + len(sizes)))
        out.append(Group(encoded, encoded.visual, answers, rows, (temperature,) * len(sizes)))
        row += len(sizes)
    return out, (row, max([n for s in lengths for n in s], default=0))


def load(folder, dtype="float64", **kwargs):
    torch.manual_seed(0)
    return Policy.load(folder, dtype=dtype, device="cpu", **kwargs)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def folder(request, tiny_folder, tiny3_folder):
    return tiny_folder if request.param == "qwen2_5_vl" else tiny3_folder


def gradients(policy, run, groups, shape, kind=None):
    """Scores and gradients of a loss that reads everything."""
    policy.model.zero_grad(set_to_none=True)
    policy.vision.clear()
    views = {"raw": groups, "noisy": noisy(groups)}
    wanted = {
        "raw": ScoreOutputs(entropy=True, grad=True),
        "noisy": ScoreOutputs(entropy=True, divergence=kind, grad=True),
    }
    scores = run(policy, views, wanted, shape)
    weights = torch.linspace(0.5, 1.5, shape[0] * shape[1], dtype=torch.float64).view(shape)
    total = 0.0
    for name in views:
        s = scores[name]
        total = total + (weights * (s.logp.double() + 0.3 * s.entropy.double())).sum()
        if s.divergence is not None:
            total = total + (weights * s.divergence.double()).sum()
    total.backward()
    policy.vision.backward()
    return scores, {
        n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None
    }


def noisy(groups):
    """The same groups seen with inverted pixels."""
    from dataclasses import replace

    change = lambda item: replace(item, pixels=255 - item.pixels, key="inverted" + item.key)  # noqa: E731
    return [replace(g, visual=tuple(change(x) for x in g.visual)) for g in groups]


def compare(policy, groups, shape, tolerance, kind=None):
    ours, mine = gradients(policy, score_packed, groups, shape, kind)
    theirs, other = gradients(policy, score_repeated, groups, shape, kind)
    for name in ours:
        for field in ("logp", "entropy", "divergence"):
            a, b = getattr(ours[name], field), getattr(theirs[name], field)
            if b is not None:
                gap = (a - b).abs().max().item()
                assert gap <= tolerance, f"{name} {field}: {gap}"
    assert set(mine) == set(other)
    for name, grad in other.items():
        gap = (mine[name] - grad).norm() / grad.norm().clamp_min(1e-12)
        if grad.norm() > 1e-9:
            assert gap.item() <= 10 * tolerance, f"{name}: relative gap {gap.item()}"
    return mine


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-7)])
def test_ragged_groups_equal_repeated_rows(folder, dtype, tolerance, checkpointing):
    policy = load(folder, dtype, checkpointing=checkpointing)
    prompts = [
        prompt(["image"], 1),
        prompt(["image", "image"], 2),
        prompt([], 3),
        prompt(["video", "image"], 4),
    ]
    groups, shape = groups_of(
        policy, prompts, [[3, 7, 1], [5], [2, 2], [4, 6]], temperature=0.7
    )
    grads = compare(policy, groups, shape, tolerance, "symmetric")
    assert any("visual" in name for name in grads) and any(
        "embed_tokens" in name for name in grads
    )


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(["image", "video"]), max_size=2),
            st.lists(st.integers(1, 5), min_size=1, max_size=3),
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 50),
)
def test_random_group_shapes(tiny_folder, tiny3_folder, shapes, seed):
    policy = load(tiny_folder if seed % 2 else tiny3_folder)
    prompts = [prompt(kinds, seed + i) for i, (kinds, _) in enumerate(shapes)]
    groups, shape = groups_of(policy, prompts, [sizes for _, sizes in shapes], seed)
    compare(policy, groups, shape, 1e-7, "forward")


def test_lora_and_reference(folder):
    policy = load(folder, lora=LoRA(rank=2, vision=True))
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    groups, shape = groups_of(policy, [prompt(["image"], 1)], [[4, 2]])
    grads = compare(policy, groups, shape, 1e-7)
    assert all("lora" in name for name in grads) and any("visual" in name for name in grads)
    wanted = {"raw": ScoreOutputs()}
    now = score_packed(policy, {"raw": groups}, wanted, shape)["raw"].logp
    with policy.reference():
        ref = score_packed(policy, {"raw": groups}, wanted, shape)["raw"].logp
    assert (now - ref).abs().max() > 1e-3
    plain = score_packed(load(folder), {"raw": groups}, wanted, shape)["raw"].logp
    torch.testing.assert_close(ref, plain, rtol=0, atol=1e-9)


@pytest.mark.parametrize("adapters", [True, False])
@pytest.mark.parametrize("run", [score_packed, score_repeated])
def test_the_reference_is_the_start_on_both_paths(folder, run, adapters):
    policy = load(folder, lora=LoRA(rank=2) if adapters else None)
    policy.freeze_reference()
    groups, shape = groups_of(
        policy, [prompt(["image"], 1), prompt([], 2)], [[4, 2], [3]], temperature=0.7
    )
    views, wanted = {"raw": groups, "ref": groups}, {"raw": ScoreOutputs()}
    wanted["ref"] = ScoreOutputs(entropy=True, divergence="forward")
    before = run(policy, views, {"raw": ScoreOutputs(entropy=True)}, shape)["raw"]
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(
                parameter.shape, generator=rng, dtype=parameter.dtype
            )
    policy.stepped()
    after = run(policy, views, wanted, shape)
    torch.testing.assert_close(after["ref"].logp, before.logp, rtol=0, atol=1e-9)
    torch.testing.assert_close(after["ref"].entropy, before.entropy, rtol=0, atol=1e-9)
    # The divergence is between the two sets of weights, and so are the log-probs that a sampled KL is made of.
    own = score_packed(policy, views, wanted, shape)
    torch.testing.assert_close(
        after["ref"].divergence, own["ref"].divergence, rtol=0, atol=1e-9
    )
    assert after["ref"].divergence.max() > 1e-3
    assert (after["raw"].logp - after["ref"].logp).abs().max() > 1e-3
    assert not policy.in_reference


@pytest.mark.parametrize("offload", [False, True], ids=["on the device", "on the CPU"])
@pytest.mark.parametrize("family", ["tiny_folder", "tiny3_folder"])
def test_frozen_copy_is_the_start(request, family, offload):
    policy = load(request.getfixturevalue(family), offload_reference=offload)
    with pytest.raises(ValueError, match="freeze_reference"), policy.reference():
        pass
    policy.freeze_reference()
    groups, shape = groups_of(policy, [prompt(["image"], 1)], [[4, 2]])
    before = score_packed(policy, {"raw": groups}, {"raw": ScoreOutputs()}, shape)["raw"].logp
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(1.1)
    policy.stepped()
    after = score_packed(policy, {"raw": groups}, {"raw": ScoreOutputs()}, shape)["raw"].logp
    with policy.reference():
        ref = score_packed(policy, {"raw": groups}, {"raw": ScoreOutputs()}, shape)["raw"].logp
    assert torch.equal(ref, before) and (after - before).abs().max() > 1e-3
    layers = policy._frozen_copy.model.language_model.layers
    # An offloaded weight is a mere shape while its layer does not compute.
    assert {p.device.type for p in layers.parameters()} == {"meta" if offload else "cpu"}


def test_lora_on_a_half_precision_base_computes_in_it_and_learns_in_fp32(tiny_folder):
    policy = Policy.load(tiny_folder, device="cpu", dtype="bfloat16", lora=LoRA(rank=4))
    optimizer = Optimizer(policy.named_parameters(), Optim(lr=1e-4, weight_decay=0.0))
    groups, shape = groups_of(policy, [prompt(["image"], 1)], [[4, 2]])
    for _ in range(3):
        scores = score_packed(policy, {"raw": groups}, {"raw": ScoreOutputs(grad=True)}, shape)
        (-scores["raw"].logp.sum()).backward()
        assert {p.grad.dtype for p in policy.parameters()} == {torch.float32}
        optimizer.step(planned=3)
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
    assert {m.dtype for m in optimizer.state()["masters"]} == {torch.float32}
    assert all((p != 0).any() for n, p in policy.named_parameters() if "lora_B" in n)


def test_frozen_tower_has_no_graph_and_is_run_once(tiny_folder):
    policy = load(tiny_folder, freeze=("vision", "merger"))
    groups, shape = groups_of(
        policy, [prompt(["image"], 1), prompt(["image"], 1, "Other?")], [[4], [2]]
    )
    for _ in range(3):
        found = score_packed(policy, {"raw": groups}, {"raw": ScoreOutputs(grad=True)}, shape)[
            "raw"
        ]
        found.logp.sum().backward()
        policy.vision.backward()
        policy.stepped()
    assert policy.counters["patches/tower"] == len(groups[0].visual[0].values)
    assert not any("visual" in n for n, p in policy.named_parameters())


def test_counts_are_minimal(tiny_folder):
    policy = load(tiny_folder)
    same = prompt(["image"], 1)
    groups, shape = groups_of(policy, [same, prompt(["image"], 2)], [[3, 4], [2]])
    score_packed(
        policy,
        {"raw": groups, "inverted": noisy(groups)},
        {"raw": ScoreOutputs(grad=True), "inverted": ScoreOutputs()},
        shape,
    )
    prompts = sum(len(g.encoded.ids) for g in groups)
    fed = sum(len(a) - 1 for g in groups for a in g.answers)
    patches = sum(len(g.visual[0].values) for g in groups)
    assert policy.counters["tokens/update"] == policy.counters["tokens/score"] == prompts + fed
    assert policy.counters["patches/tower"] == 2 * patches
    assert policy.counters["tokens/head"] == 2 * 9


def test_row_order_and_group_split_do_not_matter(tiny_folder):
    policy = load(tiny_folder)
    groups, shape = groups_of(
        policy, [prompt(["image"], 1), prompt(["image", "image"], 2)], [[3, 4, 2], [2, 5]]
    )
    whole = score_packed(policy, {"raw": groups}, {"raw": ScoreOutputs(entropy=True)}, shape)[
        "raw"
    ]
    from dataclasses import replace

    halves = [
        replace(
            g,
            answers=g.answers[i : i + 1],
            rows=g.rows[i : i + 1],
            temperatures=g.temperatures[i : i + 1],
        )
        for g in reversed(groups)
        for i in range(len(g.answers))
    ]
    parts = score_packed(policy, {"raw": halves}, {"raw": ScoreOutputs(entropy=True)}, shape)[
        "raw"
    ]
    torch.testing.assert_close(whole.logp, parts.logp, rtol=0, atol=1e-9)
    torch.testing.assert_close(whole.entropy, parts.entropy, rtol=0, atol=1e-9)


def test_user_errors_are_explained(tiny_folder):
    with pytest.raises(ValueError, match="freeze has 'tower'"):
        load(tiny_folder, freeze=("tower",))
    with pytest.raises(ValueError, match="dtype is 'half'"):
        load(tiny_folder, dtype="half")
    with pytest.raises(ValueError, match="no CUDA device"):
        Policy.load(
            tiny_folder, device="cuda"
        ) if not torch.cuda.is_available() else pytest.skip("CUDA is here")


def test_sliding_windows_are_refused_by_the_packed_path_and_right_on_the_other(
    tiny_folder, sliding_folder
):
    with pytest.raises(ValueError, match=r"Layers 1 to 2 .* \(window 8\).*shared-prefix pass"):
        load(sliding_folder)
    policy, full = load(sliding_folder, shared=False), load(tiny_folder, shared=False)
    groups, shape = groups_of(policy, [prompt([], 1)], [[6]])
    wanted = {"raw": ScoreOutputs()}
    seen = score_repeated(policy, {"raw": groups}, wanted, shape)["raw"].logp
    plain = score_repeated(full, {"raw": groups}, wanted, shape)["raw"].logp
    assert (seen - plain).abs().max() > 1e-3, "the window changes the scores, so it is in use"


def test_library_generate_still_pads_correctly(tiny_folder):
    """The attention function without a layout is the library's, with its padding mask."""
    policy = load(tiny_folder, "float32")
    tok = policy.processing.tokenizer
    a = tok("red circle row", return_tensors="pt").input_ids
    pad = torch.full((1, 3), tok.pad_token_id)
    ids, mask = (
        torch.cat([pad, a], 1),
        torch.cat([torch.zeros(1, 3), torch.ones_like(a)], 1).long(),
    )
    kwargs = {"max_new_tokens": 6, "do_sample": False}
    plain = policy.base.generate(input_ids=a, attention_mask=torch.ones_like(a), **kwargs)[
        0, a.shape[1] :
    ]
    padded = policy.base.generate(input_ids=ids, attention_mask=mask, **kwargs)[
        0, ids.shape[1] :
    ]
    assert torch.equal(plain, padded)
