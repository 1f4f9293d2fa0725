"""Sources: lazy folders, links, archives, splits."""

import io
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from mmrl.data.pretext.contract import Medium
from mmrl.data.pretext.craft.procedural import depth_scene, scene
from mmrl.data.pretext.stream.open import open_source
from mmrl.data.pretext.stream.sources import (
    DrawnSource,
    FolderSource,
    SplitSource,
    classified,
    held_out,
)
from mmrl.ground.faults import BadMedia
from mmrl.ground.quarantine import Quarantine


def png(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(scene(5, index, 96, 128).picture()).save(buffer, "PNG")
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Three directories with six images, one with depth, one text file, one broken image."""
    for place, name in enumerate(
        ("b/2.png", "b/1.PNG", "a/deep/x.jpg", "z.png", "a/y.png", "c.png")
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(place))
    (tmp_path / "b" / "2_depth.npy").write_bytes(npy(np.ones((96, 128), np.float32)))
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "a" / "broken.png").write_bytes(b"nope")
    return tmp_path


def names(source: FolderSource, kind: str = "image") -> list[str]:
    total = source.known(kind, 10**9)
    return [
        os.path.relpath(source.open(kind, place).where, source.root) for place in range(total)
    ]


def test_folders_are_walked_in_sorted_order_and_by_kind(folder) -> None:
    source = FolderSource(folder)
    assert names(source) == [
        "c.png",
        "z.png",
        "a/broken.png",
        "a/y.png",
        "a/deep/x.jpg",
        "b/1.PNG",
        "b/2.png",
    ]
    assert source.known("rgbd", 5) == 1 and source.known("video", 5) == 0
    medium = source.open("rgbd", 0).decode()
    assert (
        medium.depth is not None and medium.depth.shape == (96, 128) and medium.kind == "rgbd"
    )


def test_folders_are_read_no_further_than_needed(folder, monkeypatch) -> None:
    listed = []
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(str(path)) or real(path))
    source = FolderSource(folder)
    assert source.known("image", 2) >= 2 and len(listed) == 1
    assert source.known("image", 3) >= 3 and len(listed) == 2


def test_broken_files_are_refused_when_decoded(folder) -> None:
    source = FolderSource(folder)
    place = names(source).index("a/broken.png")
    with pytest.raises(BadMedia, match="not an image"):
        source.open("image", place).decode()


def test_links_that_lead_back_are_followed_once(folder) -> None:
    (folder / "a" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "again").symlink_to(folder / "b", target_is_directory=True)
    source = FolderSource(folder)
    assert source.known("image", 10**9) == 7


def test_unreadable_folders_are_counted_and_passed_over(folder, monkeypatch) -> None:
    real = os.listdir

    def guarded(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "listdir", guarded)
    quarantine = Quarantine()
    source = FolderSource(folder, quarantine)
    assert source.known("image", 10**9) == 6 and quarantine.counts == {"unreadable folder": 1}


def test_files_that_vanish_are_refused(folder) -> None:
    source = FolderSource(folder)
    place = names(source).index("z.png")
    (folder / "z.png").unlink()
    with pytest.raises(BadMedia, match="unreadable file"):
        source.open("image", place)


def test_strange_names_survive(tmp_path) -> None:
    for name in (
        "ä é.png",
        "new\nline.png",
        "-rf.png",
        "quote'\".png",
        os.fsdecode(b"raw\xff.png"),
    ):
        (tmp_path / name).write_bytes(png(1))
    source = FolderSource(tmp_path)
    assert source.known("image", 99) == 5
    assert all(
        source.open("image", place).decode().picture().shape == (96, 128, 3)
        for place in range(5)
    )


def test_names_are_classified_with_their_depth_twins() -> None:
    found = classified(
        [
            "b.mp4",
            "a.JPG",
            "a_depth.png",
            "c.png",
            "C.depth.npy",
            "readme",
            "d.png_",
            "depth.png",
        ]
    )
    assert found["video"] == ["b.mp4"] and found["image"] == ["a.JPG", "c.png", "depth.png"]
    assert sorted(found["rgbd"]) == ["a.JPG\0a_depth.png", "c.png\0C.depth.npy"]


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def test_tars_are_read_by_offset_and_shard(tmp_path) -> None:
    for shard in range(2):
        with tarfile.open(tmp_path / f"s-{shard}.tar", "w") as archive:
            for index in range(3):
                add(archive, f"k{shard}{index}.png", png(10 * shard + index))
                add(archive, f"k{shard}{index}.json", b"{}")
    source = open_source(str(tmp_path))
    assert source.known("image", 1) == 3 and source.known("image", 99) == 6
    shown = source.open("image", 4).decode()
    assert np.array_equal(shown.picture(), scene(5, 11, 96, 128).picture())
    single = open_source(str(tmp_path / "s-0.tar"))
    assert single.known("image", 99) == 3


def test_truncated_and_compressed_tars(tmp_path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "x.png", png(0))
        add(archive, "y.png", png(1))
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: len(whole) // 3])
    source = open_source(str(tmp_path / "a.tar"))
    with pytest.raises((BadMedia, ValueError)):
        for place in range(source.known("image", 9)):
            source.open("image", place).decode()
    (tmp_path / "b.tar").write_bytes(b"\x1f\x8b not a tar")
    with pytest.raises(ValueError, match="uncompressed tar"):
        open_source(str(tmp_path / "b.tar")).known("image", 1)


def test_parquet_with_bytes_structs_and_lists(tmp_path) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    cells = [{"bytes": png(index), "path": None} for index in range(5)]
    table = pyarrow.table({"id": list(range(5)), "image": cells})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    source = open_source(str(tmp_path / "a.parquet"))
    assert source.known("image", 99) == 5 and source.known("video", 9) == 0
    assert np.array_equal(
        source.open("image", 4).decode().picture(), scene(5, 4, 96, 128).picture()
    )
    parquet.write_table(
        pyarrow.table({"pictures": [[cell] for cell in cells]}), tmp_path / "b.parquet"
    )
    assert (
        open_source(str(tmp_path / "b.parquet")).open("image", 1).id
        == source.open("image", 1).id
    )
    parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="no column with media bytes"):
        open_source(str(tmp_path / "c.parquet"))
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadMedia, match="broken archive"):
        source.open("image", 4)


def test_saved_data_sets_are_read_undecoded(tmp_path) -> None:
    import datasets

    pictures = [Image.fromarray(scene(5, index, 96, 128).picture()) for index in range(3)]
    table = datasets.Dataset.from_dict(
        {"image": pictures}, features=datasets.Features({"image": datasets.Image()})
    )
    table.save_to_disk(str(tmp_path / "saved"))
    source = open_source(str(tmp_path / "saved"))
    assert source.known("image", 99) == 3
    assert np.array_equal(
        source.open("image", 2).decode().picture(), scene(5, 2, 96, 128).picture()
    )


def test_hub_data_sets_by_split_and_subset(monkeypatch) -> None:
    """The hub itself is not reachable here: what is asked of `datasets`, and what is done with it."""
    import datasets

    asked = []

    def table(*indices: int) -> datasets.Dataset:
        cells = [{"bytes": png(index), "path": None} for index in indices]
        return datasets.Dataset.from_dict(
            {"image": cells}, datasets.Features({"image": datasets.Image()})
        )

    def load(*what: str | None) -> datasets.DatasetDict:
        asked.append(what)
        if what[0] == "no/where":
            raise ConnectionError("no way\nlong text")
        return datasets.DatasetDict({"train": table(0, 1, 2), "test": table(3)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    counts = [
        open_source(f"me/photos{more}").known("image", 9)
        for more in ("", ":test", ":small:test")
    ]
    assert counts == [3, 1, 1] and asked == [
        ("me/photos", None),
        ("me/photos", None),
        ("me/photos", "small"),
    ]
    shown = open_source("me/photos:test").open("image", 0).decode()
    assert np.array_equal(shown.picture(), scene(5, 3, 96, 128).picture())
    with pytest.raises(ValueError, match="no split 'dev'"):
        open_source("me/photos:dev")
    with pytest.raises(
        ValueError,
        match=r"no/where could not be loaded from the hub \(ConnectionError: no way\)",
    ):
        open_source("no/where")


def test_wrong_sources_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        open_source(str(tmp_path / "nothing"))
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(ValueError, match="is not a source"):
        open_source(str(tmp_path / "file.txt"))


def test_drawn_media_are_endless_and_keep_traits_away() -> None:
    source = open_source("drawn:3")
    assert source.known("image", 10**12) == 10**12 and source.known("document", 1) == 0
    assert isinstance(source.open("video", 10**6).decode(), Medium)
    plain, busy = (source.open("image", 1, avoid).where for avoid in (("flat-shapes",), ()))
    assert plain.startswith("landscape") and busy.startswith("scene")


def test_the_split_depends_on_content_and_is_disjoint(folder) -> None:
    source = FolderSource(folder)
    total = source.known("image", 99)
    sides = {}
    for side in ("train", "heldout"):
        split = SplitSource(source, side, 0.5)
        sides[side] = set()
        for place in range(total):
            try:
                sides[side].add(split.open("image", place).id)
            except BadMedia as error:
                assert error.reason == "other side of the split"
    assert (
        not sides["train"] & sides["heldout"]
        and len(sides["train"] | sides["heldout"]) == total
    )
    os.rename(folder / "z.png", folder / "renamed.png")
    again = FolderSource(folder)
    moved = {again.open("image", place).id for place in range(again.known("image", 99))}
    assert moved == sides["train"] | sides["heldout"]


def test_the_held_out_share_is_about_what_was_asked() -> None:
    shares = np.mean([held_out(f"id-{index}", 0.2) for index in range(4000)])
    assert 0.18 < shares < 0.22
    with pytest.raises(ValueError, match="held-out share"):
        SplitSource(DrawnSource(), "train", 1.5)
    with pytest.raises(ValueError, match="must be 'train' or 'heldout'"):
        SplitSource(DrawnSource(), "test")


def test_near_duplicates_of_held_out_media_stay_out_of_training() -> None:
    from mmrl.data.pretext.stream.media import perceptual_hash

    source = DrawnSource()
    places = [place for place in range(30) if not held_out(source.open("image", place).id, 0.2)]
    hashes = np.array(
        [perceptual_hash(source.open("image", places[0]).decode().picture())], dtype=np.uint64
    )
    split = SplitSource(source, "train", 0.2, hashes)
    with pytest.raises(BadMedia, match="near-duplicate"):
        split.open("image", places[0]).decode()
    assert split.open("image", places[1]).decode().picture().shape == (384, 512, 3)


def test_depth_scenes_are_consistent() -> None:
    medium = depth_scene(0, 0)
    assert medium.depth is not None and medium.depth.dtype == np.float32
    assert (
        medium.depth.min() >= 1.0
        and medium.depth.max() <= 10.0
        and medium.depth.shape == medium.picture().shape[:2]
    )
