"""The stream: the same samples for any worker, rank and restart; bad media never stop it."""

import gc
import hashlib
import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from mmrl.data.pretext.audit.conformance import same_pixels
from mmrl.data.pretext.catalogue import TASKS
from mmrl.data.pretext.contract import Sample
from mmrl.data.pretext.craft.procedural import scene
from mmrl.data.pretext.difficulty import FixedLevel
from mmrl.data.pretext.mixture import LearningProgress
from mmrl.data.pretext.presets import Ingredient, TaskMix, preset
from mmrl.data.pretext.stream.sources import DrawnSource, FolderSource, SplitSource, held_out
from mmrl.data.pretext.stream.stream import BLOCK, REUSE, SPREAD, SampleStream
from mmrl.ground.faults import BadMedia
from mmrl.ground.quarantine import Quarantine

MIX = TaskMix(
    "mix",
    (
        Ingredient("rotation"),
        Ingredient("jigsaw", 2.0, {"rows": 2, "columns": 2}),
        Ingredient("mosaic", 0.5),
    ),
)
QUICK = TaskMix("quick", (Ingredient("relative-position"), Ingredient("overlay-count")))
SMALL = DrawnSource(0, (240, 320))


def equal(first: Sample, second: Sample) -> bool:
    plain = (first.id, first.messages, first.truth, first.key, dict(first.meta)) == (
        second.id,
        second.messages,
        second.truth,
        second.key,
        dict(second.meta),
    )
    return plain and all(
        same_pixels(a, b) for a, b in zip(first.visuals, second.visuals, strict=True)
    )


def taken(stream: SampleStream, count: int, **where: int) -> dict[int, Sample]:
    return {
        index: sample
        for _, (index, sample) in zip(range(count), stream.iterate(**where), strict=False)
    }


def test_ranks_together_give_the_same_stream_as_one() -> None:
    whole = taken(SampleStream(SMALL, MIX), 24)
    split: dict[int, Sample] = {}
    for rank in range(4):
        split |= taken(SampleStream(SMALL, MIX), 6, rank=rank, world=4)
    assert sorted(split) == sorted(whole)
    assert all(equal(split[index], whole[index]) for index in whole)


def test_a_killed_stream_continues_at_any_index() -> None:
    whole = taken(SampleStream(SMALL, MIX), 16)
    rest = taken(SampleStream(SMALL, MIX), 5, start=11)
    assert all(equal(rest[index], whole[index]) for index in rest) and min(rest) == 11
    assert min(taken(SampleStream(SMALL, QUICK), 1, start=5, rank=2, world=4)) == 6


def test_samples_do_not_depend_on_what_was_asked_before() -> None:
    stream = SampleStream(SMALL, MIX)
    later = stream.sample(9)
    stream.sample(3)
    assert (
        later is not None
        and equal(later, stream.sample(9))
        and equal(later, SampleStream(SMALL, MIX).sample(9))
    )


def test_the_stream_replays_a_stored_sample() -> None:
    stream = SampleStream(SMALL, MIX)
    for _, (_, sample) in zip(range(4), stream.iterate(), strict=False):
        stored = json.loads(json.dumps(sample.recipe))
        assert stored == sample.recipe
        assert equal(stream.replay(sample), sample)


def test_seeds_presets_and_levels_change_the_stream() -> None:
    ids = {
        SampleStream(SMALL, QUICK, seed).sample(0).id  # type: ignore[union-attr]
        for seed in range(3)
    }
    hard = SampleStream(SMALL, QUICK, levels=FixedLevel(1.0)).sample(0)
    assert len(ids) == 3 and hard is not None and hard.id not in ids
    assert hard.knobs != SampleStream(SMALL, QUICK, levels=FixedLevel(0.0)).sample(0).knobs  # type: ignore[union-attr]


def test_shares_follow_weights_and_bandits() -> None:
    stream = SampleStream(SMALL, MIX)
    assert np.allclose(stream.shares(), [1 / 3.5, 2 / 3.5, 0.5 / 3.5])
    counts = {fit.task.name: 0 for fit in stream.fits}
    for index in range(700):
        counts[stream._choose(index).task.name] += 1
    assert abs(counts["jigsaw"] / 700 - 2 / 3.5) < 0.06
    bandit = LearningProgress(warmup=0)
    bandit.means = {"rotation": [0.9, 0.1, 9], "jigsaw": [0.5, 0.5, 9], "mosaic": [0.5, 0.5, 9]}
    shares = SampleStream(SMALL, MIX, weights=bandit).shares()
    assert shares[0] > 0.85 and min(shares) >= 0.05 - 1e-9


def test_reused_media_are_decoded_once() -> None:
    class Counting(DrawnSource):
        opened = 0

        def open(self, kind, position, avoid=()):
            Counting.opened += 1
            return super().open(kind, position, avoid)

    stream = SampleStream(
        Counting(0, (240, 320)), TaskMix("one", (Ingredient("relative-position"),))
    )
    for index in range(0, SPREAD * REUSE, 8):
        stream.sample(index)
    assert Counting.opened <= 3 and stream.counts["made/relative-position"] == 6


def test_media_are_visited_once_per_epoch_in_shuffled_order(tmp_path) -> None:
    for index in range(7):
        buffer = io.BytesIO()
        Image.fromarray(scene(0, index, 64, 64).picture()).save(buffer, "PNG")
        (tmp_path / f"{index}.png").write_bytes(buffer.getvalue())
    stream = SampleStream(
        FolderSource(tmp_path), TaskMix("one", (Ingredient("relative-position"),))
    )
    first = [stream._position("image", number) for number in range(7)]
    second = [stream._position("image", number) for number in range(7, 14)]
    assert sorted(first) == sorted(second) == list(range(7)) and first != second
    drawn = SampleStream(SMALL, QUICK)
    assert sorted(drawn._position("image", number) for number in range(BLOCK)) == list(
        range(BLOCK)
    )


@pytest.fixture
def messy(tmp_path):
    """Fifteen good photographs among broken ones."""
    for index in range(15):
        Image.fromarray(scene(0, index, 300, 400).picture()).save(tmp_path / f"good{index}.png")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good0.png").read_bytes()[:500])
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    Image.new("RGB", (400, 300), "grey").save(tmp_path / "flat.png")
    (tmp_path / "sound.mp4").write_bytes(b"no clip")
    return tmp_path


@pytest.mark.usefixtures("only_new_objects")
def test_bad_media_are_skipped_counted_and_listed(messy) -> None:
    quarantine = Quarantine(messy / "out" / "bad.jsonl")
    stream = SampleStream(FolderSource(messy, quarantine), QUICK, quarantine=quarantine)
    found = taken(stream, 150)
    assert len(found) == 150 and list(found) == list(range(150))
    listed = {
        json.loads(line)["where"].rsplit("/")[-1]
        for line in quarantine.file.read_text().splitlines()
    }
    assert listed == {"empty.jpg", "text.png", "cut.png"}
    assert stream.counts["refused/relative-position/too-small"] > 0
    assert stream.counts["refused/relative-position/textureless"] > 0
    assert 0 < stream.acceptance()["relative-position"] < 1
    gc.collect()
    bad = [thing for thing in gc.get_objects() if type(thing) is BadMedia]
    kept = [thing for thing in bad if thing.__traceback__ is not None]
    assert not kept, (
        "an error that is kept holds its traceback, and with it the bytes of the file"
    )
    assert all(
        equal(found[i], again)
        for i, again in taken(SampleStream(FolderSource(messy), QUICK), 10).items()
    )


def test_a_source_without_usable_media_stops_with_reasons(tmp_path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "dot.png")
    stream = SampleStream(FolderSource(tmp_path), TaskMix("one", (Ingredient("rotation"),)))
    with pytest.raises(ValueError, match="rotation/too-small"):
        next(stream.iterate())
    with pytest.raises(ValueError, match="holds no media"):
        SampleStream(FolderSource(tmp_path), preset("visual-jigsaw-video"))


def test_tasks_without_media_are_left_out_and_named(tmp_path) -> None:
    Image.fromarray(scene(0, 0).picture()).save(tmp_path / "a.png")
    stream = SampleStream(FolderSource(tmp_path), preset("mmrl-mix-v1"))
    assert "temporal-jigsaw" in stream.left_out and "jigsaw" not in stream.left_out
    assert abs(sum(stream.shares()) - 1.0) < 1e-9


def test_too_few_media_are_a_reason_not_a_repeat(tmp_path) -> None:
    for index in range(2):
        Image.fromarray(scene(0, index).picture()).save(tmp_path / f"{index}.png")
    stream = SampleStream(FolderSource(tmp_path), TaskMix("one", (Ingredient("mosaic"),)))
    assert stream.sample(0) is None and stream.counts["refused/mosaic/too-few-media"] > 0


def test_image_tasks_take_stills_of_clips(tmp_path) -> None:
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 400, 304, "yuv420p"
        for index in range(12):
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(
                        scene(0, index, 304, 400).picture(), format="rgb24"
                    )
                )
            )
        container.mux(stream.encode())
    sample = SampleStream(FolderSource(tmp_path), QUICK).sample(0)
    assert sample is not None and sample.meta["source"]["still"] is True


def test_held_out_streams_share_no_medium_with_training() -> None:
    media = {}
    for side in ("train", "heldout"):
        stream = SampleStream(SplitSource(SMALL, side, 0.3), QUICK)
        media[side] = {
            m
            for _, (_, s) in zip(range(20), stream.iterate(), strict=False)
            for m in s.recipe["media"]
        }
    assert not media["train"] & media["heldout"]
    assert all(held_out(m, 0.3) for m in media["heldout"]) and not any(
        held_out(m, 0.3) for m in media["train"]
    )


@pytest.mark.parametrize(
    "task", [task for task in TASKS if task.kinds == ("none",)], ids=lambda task: task.name
)
def test_held_out_questions_without_media_are_not_those_of_training(task) -> None:
    mix = TaskMix(task.name, (Ingredient(task.name),))
    asked = {}
    for side in ("train", "heldout"):
        stream = SampleStream(SplitSource(SMALL, side), mix)
        found = list(stream.first(6))
        assert equal(found[3], stream.replay(found[3])), "a split does not change a sample"
        asked[side] = {
            json.dumps([sample.truth, sample.messages, hashed(sample)]) for sample in found
        }
        assert len(asked[side]) == 6
    assert not asked["train"] & asked["heldout"]


def hashed(sample: Sample) -> list[str]:
    return [hashlib.blake2b(visual.pixels.tobytes()).hexdigest() for visual in sample.visuals]


def test_small_spaces_of_questions_are_divided_too() -> None:
    """Of many draws from few questions, none is met on both sides."""
    mix = TaskMix("sums", (Ingredient("np-subset-sum", 1.0, {"size": 4, "show": "text"}),))
    seen = {}
    for side in ("train", "heldout"):
        samples = SampleStream(SplitSource(SMALL, side), mix).first(400)
        seen[side] = {json.dumps(sample.truth["instance"]) for sample in samples}
    assert min(map(len, seen.values())) > 300 and not seen["train"] & seen["heldout"]


def test_unknown_presets_tasks_and_knobs_are_refused() -> None:
    with pytest.raises(ValueError, match="no preset 'nope'"):
        preset("nope")
    with pytest.raises(ValueError, match="no knob"):
        SampleStream(SMALL, TaskMix("bad", (Ingredient("jigsaw", 1.0, {"size": 3}),)))
    with pytest.raises(ValueError, match="positive weights"):
        TaskMix("bad", (Ingredient("jigsaw", 0.0),))


def test_every_preset_runs_on_drawn_media() -> None:
    from mmrl.data.pretext.presets import PRESETS

    for entry in PRESETS:
        for ingredient in entry.ingredients:
            SampleStream(SMALL, TaskMix(entry.name, (ingredient,)))
        assert SampleStream(DrawnSource(), entry).sample(0) is not None, entry.name


def test_a_stream_travels_to_workers() -> None:
    stream = SampleStream(SMALL, QUICK)
    before = stream.sample(4)
    again = pickle.loads(pickle.dumps(stream))
    assert before is not None and equal(before, again.sample(4))


@pytest.fixture
def zoo(tmp_path):
    """Every kind of picture file a folder may hold, good and bad, among twelve photographs."""
    for index in range(12):
        Image.fromarray(scene(0, index, 420, 560).picture()).save(
            tmp_path / f"photo{index}.jpg", quality=88
        )
    base = Image.fromarray(scene(1, 1, 420, 560).picture())
    exif = Image.Exif()
    exif[0x0112] = 6
    base.save(tmp_path / "turned.jpg", exif=exif)
    base.convert("L").save(tmp_path / "grey.png")
    base.convert("P").save(tmp_path / "palette.png")
    base.convert("CMYK").save(tmp_path / "print.jpg")
    base.convert("RGBA").save(tmp_path / "alpha.webp")
    Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257).save(
        tmp_path / "deep.tif"
    )
    base.save(tmp_path / "moving.gif", save_all=True, append_images=[base.rotate(90)])
    Image.new("RGB", (20_000, 60), "red").save(tmp_path / "wide.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "photo0.jpg").read_bytes()[:3000])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "page.jpg").write_text("<html></html>")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    return tmp_path


def test_every_image_task_takes_a_mixed_folder(zoo) -> None:
    """A smaller form of 10,000 samples per task; `PRETEXT_SAMPLES` sets the number."""
    import os

    from mmrl.data.pretext.catalogue import TASKS

    count, quarantine = int(os.environ.get("PRETEXT_SAMPLES", "6")), Quarantine()
    source = FolderSource(zoo, quarantine)
    for task in (task for task in TASKS if task.kinds[0] == "image"):
        stream = SampleStream(
            source, TaskMix(task.name, (Ingredient(task.name),)), seed=5, quarantine=quarantine
        )
        for index in range(count):
            sample = stream.sample(index)
            if sample is not None:
                assert task.score(
                    sample.surface.wrap(task.format(sample.truth)), sample.truth, sample.surface
                ).correct
        assert stream.counts[f"made/{task.name}"] >= 0.8 * count, (
            task.name,
            dict(stream.counts),
        )
    assert set(quarantine.counts) <= {"broken image", "empty file", "not an image"}


def test_every_task_without_files_takes_drawn_media() -> None:
    """Scenes, problems, texts and depth. A smaller form of 10,000 samples per task; `PRETEXT_SAMPLES` sets the
    number."""
    import os

    from mmrl.data.pretext.catalogue import TASKS

    count = int(os.environ.get("PRETEXT_SAMPLES", "6"))
    for task in (task for task in TASKS if task.kinds[0] not in ("image", "video")):
        stream = SampleStream(SMALL, TaskMix(task.name, (Ingredient(task.name),)), seed=5)
        for index in range(count):
            sample = stream.sample(index)
            if sample is not None:
                assert task.score(
                    sample.surface.wrap(task.format(sample.truth)), sample.truth, sample.surface
                ).correct
        assert stream.counts[f"made/{task.name}"] >= 0.8 * count, (
            task.name,
            dict(stream.counts),
        )
