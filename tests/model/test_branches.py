"""Views of a batch: draws keyed by prompt, branch, step and answer; grids never change; nothing rendered twice."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.model.branches import Views, render_branch
from mmrl.model.policy import Policy
from mmrl.perception.masking import PatchMask
from mmrl.perception.perturb import ColourJitter, Flip, ViewChain
from mmrl.types import Media, Now, Prompt, Role, Rollout, View, VisualBranch

NOW = Now(step=3, progress=0.1, seed=5)
MASKED = VisualBranch(PatchMask(0.5, 8))
OWN = VisualBranch(PatchMask(0.5, 8), share_in_group=False)


@dataclass(frozen=True)
class Recorded(View):
    """A view that remembers what it was given and inverts it."""

    changes_geometry = changes_order = False
    calls: list = field(default_factory=list)

    def __call__(self, frames, context, rng, now):
        self.calls.append((tuple(frames.shape), context.prompt.id, context.medium, now.step))
        return 255 - frames


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return Policy.load(tiny_folder, device="cpu", dtype="float32")


def answers(policy, prompts, size=3):
    kinds = torch.full((4,), int(Role.POLICY), dtype=torch.uint8)
    return [
        Rollout(p, number, policy.encode(p).ids, torch.arange(70 + g, 74 + g), kinds, "", "eos")
        for number, p in enumerate(prompts)
        for g in range(size)
    ]


def values(groups):
    return [torch.cat([item.values for item in g.visual]) for g in groups]


DATA = Drawn("lookup", size=8)
PAIR = Drawn("lookup", size=8, pictures=2)


def test_raw_and_reference_show_the_pixels_as_they_are(policy):
    views = Views(policy, answers(policy, [DATA[0], DATA[1]]), {}, NOW)
    for name in ("raw", "ref"):
        groups = views.groups(name, range(6))
        assert [g.rows for g in groups] == [(0, 1, 2), (3, 4, 5)]
        assert all(g.visual is g.encoded.visual for g in groups)


def test_one_draw_serves_a_group_and_grids_stay(policy):
    rollouts = answers(policy, [PAIR[0], PAIR[1]])
    groups = Views(policy, rollouts, {"masked": MASKED}, NOW).groups("masked", range(6))
    assert [g.rows for g in groups] == [(0, 1, 2), (3, 4, 5)]
    for group in groups:
        plain = group.encoded.visual
        assert [item.grid for item in group.visual] == [item.grid for item in plain]
        assert all(
            not torch.equal(a.values, b.values) and a.key != b.key
            for a, b in zip(group.visual, plain, strict=True)
        )
    hidden = [
        (a.values != b.values).any(1)
        for a, b in zip(groups[0].visual, groups[0].encoded.visual, strict=True)
    ]
    assert not torch.equal(hidden[0], hidden[1]), (
        "the pictures of a prompt are masked independently"
    )


def test_answers_of_a_group_can_have_draws_of_their_own(policy):
    rollouts = answers(policy, [DATA[0]], size=4)
    groups = Views(policy, rollouts, {"masked": OWN}, NOW).groups("masked", range(4))
    assert [g.rows for g in groups] == [(0,), (1,), (2,), (3,)]
    assert len({g.visual[0].key for g in groups}) == 4


@pytest.mark.parametrize("branch", [MASKED, OWN], ids=["shared", "own"])
def test_draws_do_not_depend_on_company_or_order_of_reading(policy, branch):
    prompts = [DATA[0], DATA[1], DATA[2]]
    rollouts = answers(policy, prompts)
    whole = Views(policy, rollouts, {"masked": branch}, NOW)
    parts = Views(policy, rollouts, {"masked": branch}, NOW)
    for row in reversed(range(9)):
        alone = parts.groups("masked", [row])[0].visual[0]
        assert torch.equal(whole.pixels("masked", row)[0].values, alone.values)
    last = Views(policy, answers(policy, prompts[::-1]), {"masked": branch}, NOW)
    assert [whole.pixels("masked", r)[0].key for r in (0, 1, 2)] == [
        last.pixels("masked", r)[0].key for r in (6, 7, 8)
    ]


def test_every_part_of_the_key_changes_the_draw(policy):
    rollout = answers(policy, [DATA[0]])[0]

    def shown(name, now, answer=-1):
        return render_branch(policy, rollout.prompt, name, MASKED, now, answer)[0].key

    first = shown("masked", NOW)
    assert first == shown("masked", replace(NOW, progress=0.9)), (
        "progress is time for schedules, not for draws"
    )
    others = [
        shown("masked", replace(NOW, step=4)),
        shown("masked", replace(NOW, seed=6)),
        shown("second", NOW),
        shown("masked", NOW, 0),
    ]
    assert len({first, *others}) == 5


def test_a_view_runs_once_per_medium_however_many_passes_read_it(policy):
    view = Recorded()
    views = Views(
        policy, answers(policy, [PAIR[0], PAIR[1]]), {"inverted": VisualBranch(view)}, NOW
    )
    for _ in range(3):
        views.groups("inverted", [0, 1])
        views.groups("inverted", range(6))
    assert sorted(c[1:3] for c in view.calls) == [
        (PAIR[0].id, 0),
        (PAIR[0].id, 1),
        (PAIR[1].id, 0),
        (PAIR[1].id, 1),
    ]
    assert {c[3] for c in view.calls} == {NOW.step}


def test_the_stage_says_which_pixels_a_view_gets(policy):
    picture = Media(
        torch.randint(
            0,
            256,
            (1, 3, 50, 70),
            dtype=torch.uint8,
            generator=torch.Generator().manual_seed(1),
        )
    )
    prompt = Prompt("odd", [{"role": "user", "content": [{"type": "image"}]}], (picture,))
    sizes = {}
    for stage in ("original", "resized"):
        view = Recorded()
        render_branch(policy, prompt, "b", VisualBranch(view, stage=stage), NOW)
        sizes[stage] = view.calls[0][0]
    assert sizes["original"] == (1, 3, 50, 70) and sizes["resized"] == (
        1,
        3,
        *policy.encode(prompt).visual[0].size,
    )
    assert sizes["resized"] != sizes["original"]


def test_video_and_text(policy):
    clip, text = Drawn("clips", size=2)[0], Drawn("lookup", size=2, pictures=0)[0]
    view = Recorded()
    views = Views(policy, answers(policy, [clip, text], 2), {"b": VisualBranch(view)}, NOW)
    groups = views.groups("b", range(4))
    assert len(view.calls) == 1 and view.calls[0][0][0] == len(clip.media[0].frames)
    assert values(groups[:1])[0].shape == values(views.groups("raw", [0]))[0].shape
    assert groups[1].visual == ()


def test_a_view_that_changes_the_size_is_refused(policy):
    class Shrunk(View):
        changes_geometry = changes_order = False

        def __call__(self, frames, context, rng, now):
            return frames[..., ::2, :]

    with pytest.raises(ValueError, match="must keep shape and dtype"):
        render_branch(policy, DATA[0], "b", VisualBranch(Shrunk()), NOW)


def test_a_view_that_changes_the_answer_is_refused(policy):
    for view in (Flip(), ViewChain((ColourJitter(), Flip()))):
        with pytest.raises(
            ValueError, match=r"'b' cannot show prompt 'drawn:lookup.*changes the geometry"
        ):
            render_branch(policy, DATA[0], "b", VisualBranch(view), NOW)
    free = replace(DATA[0], extra={})
    for prompt, view in ((DATA[0], PatchMask()), (free, Flip())):
        assert render_branch(policy, prompt, "b", VisualBranch(view), NOW)
