"""Pictures from anywhere: only our formats, no other program, bounded memory, and nothing of a file's content said."""

import contextlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrl.ground.faults import BadMedia
from mmrl.ground.images import (
    DECODER_BYTES,
    FORMATS,
    MAX_PIXELS,
    decode_image,
    image_pixels,
    most_pixels,
)

RGB = Image.effect_noise((48, 40), 80).convert("RGB")
SECRET = "hunter2"


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def no_process(monkeypatch):
    """Nothing may be started."""

    def refuse(*arguments, **options):
        raise AssertionError(f"a process was started: {arguments}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(subprocess, "run", refuse)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_listed_format_is_read_and_survives_damage(kind) -> None:
    content = encoded(RGB, "JPEG2000" if kind == "JPEG2000" else kind)
    assert decode_image(content, "good").shape == (40, 48, 3)
    rng = np.random.default_rng(7)
    for _ in range(60):
        damaged = bytearray(content)
        for at in rng.integers(0, len(content), 3):
            damaged[at] = rng.integers(256)
        # Any other exception fails the test.
        with contextlib.suppress(BadMedia):
            decode_image(bytes(damaged[: rng.integers(1, len(content))]), "damaged")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (encoded(RGB, "EPS"), "PostScript"),
        (b"\xc5\xd0\xd3\xc6" + bytes(40) + encoded(RGB, "EPS"), "PostScript"),
        (encoded(RGB, "PDF"), "PDF"),
        (encoded(RGB, "DDS"), "DDS"),
        (encoded(RGB, "ICO"), "icon"),
        (encoded(RGB, "TGA"), "another kind"),
        (encoded(RGB, "PCX"), "another kind"),
        (encoded(RGB, "SGI"), "another kind"),
        (encoded(RGB, "IM"), "text|another kind"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "XML"),
        (b"PK\x03\x04" + bytes(50), "zip"),
        (b"\0\0\0 ftypisom" + bytes(50), "video"),
    ],
)
def test_other_formats_are_refused_without_another_program(no_process, content, word) -> None:
    with pytest.raises(BadMedia, match=word) as caught:
        decode_image(content, "picture.png")
    assert caught.value.reason == "not an image"


def test_an_opened_picture_of_another_format_is_not_decoded(no_process) -> None:
    opened = Image.open(io.BytesIO(encoded(RGB, "EPS")))
    with pytest.raises(BadMedia, match="EPS is not read; allowed are JPEG"):
        image_pixels(opened, "a PIL image")


def many_scans() -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    content = encoded(RGB, "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * 300 + b"\xff\xd9"


def huge_tile() -> bytes:
    """A small TIFF in one tile of 32768 x 32768 pixels."""
    tags = [(256, 64), (257, 64), (258, 8), (259, 8), (262, 1), (277, 1)]
    tags += [(322, 32768), (323, 32768), (324, 200), (325, 10)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    start = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)
    return start.ljust(200, b"\0") + bytes(10)


def png_of(width: int, height: int) -> bytes:
    content = bytearray(encoded(RGB, "PNG"))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (many_scans(), "broken image"),
        (huge_tile(), "too many pixels"),
        (png_of(2**31 - 1, 2**31 - 1), "too many pixels"),
        (png_of(60_000, 2_001), "too many pixels"),
        (png_of(0, 10), "broken image|not an image"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_before_they_are_decoded(content, reason) -> None:
    with pytest.raises(BadMedia) as caught:
        decode_image(content, "bomb")
    assert caught.value.reason in reason.split("|")


@pytest.mark.parametrize(
    "content",
    [b"P6 4000 3000 99\n", b"P3 4000 3000 255\n1 2", b"P2 4000 3000 9\n", b"P1 4000 3000\n"],
)
def test_decoders_that_are_written_in_python_get_less_to_do(content) -> None:
    with pytest.raises(BadMedia, match="at most 10000000"):
        decode_image(content, "slow")
    assert decode_image(b"P3 2 1 255\n1 2 3 4 5 6", "small").tolist() == [
        [[1, 2, 3], [4, 5, 6]]
    ]


@pytest.mark.parametrize("size", [(40_000, 3), (3, 40_000), (1, 1), (17_000, 70)])
@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "I;16", "L"])
def test_blocks_join_without_a_seam(size, mode) -> None:
    ramp = np.arange(size[0] * size[1], dtype=np.int64).reshape(size[::-1])
    if mode == "I;16":
        image = Image.fromarray((ramp % 65536).astype(np.uint16))
        wanted = np.rint((ramp % 65536) / 257).astype(np.uint8)[..., None].repeat(3, 2)
    else:
        image = Image.fromarray((ramp % 251).astype(np.uint8)).convert("RGB").convert(mode)
        wanted = np.asarray(image.convert("RGB"))
    assert np.array_equal(image_pixels(image, "made"), wanted)


def test_what_decoders_need_is_within_twice_the_largest_picture() -> None:
    largest = 4 * MAX_PIXELS
    for kind in (*FORMATS, *DECODER_BYTES, None):
        per_pixel = DECODER_BYTES.get(kind or "", 8)
        assert most_pixels(kind) * per_pixel <= 2 * largest
    assert most_pixels("JPEG") == most_pixels("PNG") == MAX_PIXELS


MEASURE = """
import sys
from mmrl.ground.images import decode_image
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
small, large, longest = sys.argv[1:]
decode_image(open(small, "rb"), "small", longest=8 if longest == "1" else None)
before = peak()
decode_image(open(large, "rb"), "large", longest=1024 if longest == "1" else None)
print(peak() - before)
"""


@pytest.mark.parametrize("longest", [False, True])
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGBA", {}),
        ("JPEG", "CMYK", {}),
        ("TIFF", "F", {}),
        ("JPEG", "RGB", {"exif": 6}),
    ],
)
def test_conversions_stay_within_the_memory(tmp_path, kind, mode, options, longest) -> None:
    side = 4000
    image = Image.linear_gradient("L").resize((side, side)).convert("RGB")
    image = image.convert("L").convert("F") if mode == "F" else image.convert(mode)
    if "exif" in options:
        exif = Image.Exif()
        exif[0x0112] = options["exif"]
        options = {"exif": exif}
    for name, page in (("small", image.resize((16, 16))), ("large", image)):
        page.save(tmp_path / name, kind, **options)
    files = [str(tmp_path / name) for name in ("small", "large")]
    command = [sys.executable, "-c", MEASURE, *files, str(int(longest))]
    path = {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(command, capture_output=True, text=True, env=path, check=True)
    # A strip of a million pixels is beside it, which is nothing where the limit lies.
    assert int(done.stdout) < 8 * side * side + 32_000_000


@pytest.mark.parametrize(
    "content",
    [
        f"{SECRET} is the password".encode(),
        f'{{"token": "{SECRET}"}}'.encode(),
        f"P6 {SECRET}0123456789 4 255\n".encode(),
        f"P3 4 4 255\n1 2 {SECRET} 3".encode(),
        f"P2 2 2 255\n{SECRET}{'9' * 30}".encode(),
        f"<html>{SECRET}</html>".encode(),
        f"%!PS {SECRET}".encode(),
        f"<svg>{SECRET}".encode(),
        b"\0\1" + SECRET.encode(),
        b"BM" + SECRET.encode() * 20,
        b"GIF89a" + SECRET.encode() * 20,
        b"\x89PNG\r\n\x1a\n" + SECRET.encode() * 20,
        b"II*\0\x08\0\0\0" + SECRET.encode() * 20,
        b"RIFF\x10\0\0\0WEBP" + SECRET.encode() * 20,
        b"\xff\xd8\xff\xe0" + SECRET.encode() * 20,
        encoded(RGB, "PNG").replace(b"IDAT", SECRET[:4].encode()),
        f"version https://git-lfs.github.com/spec/v1\noid {SECRET}".encode(),
    ],
)
def test_messages_say_nothing_of_a_files_content(content) -> None:
    from mmrl.data.pretext.stream.media import decode_depth

    for read in (decode_image, decode_depth):
        with pytest.raises(BadMedia) as caught:
            read(content, "somewhere")
        for quoted in (SECRET, SECRET[:4], repr(content[:8])[2:-1], content[:8].hex(" ")):
            assert quoted not in str(caught.value)


def test_the_header_of_a_depth_map_is_not_quoted() -> None:
    from mmrl.data.pretext.stream.media import decode_depth

    header = f"{{'{SECRET}': 1}}".encode().ljust(118) + b"\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with pytest.raises(BadMedia) as caught:
        decode_depth(content, "somewhere")
    assert SECRET not in str(caught.value)


def test_pictures_are_opened_in_one_place() -> None:
    """Whoever opens a file himself opens it in every format of Pillow, and without the limits."""
    root = Path(__file__).parents[2]
    found = []
    for folder in ("mmrl", "data", "perception", "recipes"):
        for path in (root / folder).rglob("*.py"):
            if "Image.open(" in path.read_text() and not path.is_symlink():
                found.append(path.relative_to(root).as_posix())
    assert found == ["mmrl/ground/images.py"]
