"""Pictures and clips inside answers: numbers and gradients of trees that show them, places, draws and refusals."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import torch

from mmrl.ground.faults import BadRow
from mmrl.model.answer_media import WITHIN, AnswerMedia, observed
from mmrl.model.branches import Views
from mmrl.model.packing import collate, pack
from mmrl.model.reference_scores import score_repeated
from mmrl.model.row_layout import ROOT
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.perception.masking import PatchMask
from mmrl.types import Media, Now, Prompt, Role, Rollout, View, VisualBranch
from tests.model.test_answer_trees import CASES, assert_alike, random_ways
from tests.model.test_open_prompts import load, picture, prompt, words

torch.set_num_threads(1)
NOW = Now(step=2, progress=0.1, seed=3)
MASKED = VisualBranch(PatchMask(0.5, 8), grad=True)
OWN = VisualBranch(PatchMask(0.5, 8), grad=True, share_in_group=False)
START, END = "<|vision_start|>", "<|vision_end|>"


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def folder(request, tiny_folder, tiny3_folder):
    return tiny_folder if request.param == "qwen2_5_vl" else tiny3_folder


def clip(seed):
    frames = torch.cat([picture(seed + n).frames for n in range(4)])
    return Media(frames, torch.arange(4.0, dtype=torch.float64), 4.0)


def result(policy, medium):
    """What a tool puts into an answer: its ids and their roles."""
    family = policy.family
    pad = family.video if medium.is_video else family.image
    ids = observed(policy.processing, f"{START}{pad}{END}", (medium,))
    return ids, torch.full((len(ids),), int(Role.OBSERVATION), dtype=torch.uint8)


def said(policy, count, rng):
    return words(policy, count, rng), torch.full((count,), int(Role.POLICY), dtype=torch.uint8)


def joined(policy, question, number, pieces, media=(), path=()):
    """A rollout of pieces (ids, roles)."""
    tokens, roles = (torch.cat(each) for each in zip(*pieces, strict=True))
    ids = policy.encode(question).ids
    return Rollout(
        question, number, ids, tokens, roles, "", "eos", media=media, path=path, reward=1.0
    )


def tree_rollouts(policy, seed, groups=2, nodes=6):
    """Random trees: of each group node 1 and every third node show a picture, one node a clip."""
    chance, rng = random.Random(seed), torch.Generator().manual_seed(seed)
    found = []
    for number in range(groups):
        question = prompt(number)
        ways = random_ways(chance, nodes)
        counts = {node: count for way in ways for node, count in way}
        held = {}
        for node, count in counts.items():
            pieces, media = [said(policy, count, rng)], ()
            if node % 3 == 1:
                medium = clip(seed + node) if node == 4 else picture(seed + node, 32, 48)
                pieces, media = [*pieces, result(policy, medium)], (medium,)
            held[node] = pieces, media
        for way in ways:
            pieces = [piece for node, _ in way for piece in held[node][0]]
            media = tuple(medium for node, _ in way for medium in held[node][1])
            path = tuple((n, sum(len(ids) for ids, _ in held[n][0])) for n, _ in way)
            shares = path if chance.random() < 0.8 else ()
            found.append(joined(policy, question, number, pieces, media, shares))
    return found


WANTED = {
    "raw": ScoreOutputs(entropy=True, top=3, grad=True),
    "masked": ScoreOutputs(entropy=True, divergence="forward", grad=True),
}


def learned(policy, batch, parts, score, branch=MASKED):
    """Scores of each part and all gradients of a loss that reads them."""
    policy.model.zero_grad(set_to_none=True)
    policy.vision.clear()
    policy.counters.clear()
    views = Views(policy, batch.rollouts, {"masked": branch}, NOW)
    width = batch.tokens.shape[1]
    weight = torch.linspace(-1.0, 1.5, len(batch) * width).view(len(batch), width)
    kept = []
    for part in parts:
        rows = part.tolist()
        seen = {name: views.groups(name, rows) for name in WANTED}
        scores = score(policy, seen, WANTED, (len(rows), width))
        raw, masked = scores["raw"], scores["masked"]
        terms = (raw.logp, raw.entropy, masked.logp, masked.entropy, masked.divergence)
        # Reference rows hold entropies of padding too.
        on = batch.tokens[part] * 0 + torch.tensor(
            [
                [column < len(batch.rollouts[row].tokens) for column in range(width)]
                for row in rows
            ]
        )
        sum((on * weight[part] * term).sum() for term in terms).backward()
        kept.append({"raw": raw.logp.detach(), "masked": masked.logp.detach()})
        kept[-1] |= {"entropy": (on * raw.entropy).detach()}
        kept[-1] |= {"divergence": (on * masked.divergence).detach()}
        policy.end_part()
    policy.vision.backward()
    grads = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    return kept, grads


@pytest.mark.parametrize("case", CASES)
def test_trees_with_pictures_in_their_nodes_are_the_repeated_paths(folder, case):
    """Log-probs, entropies, exact divergences and every gradient, the tower's included; each token once."""
    dtype, set_up, value, gradient = CASES[case]
    policy = load(folder, dtype, **set_up)
    for seed in range(2 if case == "fp64" else 1):
        batch = collate(tree_rollouts(policy, seed))
        assert any(rollout.media for rollout in batch.rollouts)
        whole = [torch.arange(len(batch))]
        expected = learned(policy, batch, whole, score_repeated)
        found = learned(policy, batch, whole, score_packed)
        assert_alike(found, expected, value, gradient)
        assert set(found[1]) == set(expected[1])
        groups = Views(policy, batch.rollouts, {}, NOW).groups("raw", range(len(batch)))
        # Two views, and of each every token of the trees once.
        assert policy.counters["tokens/update"] == 2 * sum(group.size for group in groups)
    if case != "fp64":
        return
    # A draw per answer shares no pixels, so no node either.
    expected = learned(policy, batch, whole, score_repeated, OWN)
    assert_alike(learned(policy, batch, whole, score_packed, OWN), expected, value, gradient)


def fan(policy, pictures):
    """Words, a picture and four ends, the first of which shows one of its own."""
    rng, medium = torch.Generator().manual_seed(6), picture(5, 32, 48)
    begin = [said(policy, 2, rng)], [said(policy, 1, rng), result(policy, medium)]
    found = []
    for number in range(4):
        own = (picture(40),) if number == 0 else ()
        end = [*(result(policy, one) for one in own), said(policy, 5, rng)]
        path = tuple(
            (node, sum(len(ids) for ids, _ in pieces))
            for node, pieces in zip((0, 1, 2 + number), (*begin, end), strict=True)
        )
        pieces = [*begin[0], *begin[1], *end]
        question = found[0].prompt if found else prompt(0, pictures)
        found.append(joined(policy, question, 0, pieces, (medium, *own), path))
    return found


@pytest.mark.parametrize("pictures", [1, 0])
def test_slices_of_a_tree_with_pictures_are_the_whole(folder, pictures):
    """Pieces that several slices read are run once, also where views differ in the answers' pictures alone."""
    policy = load(folder, "float64")
    batch = collate(fan(policy, pictures))
    policy.prompts.parts(batch, 100_000)
    (whole,), right = learned(policy, batch, [torch.arange(len(batch))], score_packed)
    in_tree = policy.counters["tokens/update"]
    parts = policy.prompts.parts(batch, len(batch.rollouts[0].prompt_ids) + 20)
    assert len(parts) > 1
    opened = []
    run = policy.prompts._run_limb
    policy.prompts._run_limb = lambda node, shown, *rest: (
        opened.append(len(shown)) or run(node, shown, *rest)
    )
    pieces, grads = learned(policy, batch, parts, score_packed)
    # A prompt without pictures, and words behind it, are the same under both views.
    assert opened == ([0, 1, 0, 1] if pictures else [0, 1, 1])
    alike = 0 if pictures else len(batch.rollouts[0].prompt_ids) + 2
    assert policy.counters["tokens/update"] == in_tree - alike
    for part, piece in zip(parts, pieces, strict=True):
        for name, number in piece.items():
            assert (number - whole[name][part]).abs().max() < 1e-9, name
    assert set(grads) == set(right)
    for name, grad in right.items():
        assert (grads[name] - grad).norm() <= 1e-6 * grad.norm().clamp_min(1e-6), name


def test_a_path_with_pictures_is_what_the_library_computes(folder):
    """The stock model, with its own positions and its own way to put pictures in."""
    from transformers import AutoModelForImageTextToText

    policy = load(folder, "float32")
    rng = torch.Generator().manual_seed(1)
    media = picture(1, 32, 64), picture(2, 64, 32)
    pieces = [said(policy, 3, rng)]
    for medium in media:
        pieces += [result(policy, medium), said(policy, 2, rng)]
    one = joined(policy, prompt(3), 0, pieces, media)
    views = Views(policy, [one], {}, NOW)
    (group,) = views.groups("raw", [0])
    length = len(one.tokens)
    found = score_packed(policy, {"raw": [group]}, {"raw": ScoreOutputs()}, (1, length))
    encoded, (inside,) = group.encoded, group.inside
    ids = torch.cat([encoded.ids, one.tokens])[None]
    pad = policy.processing.config.image_token_id
    stock = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    shown = (*group.visual, *inside.visual)
    with torch.no_grad():
        logits = stock(
            input_ids=ids,
            mm_token_type_ids=(ids == pad).int(),
            attention_mask=torch.ones_like(ids),
            pixel_values=torch.cat([medium.values for medium in shown]),
            image_grid_thw=torch.tensor([medium.grid for medium in shown]),
        ).logits[0]
    logp = logits[len(encoded.ids) - 1 : -1].log_softmax(-1)
    right = logp.gather(1, one.tokens[:, None])[:, 0]
    assert (found["raw"].logp[0] - right).abs().max() < 1e-4


def forked(policy, first=0, second=0):
    """Two answers with a picture in what they share, and one that shows another behind it."""
    rng = torch.Generator().manual_seed(4)
    seen, other = picture(7), picture(8)
    begin, shown = said(policy, 3, rng), result(policy, seen)
    ends = [said(policy, 2, rng) for _ in range(2)]
    count = 3 + len(shown[0])
    question = prompt(1)
    one = joined(
        policy, question, 0, [begin, shown, ends[0]], (seen,), ((0, count), (1, first or 2))
    )
    pieces = [begin, shown, result(policy, other), ends[1]]
    rest = len(pieces[2][0]) + 2
    two = joined(policy, question, 0, pieces, (seen, other), ((0, count), (second or 2, rest)))
    return one, two


def test_a_picture_of_a_node_goes_through_the_tower_once(folder):
    policy = load(folder, "float32")
    one, two = forked(policy)
    views = Views(policy, [one, two], {}, NOW)
    (group,) = views.groups("raw", [0, 1])
    policy.counters.clear()
    policy.vision.clear()
    score_packed(policy, {"raw": [group]}, {"raw": ScoreOutputs()}, (2, 40))
    distinct = [*group.visual, *group.inside[1].visual]
    assert policy.counters["patches/tower"] == sum(map(len, distinct))
    row = pack([group], torch.device("cpu"))
    assert [medium.key for medium in row.shown] == [medium.key for medium in distinct]
    assert row.visual.tolist() == sorted(row.visual.tolist())
    pads = torch.tensor(policy.processing.config.image_token_id)
    assert torch.equal((row.ids == pads).nonzero()[:, 0], row.visual)
    assert policy.counters["tokens/score"] == len(row.ids) == group.size


def test_positions_advance_behind_a_picture_by_its_longest_side(folder):
    policy = load(folder, "float32")
    _, two = forked(policy)
    inside = AnswerMedia(policy.processing).of(two)
    start = int(inside.slots[0][0])
    after = int(inside.slots[0][-1]) + 1
    _, rows, columns = (n // m for n, m in zip(inside.visual[0].grid, (1, 2, 2), strict=True))
    assert rows * columns == after - start
    assert inside.begins[after] == inside.begins[start] + max(rows, columns)
    assert inside.begins[start + 1 : after].tolist() == [WITHIN] * (after - start - 1)
    # The same numbers wherever the node lies.
    node = inside.node(two.tokens[after:], after, len(two.tokens), ROOT, 50)
    assert torch.equal(node.positions + inside.begins[after], inside.positions[:, after:])
    assert node.base == 50 and int(node.slots[0][0]) == int(inside.slots[1][0]) - after


@dataclass(frozen=True)
class Noted(View):
    """Notes what it is asked to show."""

    asked: list
    changes_geometry = changes_order = False

    def __call__(self, frames, context, rng, now):
        medium = context.prompt.media[context.medium]
        assert frames.shape == medium.frames.shape
        self.asked.append((context.medium, float(torch.rand(1, generator=rng))))
        return 255 - frames


def test_a_branch_draws_a_picture_of_a_node_once_and_alike(tiny_folder):
    """Behind the prompt's own pictures, with the branch's keyed draw."""
    policy = load(tiny_folder, "float32")
    one, two = forked(policy)
    asked = []
    branch = VisualBranch(Noted(asked))
    views = Views(policy, [one, two], {"seen": branch}, NOW)
    (group,) = views.groups("seen", [0, 1])
    assert [place for place, _ in asked] == [0, 1, 2]
    assert len({draw for _, draw in asked}) == 3
    plain = AnswerMedia(policy.processing).of(two)
    dark, (first, second) = group.inside[1].visual, plain.visual
    assert torch.equal(dark[0].pixels, 255 - first.pixels)
    assert torch.equal(dark[1].pixels, 255 - second.pixels)
    assert group.inside[0].visual[0].key == dark[0].key != first.key
    assert views.shown("seen", 1) == group.visual + dark
    again = Views(policy, [two], {"seen": branch}, NOW)
    again.groups("seen", [0])
    assert sorted(asked[3:]) == sorted(asked[:3])


def changed(rollout, **fields):
    return replace(rollout, **fields)


BAD = {
    "no medium": (lambda r: changed(r, media=()), "placeholders of visual tokens, and its 0"),
    "one too many": (lambda r: changed(r, media=r.media * 2), "other tokens stand there"),
    "another size": (
        lambda r: changed(r, media=(picture(1, 64, 64),)),
        "its medium 0, a picture, takes",
    ),
    "a clip": (lambda r: changed(r, media=(clip(1),)), "a clip, takes"),
    "role": (lambda r: changed(r, roles=r.roles * 0), "not all of the role OBSERVATION"),
    "at the end": (
        lambda r: changed(r, tokens=r.tokens[:-3], roles=r.roles[:-3]),
        "ends with a picture or clip",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_answers_whose_placeholders_and_media_do_not_fit_are_refused(tiny_folder, case):
    policy = load(tiny_folder, "float32")
    spoil, problem = BAD[case]
    one, _ = forked(policy)
    views = Views(policy, [spoil(one)], {}, NOW)
    with pytest.raises(ValueError, match="'p1' cannot be shown to the model") as refused:
        views.groups("raw", [0])
    assert problem in str(refused.value)


def test_nodes_that_cut_or_differ_in_a_picture_are_refused(tiny_folder):
    policy = load(tiny_folder, "float32")
    one, two = forked(policy)
    cut = tuple(
        changed(rollout, path=((0, 5), (number, len(rollout.tokens) - 5)))
        for number, rollout in enumerate((one, two), 1)
    )
    (group,) = Views(policy, cut, {}, NOW).groups("raw", [0, 1])
    with pytest.raises(ValueError, match="ends after 5 tokens, within the tokens of a picture"):
        pack([group], torch.device("cpu"))
    other = changed(two, media=(picture(9), two.media[1]))
    (group,) = Views(policy, (one, other), {}, NOW).groups("raw", [0, 1])
    with pytest.raises(ValueError, match="pictures that they show there differ"):
        pack([group], torch.device("cpu"))


def test_a_medium_that_cannot_be_shown_is_told_when_it_is_put_in(tiny_folder):
    policy = load(tiny_folder, "float32")
    line = Media(torch.zeros(1, 3, 2, 2000, dtype=torch.uint8))
    with pytest.raises(BadRow, match="a picture inside an answer"):
        result(policy, line)


def test_answers_without_media_go_todays_way(tiny_folder):
    policy = load(tiny_folder, "float32")
    rng = torch.Generator().manual_seed(0)
    one = joined(
        policy, Prompt("t", [{"role": "user", "content": "Hi"}]), 0, [said(policy, 4, rng)]
    )
    (group,) = Views(policy, [one], {}, NOW).groups("raw", [0])
    assert group.inside == ()
