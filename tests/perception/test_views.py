"""Every view keeps shape, dtype and its input, repeats with its generator, and does what it says."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from mmrl.ground.seeds import generator
from mmrl.losses.schedules import Linear, Sigmoid
from mmrl.perception.masking import Blank, EvidenceMask, FrameMask, PatchMask, SaliencyMask
from mmrl.perception.noise import (
    DiffusionNoise,
    GaussianNoise,
    diffusion_scales,
)
from mmrl.perception.perturb import (
    JPEG,
    Blur,
    ColourJitter,
    Crop,
    Flip,
    Grayscale,
    RandomRotation,
    Transform,
    ViewChain,
)
from mmrl.perception.timing import FrameDrop, FrameShuffle, Reverse, TemporalCrop
from mmrl.types import Media, Now, Prompt, ViewContext

GOLDEN = Path(__file__).parents[1] / "golden"
START, MIDDLE, END = (Now(step=0, progress=share) for share in (0.0, 0.5, 1.0))
VIEWS = [
    PatchMask(0.5, 3),
    SaliencyMask(0.5),
    EvidenceMask(),
    EvidenceMask("outside"),
    Blank(9),
    FrameMask(),
    GaussianNoise(),
    DiffusionNoise(),
    Flip(0.5, 0.5),
    RandomRotation(45),
    Crop(0.5),
    ColourJitter(0.5, 0.5, 0.5, 0.3),
    JPEG(),
    Blur(3.0),
    Grayscale(),
    FrameShuffle(),
    FrameDrop(),
    TemporalCrop(),
    Reverse(),
    Transform(v2.RandomErasing(p=1.0)),
    ViewChain((Flip(), PatchMask(0.5, 3))),
]
RANDOM = [
    view
    for view in VIEWS
    if not isinstance(
        view, SaliencyMask | EvidenceMask | Blank | JPEG | Blur | Grayscale | Reverse
    )
]


def clip(frames: int = 6, height: int = 20, width: int = 30, seed: int = 0) -> torch.Tensor:
    shape = (frames, 3, height, width)
    return torch.randint(
        1, 255, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def context(frames: torch.Tensor, evidence: object = None, medium: int = 0) -> ViewContext:
    media = tuple(
        Media(frames, torch.arange(len(frames), dtype=torch.float64) / 2)
        for _ in range(medium + 1)
    )
    extra = {"evidence": evidence if evidence is not None else {"frames": [0]}}
    saliency = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    return ViewContext(Prompt("p", (), media, extra=extra), medium, saliency)


@pytest.mark.parametrize("view", VIEWS, ids=repr)
@settings(max_examples=8, deadline=None)
@given(frames=st.integers(1, 4), height=st.integers(1, 33), width=st.integers(1, 33))
def test_every_view_keeps_shape_dtype_and_input(view, frames, height, width):
    shown = clip(frames, height, width)
    before = shown.clone()
    seen = view(shown, context(shown), generator("v"), START)
    assert seen.shape == shown.shape and seen.dtype == torch.uint8
    assert torch.equal(shown, before)


@pytest.mark.parametrize("view", RANDOM, ids=repr)
def test_random_views_repeat_with_the_generator_and_leave_the_global_one_alone(view):
    shown = clip()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = view(shown, context(shown), generator("a"), START)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, view(shown, context(shown), generator("a"), START))
    others = [view(shown, context(shown), generator("b", index), START) for index in range(8)]
    assert any(not torch.equal(first, other) for other in others)


@pytest.mark.parametrize("view", VIEWS, ids=repr)
def test_every_view_declares_what_it_changes_and_refuses_other_pixels(view):
    assert isinstance(view.changes_geometry, bool) and isinstance(view.changes_order, bool)
    with pytest.raises(ValueError, match="uint8 RGB frames"):
        view(clip().float(), context(clip()), generator("v"), START)


@pytest.mark.parametrize(
    "build",
    [
        lambda: GaussianNoise(-0.1),
        lambda: DiffusionNoise(1000),
        lambda: DiffusionNoise(500, Sigmoid(2.0)),
        lambda: Flip(1.5),
        lambda: RandomRotation(-1),
        lambda: Crop(0.0),
        lambda: ColourJitter(hue=0.6),
        lambda: ColourJitter(brightness=-1),
        lambda: JPEG(0),
        lambda: Blur(0.0),
        lambda: FrameDrop(2.0),
        lambda: TemporalCrop(0.0),
        lambda: FrameShuffle(0),
        lambda: FrameMask(0.5, 0),
        lambda: SaliencyMask(-0.1),
        lambda: ViewChain(()),
    ],
)
def test_bad_settings_name_the_field(build):
    with pytest.raises(ValueError, match=r"^\w+\.\w+"):
        build()


def test_saliency_mask_hides_the_floor_of_the_share_and_the_most_salient():
    shown = clip(1, 30, 40)
    saliency = torch.arange(12.0).view(3, 4)
    for ratio, count in ((0.0, 0), (0.3, 3), (0.6, 7), (1.0, 12)):
        seen = SaliencyMask(ratio)(
            shown, ViewContext(Prompt("p", ()), 0, saliency), generator("s"), START
        )
        cells = (seen[0] == 0).all(0).view(3, 10, 4, 10).permute(0, 2, 1, 3).reshape(12, -1)
        assert cells.all(1).tolist() == [cell >= 12 - count for cell in range(12)]
        assert (cells.all(1) == cells.any(1)).all()


def test_saliency_mask_of_a_clip_follows_the_moments():
    shown = clip(4, 4, 4)
    saliency = torch.zeros(2, 2, 2)
    saliency[0, 0, 0] = saliency[1, 1, 1] = 1.0
    seen = SaliencyMask(0.25)(
        shown, ViewContext(Prompt("p", ()), 0, saliency), generator("s"), START
    )
    hidden = (seen == 0).all(1)
    assert hidden[:2, :2, :2].all() and hidden[2:, 2:, 2:].all() and int(hidden.sum()) == 16


def test_saliency_mask_without_saliency_says_what_to_do():
    with pytest.raises(ValueError, match="SeenBy"):
        SaliencyMask()(clip(), ViewContext(Prompt("p", ()), 0), generator("s"), START)


def test_evidence_by_box_scales_with_the_picture_and_sides_complement():
    original, resized = clip(1, 20, 40), clip(1, 10, 20, seed=3)
    boxed = context(original, {"boxes": [[4, 2, 12, 8]]})
    for frames, (left, top, right, bottom) in (
        (original, (4, 2, 12, 8)),
        (resized, (2, 1, 6, 4)),
    ):
        inside = EvidenceMask("inside")(frames, boxed, generator("e"), START)
        outside = EvidenceMask("outside")(frames, boxed, generator("e"), START)
        hidden = (inside[0] == 0).all(0)
        expected = torch.zeros_like(hidden)
        expected[top:bottom, left:right] = True
        assert torch.equal(hidden, expected)
        assert torch.equal((outside[0] == 0).all(0), ~expected)


@pytest.mark.parametrize(
    "evidence, frames",
    [
        ({"frames": [1, 4]}, [1, 4]),
        ({"span": [0.5, 1.5]}, [1, 2, 3]),
        ({"span": [1.1, 1.2]}, [2]),
        ([{"frames": [0]}, {"frames": [5]}, {"visual": 3, "frames": [2]}], [0, 5]),
        ({"mask": torch.tensor([0, 1, 0, 0, 0, 0]).view(6, 1, 1).expand(6, 5, 5)}, [1]),
    ],
)
def test_evidence_by_frames_span_and_mask(evidence, frames):
    shown = clip()
    seen = EvidenceMask()(shown, context(shown, evidence), generator("e"), START)
    assert (seen == 0).flatten(1).all(1).nonzero()[:, 0].tolist() == frames
    assert torch.equal(seen[0], shown[0]) == (0 not in frames)


def test_evidence_of_another_medium_hides_nothing_here():
    shown = clip()
    other = context(shown, {"visual": 0, "frames": [0]}, medium=1)
    assert torch.equal(EvidenceMask()(shown, other, generator("e"), START), shown)


@pytest.mark.parametrize(
    "evidence, message",
    [
        ({"box": [1, 2, 3, 4]}, "cannot read the evidence"),
        ({"boxes": [[5, 5, 2, 9]]}, "x0 < x1"),
        ({"frames": [9]}, "count from 0 to 5"),
        ({"mask": [True]}, r"must be \[H, W\]"),
    ],
)
def test_unreadable_evidence_is_refused_with_the_prompt(evidence, message):
    with pytest.raises(ValueError, match=f"prompt 'p'.*{message}"):
        EvidenceMask()(clip(), context(clip(), evidence), generator("e"), START)


def test_prompt_without_evidence_is_refused():
    with pytest.raises(ValueError, match="has no evidence"):
        EvidenceMask()(clip(), ViewContext(Prompt("p", ()), 0), generator("e"), START)


@pytest.mark.parametrize("ratio, block", [(0.0, 1), (1.0, 1), (0.5, 2)])
def test_frame_mask_hides_whole_runs(ratio, block):
    shown = clip(64, 2, 2)
    hidden = FrameMask(ratio, block)(shown, context(shown), generator("f"), START) == 0
    whole = hidden.flatten(1)
    assert (whole.all(1) == whole.any(1)).all()
    share = whole.all(1).float().mean().item()
    assert share == ratio if ratio in (0.0, 1.0) else 0.2 < share < 0.8
    assert (whole[0::2].all(1) == whole[1::2].all(1)).all()


def test_gaussian_noise_has_the_stated_deviation_and_ends_at_zero():
    shown = torch.full((1, 3, 200, 200), 128, dtype=torch.uint8)
    noise = GaussianNoise(0.1, anneal=Linear(1.0, 0.0))
    for now, sigma in ((START, 0.1), (MIDDLE, 0.05)):
        seen = noise(shown, context(shown), generator("n"), now).float()
        assert abs(seen.std().item() / 255 - sigma) < 0.003
        assert abs(seen.mean().item() - 127.5) < 0.3  # truncation takes half a grey level
    assert torch.equal(noise(shown, context(shown), generator("n"), END), shown)
    assert torch.equal(GaussianNoise(0.0)(shown, context(shown), generator("n"), START), shown)


def test_diffusion_table_of_the_papers():
    stated = {100: 0.058, 200: 0.110, 300: 0.194, 400: 0.327, 450: 0.413, 500: 0.505}
    for t, std in stated.items():
        kept, added = diffusion_scales(t)
        assert round(added, 3) == std and abs(kept**2 + added**2 - 1) < 1e-12
    assert diffusion_scales(0) == (1.0, 0.0)
    added = [diffusion_scales(t)[1] for t in range(1000)]
    assert added == sorted(added)


def test_dvrp_and_noisy_rollout_anneal_as_printed():
    dvrp = [DiffusionNoise(500).timestep(Now(0, share)) for share in (0, 0.25, 0.5, 0.75, 1)]
    assert dvrp == [496, 462, 250, 37, 3]  # floors of 496.7, 462.1, 250, 37.9, 3.3
    assert DiffusionNoise(500, anneal=None).timestep(END) == 500
    noise = DiffusionNoise(500, Sigmoid(1.0, 30.0, 40 / 60))  # of NoisyRollout on Geometry3K
    for step in range(0, 61, 5):
        printed = 500 * (1 - 1 / (1 + 2.718281828459045 ** (-30 * (step - 40) / 60)))
        assert noise.timestep(Now(step, step / 60)) == int(printed + 1e-9)
    assert noise.timestep(Now(0, 0.0)) == 499 and noise.timestep(Now(60, 1.0)) == 0


def test_noisy_rollout_has_the_official_timestep_at_each_of_sixty_steps():
    official = json.loads((GOLDEN / "objectives" / "noisy_rollout_steps.json").read_text())
    noise = DiffusionNoise(500, Sigmoid(1.0, 30.0, 40 / 60))
    ours = [noise.timestep(Now(step, step / 60)) for step in range(1, 61)]
    assert ours == official["timesteps"] and ours[39] == 250


def test_diffusion_noise_keeps_the_mean_and_is_the_identity_at_zero():
    shown = torch.full((1, 3, 100, 100), 200, dtype=torch.uint8)
    noise = DiffusionNoise(200, anneal=None)
    seen = noise(shown, context(shown), generator("d"), START).float()
    kept, added = diffusion_scales(200)
    assert abs(seen.mean().item() - (200 * kept - 0.5)) < 1.0
    assert abs(seen.std().item() / 255 - added) < 0.01
    assert torch.equal(DiffusionNoise(0)(shown, context(shown), generator("d"), START), shown)


def test_flip_rotation_and_crop_move_pixels_and_say_so():
    shown = clip(2)
    assert torch.equal(
        Flip(1.0, 0.0)(shown, context(shown), generator("g"), START), shown.flip(-1)
    )
    assert torch.equal(
        Flip(0.0, 1.0)(shown, context(shown), generator("g"), START), shown.flip(-2)
    )
    assert torch.equal(Crop(1.0)(shown, context(shown), generator("g"), START), shown)
    assert torch.equal(RandomRotation(0.0)(shown, context(shown), generator("g"), START), shown)
    assert (
        Flip().changes_geometry
        and RandomRotation().changes_geometry
        and Crop().changes_geometry
    )
    assert not ColourJitter().changes_geometry and not FrameDrop().changes_order
    assert (
        FrameShuffle().changes_order
        and Reverse().changes_order
        and TemporalCrop().changes_order
    )


def test_colour_views_keep_places():
    shown = clip(1)
    grey = Grayscale()(shown, context(shown), generator("g"), START)
    assert (grey[:, 0] == grey[:, 1]).all() and (grey[:, 1] == grey[:, 2]).all()
    flat = torch.full((1, 3, 9, 9), 77, dtype=torch.uint8)
    assert torch.equal(Blur(2.0)(flat, context(flat), generator("g"), START), flat)
    assert torch.equal(
        ColourJitter(0, 0, 0, 0)(shown, context(shown), generator("g"), START), shown
    )


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 17),
    block=st.integers(1, 5),
    share=st.floats(0.05, 1.0),
    ratio=st.floats(0.0, 1.0),
)
def test_timing_views_show_existing_frames_only(count, block, share, ratio):
    shown = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 3, 2, 2)
    order = lambda view: view(shown, context(shown), generator("t"), START)[:, 0, 0, 0].tolist()  # noqa: E731
    shuffled = order(FrameShuffle(block))
    assert sorted(shuffled) == list(range(count))
    assert order(Reverse()) == list(range(count))[::-1]
    dropped = order(FrameDrop(ratio))
    assert dropped == sorted(dropped)
    assert all(
        shown_at == dropped[0] or shown_at <= place for place, shown_at in enumerate(dropped)
    )
    cropped = order(TemporalCrop(share))
    length = max(round(count * share), 1)
    assert cropped == sorted(cropped) and sorted(set(cropped)) == list(
        range(cropped[0], cropped[0] + length)
    )
    assert order(FrameDrop(0.0)) == order(TemporalCrop(1.0)) == list(range(count))
    assert len(set(order(FrameDrop(1.0)))) == 1


def test_any_torchvision_transform_is_a_view():
    shown = clip(2)
    crop = Transform(v2.Compose([v2.RandomResizedCrop((20, 30)), v2.RandomHorizontalFlip()]))
    assert crop(shown, context(shown), generator("x"), START).shape == shown.shape
    with pytest.raises(ValueError, match=r"v2\.Resize"):
        Transform(v2.Resize((7, 7)))(shown, context(shown), generator("x"), START)
    with pytest.raises(ValueError, match="ToDtype"):
        Transform(v2.ToDtype(torch.float32, scale=True))(
            shown, context(shown), generator("x"), START
        )


def test_a_failing_transform_still_restores_the_global_generator():
    def fails(frames: torch.Tensor) -> torch.Tensor:
        torch.rand(3)
        raise RuntimeError("broken")

    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="broken"):
        Transform(fails)(clip(), context(clip()), generator("x"), START)
    assert torch.equal(torch.get_rng_state(), state)


def test_chain_applies_in_order_and_unites_declarations():
    shown = clip(2)
    chained = ViewChain((Flip(1.0), Blank(3)))
    assert (chained(shown, context(shown), generator("c"), START) == 3).all()
    assert chained.changes_geometry and not chained.changes_order and not chained.reads_saliency
    assert ViewChain((SaliencyMask(), Reverse())).reads_saliency
    rng = generator("c")
    expected = PatchMask(0.5, 3)(
        GaussianNoise()(shown, context(shown), rng, START), context(shown), rng, START
    )
    assert torch.equal(
        ViewChain((GaussianNoise(), PatchMask(0.5, 3)))(
            shown, context(shown), generator("c"), START
        ),
        expected,
    )
