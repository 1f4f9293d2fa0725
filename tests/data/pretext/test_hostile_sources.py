"""Archives whose headers lie, and names that lead to what is no file: refused, named, and within bounded memory."""

import io
import os
import socket
import tarfile
import tracemalloc

import pytest
from PIL import Image

from mmrl.data.pretext.stream.open import open_source
from mmrl.data.pretext.stream.sources import FolderSource
from mmrl.ground.faults import BadMedia
from mmrl.ground.quarantine import Quarantine

PIB = 1 << 50


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(buffer, "PNG")
    return buffer.getvalue()


def good_member() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("a-good.png")
        info.size = len(png())
        archive.addfile(info, io.BytesIO(png()))
        return buffer.getvalue()


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """One header that claims a size; beyond 8 GiB and below 0 in the base-256 form of GNU."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    sign = b"\xff" if size < 0 else b"\x80"
    block[124:136] = sign + (size % (1 << 88)).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(records: bytes) -> bytes:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    return info.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0")


LIES = {
    "a member of a pebibyte": header("big.png", PIB),
    "a member of a pebibyte in pax": pax(b"%d size=%d\n" % (25, PIB)) + header("big.png", 0),
    "a long name of a pebibyte": header("name", PIB, tarfile.GNUTYPE_LONGNAME),
    "a pax header of a pebibyte": header("pax", PIB, tarfile.XHDTYPE),
    "a global header of a pebibyte": header("pax", PIB, tarfile.XGLTYPE),
    "a member of negative size": header("back.png", -1024),
    "a long name of negative size": header("name", -512, tarfile.GNUTYPE_LONGNAME),
    "a member of negative size in pax": pax(b"14 size=-2560\n") + header("back.png", 0),
    "a size beyond all integers": header("huge.png", (1 << 86)),
    "headers without end": pax(b"11 comment=\n") * 3000,
    "a sparse file": header("holes.png", PIB, tarfile.GNUTYPE_SPARSE),
    "no archive": b"\xff" * 2000,
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_tar_gives_what_is_good_in_it(tmp_path, lie) -> None:
    start = good_member()[:1024]  # header and content: two blocks
    path = tmp_path / "a.tar"
    path.write_bytes(start + LIES[lie])
    source = open_source(str(path))
    tracemalloc.start()
    found = source.known("image", 99)
    opened = source.open("image", 0)
    assert opened.decode().picture().shape == (48, 64, 3)
    for place in range(1, found):
        with pytest.raises(BadMedia, match="truncated archive"):
            source.open("image", place)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


def test_a_broken_shard_among_others_is_counted_and_named(tmp_path) -> None:
    (tmp_path / "a.tar").write_bytes(header("pax", PIB, tarfile.XHDTYPE))
    (tmp_path / "b.tar").write_bytes(good_member())
    quarantine = Quarantine(tmp_path / "bad.jsonl")
    source = open_source(str(tmp_path), quarantine)
    assert source.known("image", 99) == 1
    assert quarantine.counts == {"broken archive": 1}
    assert "a.tar" in (tmp_path / "bad.jsonl").read_text()
    with pytest.raises(ValueError, match="cannot be read as an uncompressed tar"):
        open_source(str(tmp_path / "a.tar")).known("image", 1)


def no_files(folder) -> dict[str, str]:
    """What is no file, under names of media: name -> what it is."""
    os.mkfifo(folder / "fifo.png")
    os.mkfifo(folder / "fifo.mp4")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "zero.mp4").symlink_to("/dev/zero")
    (folder / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(folder)  # the path of a socket is at most 107 bytes long
        server.bind("socket.png")
        os.chdir(here)
    (folder / "circle.png").symlink_to("circle.png")
    return {
        "fifo.png": "FIFO",
        "fifo.mp4": "FIFO",
        "zero.png": "device",
        "zero.mp4": "device",
        "folder.png": "folder",
        "socket.png": "socket",
        "circle.png": "link",
    }


def test_what_is_no_file_is_refused_at_once(tmp_path) -> None:
    wanted = no_files(tmp_path)
    (tmp_path / "good.png").write_bytes(png())
    source = FolderSource(tmp_path)
    said = {}
    for kind in ("image", "video"):
        for place in range(source.known(kind, 99)):
            try:
                source.open(kind, place)
            except BadMedia as bad:
                said[os.path.basename(bad.where)] = bad.detail
    assert said.keys() == wanted.keys()
    for name, word in wanted.items():
        assert word in said[name], name


def test_a_shard_or_source_that_is_no_file_is_not_waited_for(tmp_path) -> None:
    (tmp_path / "b.tar").write_bytes(good_member())
    os.mkfifo(tmp_path / "a.tar")
    os.mkfifo(tmp_path / "c.parquet")
    assert open_source(str(tmp_path)).known("image", 9) == 1
    for name in ("/dev/zero", str(tmp_path / "a.tar"), str(tmp_path / "c.parquet")):
        with pytest.raises(ValueError, match="neither a file nor a folder"):
            open_source(name)


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/dev/zero", "outside"),
        ("../outside.png", "outside"),
        ("link.png", "outside"),
        ("fifo.png", "FIFO"),
        ("nowhere.png", "No such file"),
        ("a\0b.png", "zero byte"),
        ("x" * 5000, "outside|File name"),
    ],
)
def test_paths_in_a_table_stay_inside(tmp_path, path, word) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "outside.png").write_bytes(png())
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    os.mkfifo(folder / "fifo.png")
    (folder / "in.png").write_bytes(png())
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    cells = [{"bytes": None, "path": path}, {"bytes": None, "path": "in.png"}]
    table = pyarrow.table({"image": pyarrow.array(cells, kind)})
    parquet.write_table(table, folder / "a.parquet")
    source = open_source(str(folder / "a.parquet"))
    with pytest.raises(BadMedia, match=word):
        source.open("image", 0)
    assert source.open("image", 1).decode().picture().shape == (48, 64, 3)
