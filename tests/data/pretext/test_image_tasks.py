"""Image tasks mean what they say: undoing the answer restores the picture."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import chisquare

from mmrl.data.pretext.catalogue import find
from mmrl.data.pretext.contract import Draft, Medium, Reject, Sample
from mmrl.data.pretext.craft.coordinates import corners, homography, project, warp
from mmrl.data.pretext.craft.procedural import depth_scene, landscape, scene
from mmrl.data.pretext.stream.samples import make
from mmrl.data.pretext.tasks import edit_program, patchfit
from mmrl.ground.seeds import Streams

MEDIA = [scene(3, index) for index in range(4)]


def samples(name: str, count: int = 4, **knobs) -> list[Sample]:
    """Samples on drawn scenes; rejected media are skipped."""
    task = find(name)
    found = [make(task, [MEDIA[i % 4]], knobs, index=i) for i in range(3 * count)]
    return [sample for sample in found if isinstance(sample, Sample)][:count]


def test_jigsaw_tiles_without_gap_reassemble_to_one_picture() -> None:
    for sample in samples("jigsaw", gap=0.0, jitter=False):
        tiles = [sample.visuals[place - 1].pixels for place in sample.truth["answer"]]
        rows = [np.concatenate(tiles[3 * row : 3 * row + 3], axis=1) for row in range(3)]
        whole = np.concatenate(rows, axis=0).astype(np.int16)
        height, width = tiles[0].shape[:2]
        inside = np.abs(np.diff(whole, axis=1)).mean(axis=(0, 2))
        seams = inside[width - 1 :: width]
        assert seams.max() < 3 * inside.mean() and len({tile.shape for tile in tiles}) == 1
        assert height % 28 == 0 and width % 28 == 0


def test_jigsaw_partial_fill_asks_for_the_open_places_only() -> None:
    for sample in samples("jigsaw", given=6):
        order = sample.meta["order"]
        position = {piece: shown + 1 for shown, piece in enumerate(order)}
        assert len(sample.truth["answer"]) == 3
        text = sample.messages[0]["content"][-1]["text"]
        told = [
            f"piece {shown} at place {piece + 1}" in text for piece, shown in position.items()
        ]
        assert sum(told) == 6
        open_places = [piece for piece, known in zip(position, told, strict=True) if not known]
        assert sample.truth["answer"] == [position[piece] for piece in sorted(open_places)]


def test_jigsaw_turned_pieces_are_set_upright_by_the_answer() -> None:
    task = find("jigsaw")
    knobs = task.complete(
        {"rows": 2, "columns": 2, "turned": True, "gap": 0.0, "jitter": False}
    )
    for index in range(4):
        plain = task.propose([MEDIA[0]], knobs | {"turned": True}, Streams("turn", index))
        if isinstance(plain, Reject):
            continue
        tiles = [
            np.rot90(plain.visuals[place - 1].pixels, -turn // 90)
            for place, turn in zip(plain.truth["answer"], plain.truth["turns"], strict=True)
        ]
        seam = np.abs(tiles[0][:, -1].astype(int) - tiles[1][:, 0]).mean()
        assert seam < 12.0, (
            f"upright tiles should continue each other, the seam differs by {seam:.1f}"
        )


def test_jigsaw_permutations_are_uniform_and_never_the_identity() -> None:
    from mmrl.data.pretext.craft.answer_forms import shuffled_order

    rng = Streams("uniform").selection
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(4600):
        order = tuple(shuffled_order(4, rng))
        counts[order] = counts.get(order, 0) + 1
    assert (0, 1, 2, 3) not in counts and len(counts) == 23
    assert chisquare(list(counts.values())).pvalue > 1e-4
    assert {tuple(shuffled_order(2, rng)) for _ in range(40)} == {(0, 1), (1, 0)}


def test_jigsaw_pays_permutations_only() -> None:
    task, truth = find("jigsaw"), {"answer": [2, 1, 3], "pieces": [1, 2, 3], "gamma": 0.3}
    pay = lambda body: task.score(f"<answer>{body}</answer>", truth).reward  # noqa: E731
    assert (
        pay("2, 1, 3") == 1.0 and pay("2, 3, 1") == pytest.approx(0.1) and pay("1, 3, 2") == 0.0
    )
    assert (
        pay("2, 1, 1")
        == pay("2, 1, 4")
        == pay("2, 1")
        == pay("2, 1, 3, 3")
        == pay("20, 10, 3")
        == 0.0
    )


def test_rotation_by_the_negative_answer_restores_the_picture() -> None:
    from mmrl.data.pretext.tasks.rotation import turned

    square = MEDIA[0].picture()[:336, :336]
    for angle in (0, 90, 180, 270):
        shown = turned(square, angle, 90, 224)
        assert np.array_equal(np.rot90(shown, angle // 90), turned(square, 0, 90, 224))
    fine = turned(square, 45, 45, 224)
    assert fine.shape == (224, 224, 3) and (fine == 0).all(axis=2).mean() < 0.01


def test_rotation_refuses_what_looks_the_same_turned() -> None:
    grain = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    assert make(find("rotation"), [Medium("grain", "image", image=grain)]) == Reject(
        "looks-the-same-turned"
    )


def test_rotation_wording_and_answer_agree_on_the_direction() -> None:
    seen = set()
    for sample in samples("rotation", 8):
        word = (
            "counter-clockwise"
            if "counter-clockwise" in sample.messages[0]["content"][-1]["text"]
            else "clockwise"
        )
        seen.add(word)
    assert seen == {"clockwise", "counter-clockwise"}


def test_patchfit_answer_fills_the_hole() -> None:
    task = find("patchfit")
    for index in range(6):
        draft = task.propose([MEDIA[index % 4]], task.defaults(), Streams("fit", index))
        if not isinstance(draft, Draft):
            continue
        left, top, hole, ring = draft.meta["hole"]
        holed = draft.visuals[0].pixels
        assert (holed[top : top + hole, left : left + hole] == 128).all()
        options = {visual.label[0]: visual.pixels for visual in draft.visuals[1:]}
        assert len({pixels.shape for pixels in options.values()}) == 1 and len(options) == 4
        assert options[draft.truth["answer"]].shape[0] == hole - 2 * ring


def test_patchfit_families_do_not_single_out_the_truth() -> None:
    """Seen as a set, the changes of the true piece's family relative to any member look the same."""
    rng, places = Streams("family").selection, []
    for _ in range(600):
        family = patchfit._family(3, rng)
        assert len(set(family)) == 3 and (0, False, 0) in family
        places.append(sorted(family).index((0, False, 0)))
    plain = sum(all(hue == 0 for _, _, hue in patchfit._family(4, rng)) for _ in range(200))
    assert 60 < plain < 190 and max(places) == 0


@pytest.mark.parametrize("element", range(8))
@pytest.mark.parametrize("origin", range(8))
def test_patchfit_group_relation_is_exact(element: int, origin: int) -> None:
    piece = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    absolute = lambda e: patchfit.changed(piece, (e % 4, e >= 4, 0))  # noqa: E731
    relative = patchfit._relative(element, origin, 0)
    assert np.array_equal(patchfit.changed(absolute(origin), relative), absolute(element))


def test_odd_tile_changes_exactly_one_tile() -> None:
    task = find("odd-tile")
    for change in ("mirror", "turn", "recolour"):
        knobs = task.complete({"change": change})
        draft = next(
            d
            for i in range(8)
            if isinstance(
                d := task.propose([MEDIA[0]], knobs, Streams("odd", change, i)), Draft
            )
        )
        box = draft.evidence[0].boxes[0]
        place = int(draft.truth["answer"]) - 1
        width = draft.visuals[0].pixels.shape[1]
        assert draft.meta["change"] == change and place % 3 == int(
            3 * (box[0] + box[2]) / 2 / width
        )


def test_relative_position_directions_are_right_and_equally_likely() -> None:
    task, counts = find("relative-position"), {}
    for index in range(160):
        draft = task.propose([MEDIA[index % 4]], task.defaults(), Streams("where", index))
        if isinstance(draft, Reject):
            continue
        (ax, ay, _, _), (bx, by, _, _) = draft.meta["boxes"]
        answer = draft.truth["answer"]
        assert ("right" in answer) == (bx - ax > abs(by - ay) * 0.41)
        assert ("below" in answer) == (by - ay > abs(bx - ax) * 0.41)
        side = draft.visuals[0].pixels.shape[0]
        assert max(abs(bx - ax), abs(by - ay)) >= 1.19 * side
        counts[answer] = counts.get(answer, 0) + 1
    assert len(counts) == 8 and chisquare(list(counts.values())).pvalue > 1e-4


def test_crop_location_box_holds_the_crop() -> None:
    from mmrl.data.pretext.craft.degenerate_checks import difference, resize

    for sample in samples("crop-location"):
        x0, y0, x1, y1 = sample.evidence[0].boxes[0]
        picture, crop = (visual.pixels for visual in sample.visuals)
        again = resize(picture[y0:y1, x0:x1], crop.shape[1], crop.shape[0])
        assert difference(again, crop) < 25.0
        height, width = picture.shape[:2]
        wanted = [x0 / width, y0 / height, x1 / width, y1 / height]
        assert np.allclose(np.array(sample.truth["answer"]) / 1000, wanted, atol=0.001)


def test_mosaic_crop_comes_from_the_answer() -> None:
    task = find("mosaic")
    sample = make(task, MEDIA, {"flatten": False})
    assert isinstance(sample, Sample)
    chosen = sample.evidence[1].visual
    assert sample.visuals[chosen].label.rstrip(":") == sample.truth["answer"]


def test_edit_program_replays_and_accepts_every_equal_program() -> None:
    task = find("edit-program")
    for sample in samples("edit-program", steps=3):
        program = sample.truth["answer"]
        first, second = (visual.pixels for visual in sample.visuals)
        assert np.array_equal(edit_program.replayed(first, program), second)
        longer = ["mirror", "mirror", *program]
        assert np.array_equal(edit_program.replayed(first, longer), second)
        assert task.score(f"<answer>{', '.join(longer)}</answer>", sample.truth).correct
        assert not task.score(
            f"<answer>{', '.join([*program, 'invert'])}</answer>", sample.truth
        ).correct


def test_edit_program_effects_equal_pictures() -> None:
    """Two programs have one code exactly if they give one picture."""
    rng, picture = (
        np.random.default_rng(0),
        np.random.default_rng(1).integers(0, 256, (6, 6, 3), dtype=np.uint8),
    )
    programs = [
        [edit_program.NAMES[i] for i in rng.integers(9, size=rng.integers(1, 5))]
        for _ in range(60)
    ]
    for first in programs:
        for second in programs[:20]:
            same = np.array_equal(
                edit_program.replayed(picture, first), edit_program.replayed(picture, second)
            )
            assert same == (edit_program.effect(first) == edit_program.effect(second))


def test_homographies_map_points_exactly() -> None:
    quad = np.array([[10.0, 5.0], [90.0, 12.0], [84.0, 70.0], [4.0, 66.0]])
    matrix = homography(corners(100, 100), quad)
    assert np.allclose(project(matrix, corners(100, 100)), quad)
    assert np.allclose(project(np.linalg.inv(matrix), quad), corners(100, 100))


def test_warp_puts_a_marked_point_where_the_homography_says() -> None:
    picture = np.zeros((200, 200, 3), np.uint8)
    picture[96:105, 116:125] = 255
    quad = np.array([[20.0, 10.0], [190.0, 20.0], [180.0, 190.0], [10.0, 180.0]])
    matrix = homography(corners(150, 150), quad)
    view = warp(picture, matrix, 150, 150)
    ys, xs = np.nonzero(view[..., 0] > 128)
    expected = project(np.linalg.inv(matrix), np.array([[120.5, 100.5]]))[0]
    assert abs(xs.mean() + 0.5 - expected[0]) < 0.7 and abs(ys.mean() + 0.5 - expected[1]) < 0.7


def test_camera_motions_move_the_window_as_named() -> None:
    """The window's drift over a picture of coordinates tells the motion."""
    task = find("camera-motion")
    ys, xs = np.mgrid[0:400, 0:500]
    picture = np.stack(
        [xs * 255 / 500, ys * 255 / 400, ((xs // 8 + ys // 8) % 2) * 120], axis=-1
    ).astype(np.uint8)
    seen = {}
    for index in range(40):
        draft = task.propose(
            [Medium("grid", "image", image=picture)], task.defaults(), Streams("cam", index)
        )
        if isinstance(draft, Reject):
            continue
        frames = draft.visuals[0].pixels.astype(float)
        drift = (frames[-1] - frames[0]).mean(axis=(0, 1))[:2]
        spread = frames[-1, ..., 0].std() - frames[0, ..., 0].std()
        seen[draft.truth["answer"][0]] = (drift, spread)
    for name, axis, sign in (
        ("pan left", 0, -1),
        ("pan right", 0, 1),
        ("tilt up", 1, -1),
        ("tilt down", 1, 1),
    ):
        assert sign * seen[name][0][axis] > 5 and abs(seen[name][0][1 - axis]) < 5, (
            name,
            seen[name],
        )
    assert seen["zoom in"][1] < -1 and seen["zoom out"][1] > 1
    assert abs(seen["still"][0]).max() < 3


def test_quality_orders_follow_the_measured_quality() -> None:
    from mmrl.data.pretext.audit.picture_cues import sharpness

    for sample in samples("quality-order", kind="blur"):
        values = [sharpness(sample.visuals[i - 1].pixels) for i in sample.truth["answer"]]
        assert values == sorted(values, reverse=True)


def test_overlay_counts_equal_what_was_painted() -> None:
    task, counts = find("overlay-count"), []
    for index in range(30):
        sample = make(task, [landscape(0, index % 5)], {"asked": 2}, index=index)
        assert isinstance(sample, Sample)
        painted, asked = sample.meta["painted"], sample.meta["asked"]
        assert sample.truth["answer"] == [painted.count(name) for name in asked]
        counts += sample.truth["answer"]
    assert set(counts) == {1, 2, 3, 4, 5}


def test_overlay_count_rewards_are_relative() -> None:
    task, truth = find("overlay-count"), {"answer": [4, 2], "most": 5}
    assert task.score("<answer>3, 2</answer>", truth).reward == pytest.approx(0.875)
    assert task.score("<answer>-4, 2</answer>", truth).reward == 0.0
    assert task.score("<answer>4, 2, 1</answer>", truth).reward == 0.0


def test_differences_mark_every_edit_and_nothing_else() -> None:
    task = find("differences")
    for index in range(6):
        draft = task.propose([MEDIA[index % 4]], task.defaults(), Streams("spot", index))
        if not isinstance(draft, Draft):
            continue
        first, second = (visual.pixels.astype(float) for visual in draft.visuals)
        apart = np.abs(
            first / first.mean(axis=(0, 1)) - second / second.mean(axis=(0, 1))
        ).mean(axis=2)
        inside = draft.evidence[1].mask(draft.visuals[1].pixels)
        assert apart[inside].mean() > 3 * apart[~inside].mean()


def test_differences_match_boxes_one_to_one() -> None:
    task = find("differences")
    truth = {"answer": [[0, 0, 100, 100], [500, 500, 700, 700]]}
    pay = lambda body: task.score(f"<answer>{body}</answer>", truth).reward  # noqa: E731
    assert pay("500, 500, 700, 700; 0, 0, 100, 100") == 1.0
    assert pay("0, 0, 100, 100") == pytest.approx(0.5)
    assert pay("0, 0, 100, 100; 0, 0, 100, 100") == pytest.approx(0.5)
    assert pay("0, 0, 100, 100; 500, 500, 700, 700; 1, 1, 2, 2") == pytest.approx(2 / 3)
    assert pay("100, 100, 0, 0") == pay("0, 0, 100") == pay("") == 0.0


def test_depth_orders_rise_with_gaps_and_distances() -> None:
    task = find("depth-order")
    for index in range(6):
        sample = make(task, [depth_scene(0, index)], index=index)
        if isinstance(sample, Reject):
            continue
        depths = [sample.meta["depths"][i - 1] for i in sample.truth["answer"]]
        assert all(b - a > 0.19 for a, b in pairwise(depths))
        centres = np.array(
            [[(x0 + x1) / 2, (y0 + y1) / 2] for x0, y0, x1, y1 in sample.evidence[0].boxes]
        )
        apart = np.hypot(*(centres[:, None] - centres[None]).transpose(2, 0, 1))
        assert (
            apart[np.triu_indices(6, 1)].min() >= 39 * sample.visuals[0].pixels.shape[1] / 640
        )


@pytest.mark.parametrize(
    "name", ["jigsaw", "rotation", "patchfit", "mosaic", "camera-motion", "depth-order"]
)
@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (30, 30), (4000, 3)])
def test_tiny_and_thin_pictures_are_refused_with_a_reason(
    name: str, shape: tuple[int, int]
) -> None:
    task = find(name)
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    depth = np.ones(shape, np.float32)
    media = [
        Medium(f"m{i}", "rgbd", image=image, depth=depth)
        for i in range(task.media_count(task.defaults()))
    ]
    found = make(task, media)
    assert isinstance(found, Reject) and found.reason


@pytest.mark.parametrize("value", [0, 128, 255])
def test_flat_pictures_are_refused(value: int) -> None:
    media = [Medium("flat", "image", image=np.full((500, 600, 3), value, np.uint8))]
    for name in (
        "jigsaw",
        "rotation",
        "patchfit",
        "relative-position",
        "crop-location",
        "edit-program",
        "camera-motion",
    ):
        assert isinstance(make(find(name), media), Reject), name


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("crop-location", {"side": 128, "zoom": 48}),
        ("differences", {"side": 180, "edits": 1}),
        ("correspondence", {"side": 96}),
        ("overlay-count", {"side": 180, "most": 4}),
        ("edit-program", {"side": 64}),
    ],
)
def test_chance_rewards_hold_over_many_truths(name: str, knobs: dict) -> None:
    """Guesses on 80 truths: within four standard errors over truths."""
    task, rewards = find(name), []
    media = [landscape(0, index, 220, 300) for index in range(4)]
    for index in range(80):
        sample = make(task, [media[index % 4]], knobs, index=index)
        if isinstance(sample, Sample):
            rng = Streams("guess", index).selection
            guesses = [
                task.score(f"<answer>{task.guess(sample.truth, rng)}</answer>", sample.truth)
                for _ in range(60)
            ]
            rewards.append(np.mean([score.reward for score in guesses]))
    declared = task.chance_reward(task.complete(knobs))
    error = 4 * np.std(rewards, ddof=1) / np.sqrt(len(rewards))
    assert len(rewards) > 30 and abs(np.mean(rewards) - declared) <= error, (
        np.mean(rewards),
        declared,
        error,
    )
