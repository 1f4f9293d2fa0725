"""Wide groups in slices, and trees in one row: numbers and gradients as of rows of their own, every token once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmrl.model.load import LoRA
from mmrl.model.packing import Group, collate, pack, split
from mmrl.model.policy import Policy
from mmrl.model.row_draft import Outside
from mmrl.model.row_layout import ROOT, Layout
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.model.tree_row import Node, laid_out
from mmrl.types import Media, Prompt, Role, Rollout
from tests.model.test_row_layout import Waits

torch.set_num_threads(1)


def picture(seed, height=32, width=32):
    rng = torch.Generator().manual_seed(seed)
    return Media(torch.randint(0, 256, (1, 3, height, width), generator=rng, dtype=torch.uint8))


def prompt(seed, pictures=1):
    media = tuple(picture(seed * 10 + n, 32, 32 + 16 * n) for n in range(pictures))
    parts = [{"type": "image"}] * pictures + [
        {"type": "text", "text": "Where?" + " red" * seed}
    ]
    return Prompt(f"p{seed}", [{"role": "user", "content": parts}], media)


def load(folder, dtype, **kwargs):
    torch.manual_seed(0)
    return Policy.load(folder, dtype=dtype, device="cpu", **kwargs)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def folder(request, tiny_folder, tiny3_folder):
    return tiny_folder if request.param == "qwen2_5_vl" else tiny3_folder


def words(policy, count, rng):
    allowed = [i for i in range(60, 300) if i not in policy.processing.banned_ids]
    return torch.tensor(allowed)[torch.randint(len(allowed), (count,), generator=rng)]


def rollouts_of(policy, lengths, seed=0, pictures=1):
    """A rollout per length, group by group."""
    rng = torch.Generator().manual_seed(seed)
    found = []
    for number, group in enumerate(lengths):
        question = prompt(number, pictures)
        ids = policy.encode(question).ids
        for length in group:
            roles = torch.full((length,), int(Role.POLICY), dtype=torch.uint8)
            tokens = words(policy, length, rng)
            found.append(Rollout(question, number, ids, tokens, roles, "", "eos", reward=1.0))
    return found


def groups_of(policy, batch, rows, noisy=False):
    members = {}
    for place, row in enumerate(rows):
        members.setdefault(batch.rollouts[row].group, []).append(place)
    found = []
    for places in members.values():
        chosen = [batch.rollouts[rows[place]] for place in places]
        encoded = policy.encode(chosen[0].prompt)
        seen = encoded.visual
        if noisy:
            seen = tuple(replace(x, pixels=255 - x.pixels, key="noisy" + x.key) for x in seen)
        answers = tuple(r.tokens for r in chosen)
        found.append(Group(encoded, seen, answers, tuple(places), (0.9,) * len(chosen)))
    return found


BOTH = {
    "raw": ScoreOutputs(entropy=True, grad=True),
    "noisy": ScoreOutputs(divergence="forward", grad=True),
}


def learned(policy, batch, parts, wanted=BOTH):
    """Scores of all rows, and the gradient of a loss that reads them, one part after another."""
    policy.model.zero_grad(set_to_none=True)
    policy.vision.clear()
    policy.counters.clear()
    width = batch.tokens.shape[1]
    weight = torch.linspace(-1.0, 1.5, len(batch) * width).view(len(batch), width)
    logps = torch.zeros(len(batch), width, dtype=policy.dtype)
    for part in parts:
        rows = part.tolist()
        views = {
            "raw": groups_of(policy, batch, rows),
            "noisy": groups_of(policy, batch, rows, noisy=True),
            "ref": groups_of(policy, batch, rows),
        }
        scores = score_packed(policy, views, wanted, (len(rows), width))
        terms = [x for s in scores.values() for x in (s.logp, s.divergence) if x is not None]
        sum((weight[part] * term).sum() for term in terms if term.requires_grad).backward()
        logps[part] = scores["raw"].logp.detach()
        policy.end_part()
    policy.vision.backward()
    return logps, {
        n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None
    }


def assert_close(found, expected, logp, gradient):
    assert (found[0] - expected[0]).abs().max() <= logp
    assert set(found[1]) == set(expected[1])
    for name, right in expected[1].items():
        gap = (found[1][name] - right).norm() / right.norm().clamp_min(1e-6)
        assert gap <= gradient, f"{name}: {gap}"


SET_UPS = {
    "whole": ("float64", {}),
    "checkpointing": ("float32", {"checkpointing": True}),
    "adapters": ("float64", {"lora": LoRA(rank=2, vision=True), "checkpointing": True}),
    "frozen tower": ("float32", {"freeze": ("vision",)}),
}


@pytest.mark.parametrize("set_up", SET_UPS)
def test_slices_of_wide_groups_learn_what_one_row_learns(folder, set_up):
    """Log-probs, exact divergences and every gradient, the tower's included; each prompt once per view and pass."""
    dtype, settings = SET_UPS[set_up]
    policy = load(folder, dtype, **settings)
    batch = collate(rollouts_of(policy, [[5, 1, 0, 7], [2, 4], [6, 1]]))
    shortest = min(len(r.prompt_ids) for r in batch.rollouts)
    expected = learned(policy, batch, policy.prompts.parts(batch, 10_000))
    tokens = dict(policy.counters)
    for budget in (shortest + 7, 1):  # some groups fit, none fits
        parts = policy.prompts.parts(batch, budget)
        assert len(parts) > 3
        found = learned(policy, batch, parts)
        tolerances = (1e-5, 1e-4) if dtype == "float32" else (1e-9, 1e-6)
        assert_close(found, expected, *tolerances)
        for name in ("tokens/update", "tokens/head", "patches/tower"):
            assert policy.counters[name] == tokens[name], f"{name} at {budget}"
        assert not policy.prompts.waiting


def test_scores_without_gradient_and_of_the_reference_come_in_slices_too(tiny_folder):
    policy = load(tiny_folder, "float64", lora=LoRA(rank=2))
    batch = collate(rollouts_of(policy, [[5, 3, 7, 3]]))
    views = lambda rows: {n: groups_of(policy, batch, rows) for n in ("raw", "ref")}  # noqa: E731
    wanted = {"raw": ScoreOutputs(), "ref": ScoreOutputs(divergence="forward")}
    shape = batch.tokens.shape
    whole = score_packed(policy, views([0, 1, 2, 3]), wanted, tuple(shape))
    once = policy.counters["tokens/score"]
    policy.counters.clear()
    for part in policy.prompts.parts(batch, 1):
        rows = part.tolist()
        found = score_packed(policy, views(rows), wanted, (len(rows), shape[1]))
        policy.end_part()
        for name in wanted:
            torch.testing.assert_close(found[name].logp, whole[name].logp[part])
    assert policy.counters["tokens/score"] == once


def test_a_view_of_one_answer_alone_opens_nothing(tiny_folder):
    """Its pixels are read once: a prompt held open for it would only take memory."""
    policy = load(tiny_folder, "float32")
    batch = collate(rollouts_of(policy, [[5, 3]]))
    policy.prompts.parts(batch, 1)
    (group,) = groups_of(policy, batch, [0])
    assert policy.prompts.of(replace(group, shared=False), grad=True) is None
    assert policy.prompts.of(group, grad=True) is not None and policy.prompts.waiting
    policy.prompts.clear()
    assert policy.prompts.of(group, grad=True) is None


def test_weights_cut_over_several_processes_repeat_their_prompt(tiny_folder, monkeypatch):
    """Other processes would wait for the calls that only this one makes."""
    policy = load(tiny_folder, "float32")
    batch = collate(rollouts_of(policy, [[5, 3]]))
    monkeypatch.setattr(Policy, "sharded", property(lambda self: True))
    parts = policy.prompts.parts(batch, 1)
    lengths = {0: len(batch.rollouts[0].prompt_ids)}
    assert [x.tolist() for x in parts] == [x.tolist() for x in split(batch, lengths, 1)]
    assert policy.prompts.of(groups_of(policy, batch, [0])[0], grad=False) is None


# a tree in one row


def tree_of(policy, seed):
    """A random tree: a picture at its root and within some nodes; some nodes without tokens. With media by node."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda top: int(torch.randint(top, (1,), generator=rng))  # noqa: E731
    first = policy.encode(prompt(seed))
    nodes = [Node(first.ids, first.positions, first.next_position, ROOT, first.slots)]
    media = [first.visual]
    path = [0]
    for number in range(1, 8):
        path = path[: 1 + draw(len(path))]
        if draw(3) == 0:
            inner = policy.encode(prompt(100 * seed + number))
            node = Node(inner.ids, inner.positions, inner.next_position, path[-1], inner.slots)
            media.append(inner.visual)
        else:
            node = Node.text(words(policy, draw(6), rng), path[-1])
            media.append(())
        nodes.append(node)
        path.append(number)
    return nodes, media


def ways(nodes):
    """Nodes from the root to each leaf."""
    inner = {node.parent for node in nodes}
    found = []
    for leaf in range(len(nodes)):
        if leaf in inner:
            continue
        way, at = [], leaf
        while at != ROOT:
            way.insert(0, at)
            at = nodes[at].parent
        found.append(way)
    return found


def stock_states(policy, nodes, media, way):
    """Last hidden states of one path by the library's own model, with its own positions."""
    ids = torch.cat([nodes[n].ids for n in way])[None]
    seen = [medium for n in way for medium in media[n]]
    placeholder = policy.base.config.image_token_id
    out = policy.base.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=torch.cat([x.values for x in seen]).to(policy.dtype),
        image_grid_thw=torch.tensor([x.grid for x in seen]),
        mm_token_type_ids=(ids == placeholder).long(),
        use_cache=False,
    )
    return out.last_hidden_state[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_tree_in_one_row_is_all_its_paths(folder, dtype):
    policy = load(folder, dtype)
    for seed in (1, 2):
        nodes, media = tree_of(policy, seed)
        row = laid_out(nodes)
        rng = torch.Generator().manual_seed(seed)
        width = policy.base.lm_head.weight.shape[1]

        def grads():
            policy.vision.backward()
            named = policy.named_parameters()
            return {n: p.grad.clone() for n, p in named if p.grad is not None}

        layout = Layout(row.lengths, row.parents)
        flat = [medium for each in media for medium in each]
        states = policy.language(
            row.ids, row.positions, layout, row.visual, policy.vision.features(flat, True)
        )
        pulls = []
        places = []
        for way in ways(nodes):
            places.append(torch.cat([torch.arange(*row.spans[n]) for n in way]))
            pulls.append(torch.randn(len(places[-1]), width, generator=rng).to(policy.dtype))
        pairs = list(zip(places, pulls, strict=True))
        policy.model.zero_grad(set_to_none=True)
        sum((states[at] * pull).sum() for at, pull in pairs).backward()
        mine = (torch.cat([states[at].detach() for at in places]), grads())
        policy.model.zero_grad(set_to_none=True)
        alone = []
        for way, pull in zip(ways(nodes), pulls, strict=True):
            found = stock_states(policy, nodes, media, way)
            (found * pull).sum().backward()
            alone.append(found.detach())
        tolerances = (2e-5, 1e-4) if dtype == "float32" else (1e-9, 1e-6)
        assert_close(mine, (torch.cat(alone), grads()), *tolerances)
        assert layout.length == sum(len(node.ids) for node in nodes), "each token once"
        policy.vision.clear()


def test_an_only_child_goes_on_in_its_parents_segment():
    text = lambda count, parent: Node.text(torch.arange(count), parent)  # noqa: E731
    row = laid_out(
        [text(3, ROOT), text(2, 0), text(4, 1), text(1, 1), text(2, 3), text(5, ROOT)]
    )
    assert row.lengths == (5, 4, 3, 5) and row.parents == (ROOT, 0, 0, ROOT)
    assert row.spans == ((0, 3), (3, 5), (5, 9), (9, 10), (10, 12), (12, 17))
    assert row.before == (-1, 2, 4, 4, 9, -1)
    assert row.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 7, 0, 1, 2, 3, 4]


def test_the_token_before_an_empty_node_is_that_before_it():
    text = lambda count, parent: Node.text(torch.arange(count), parent)  # noqa: E731
    assert laid_out([text(2, ROOT), text(0, 0), text(1, 1), text(1, 1)]).before == (-1, 1, 1, 1)


def test_answers_of_an_open_prompt_are_predicted_behind_the_row(tiny_folder):
    """First tokens by the prompts' last states, which are numbered on behind those of the row."""
    policy = load(tiny_folder, "float32")
    batch = collate(rollouts_of(policy, [[3, 1], [2], [1]], pictures=0))
    groups = groups_of(policy, batch, range(4))
    layers = {0: (torch.zeros(1, 2, 5, 8), torch.zeros(1, 2, 5, 8))}
    outside = [Outside(layers), None, Outside(layers)]
    row = pack(groups, torch.device("cpu"), outside)
    end = len(row.ids)
    assert end == 2 + len(groups[1].encoded.ids) + 1
    assert row.predict.tolist() == [end, 0, 1, end, end - 2, end - 1, end + 1]
    assert [past.span for past in row.layout.pasts] == [(0, 2)]
    assert row.positions[0, :2].tolist() == [
        groups[0].encoded.next_position + i for i in (0, 1)
    ]


# what the host waits for


def test_a_pass_never_waits_for_the_device(folder):
    """From the packed groups to every gradient."""
    policy = load(folder, "float32")
    batch = collate(rollouts_of(policy, [[5, 3, 2], [4, 4]]))
    groups = groups_of(policy, batch, range(5))
    # Before: what the tower waits for is its own tests' matter.
    policy.vision.features([medium for group in groups for medium in group.visual], grad=True)
    with Waits() as waits:
        wanted = {"raw": ScoreOutputs(entropy=True, grad=True)}
        scores = score_packed(policy, {"raw": groups}, wanted, (5, 5))["raw"]
        (scores.logp.sum() + scores.entropy.sum()).backward()
    assert not waits.found
