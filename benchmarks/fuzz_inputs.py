"""Inputs of `fuzz_rows.py`: files of every format, rows of every layout, and how they are damaged."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def picture_seeds() -> dict[str, bytes]:
    """One file of every format and mode that is read, and of some that are not."""
    import io

    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (37, 45, 4), dtype=np.uint8)
    rgba = Image.fromarray(noise)
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    deep = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    more: dict[str, Any] = {
        "save_all": True,
        "append_images": [rgb.rotate(90), rgb.rotate(180)],
    }
    asked: list[tuple[str, Image.Image, str, dict[str, Any]]] = [
        ("jpeg", rgb, "JPEG", {"exif": exif}),
        ("jpeg progressive", rgb, "JPEG", {"progressive": True, "quality": 95}),
        ("jpeg cmyk", rgb.convert("CMYK"), "JPEG", {}),
        ("jpeg grey", grey, "JPEG", {}),
        ("mpo", rgb, "MPO", more),
        ("png", rgb, "PNG", {"exif": exif}),
        ("png alpha", rgba, "PNG", {}),
        ("png palette", rgb.quantize(16), "PNG", {"transparency": 3}),
        ("png 16", deep, "PNG", {}),
        ("png animated", rgb, "PNG", more),
        ("webp", rgba, "WEBP", {"exif": exif}),
        ("webp lossless", rgba, "WEBP", {"lossless": True}),
        ("webp animated", rgb, "WEBP", more),
        ("gif", rgb.quantize(32), "GIF", {}),
        ("gif animated", rgb, "GIF", more),
        ("bmp", rgb, "BMP", {}),
        ("bmp palette", rgb.quantize(16), "BMP", {}),
        ("tiff", rgb, "TIFF", {"exif": exif}),
        ("tiff lzw", rgba, "TIFF", {"compression": "tiff_lzw"}),
        ("tiff deflate", grey, "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("tiff jpeg", rgb, "TIFF", {"compression": "jpeg"}),
        ("tiff fax", grey.convert("1"), "TIFF", {"compression": "group4"}),
        ("tiff float", deep.convert("F"), "TIFF", {}),
        ("tiff pages", rgb, "TIFF", more),
        ("ppm", rgb, "PPM", {}),
        ("pgm", deep, "PPM", {}),
        ("pfm", deep.convert("F"), "PPM", {}),
        ("avif", rgba, "AVIF", {"speed": 10, "exif": exif}),
        ("avif animated", rgb, "AVIF", {"speed": 10, **more}),
        ("jpeg 2000", rgba, "JPEG2000", {}),
        ("jpeg 2000 stream", grey, "JPEG2000", {"no_jp2": True}),
        ("postscript", rgb, "EPS", {}),
        ("pdf", rgb, "PDF", {}),
        ("dds", rgba, "DDS", {}),
        ("icon", rgba, "ICO", {}),
        ("targa", rgb, "TGA", {}),
        ("pcx", rgb, "PCX", {}),
        ("sgi", rgb, "SGI", {}),
    ]
    made = {}
    for name, image, kind, options in asked:
        buffer = io.BytesIO()
        # Copies: a picture keeps what the writer of one format told it.
        pages = [page.copy() for page in options.get("append_images", [])]
        image.copy().save(buffer, kind, **{**options, "append_images": pages})
        made[name] = buffer.getvalue()
    made["ppm text"] = b"P3 4 3 255\n" + b" ".join(b"%d" % (7 * i % 256) for i in range(36))
    made["ppm odd range"] = b"P6 # odd\n4 3 99\n" + bytes(range(36))
    made["html"] = b"<!DOCTYPE html><html><body>404</body></html>"
    return made


def clip_seeds(folder: Path) -> dict[str, bytes]:
    """Small clips in several containers and codecs."""
    import av
    import numpy as np

    kinds = [
        ("mp4", "libx264"),
        ("mkv", "libx264"),
        ("mov", "mpeg4"),
        ("avi", "mpeg4"),
        ("webm", "libvpx"),
        ("ts", "mpeg2video"),
        ("flv", "flv"),
    ]
    made = {}
    for suffix, codec in kinds:
        path = folder / f"seed.{suffix}"
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=8)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            for number in range(12):
                pixels = np.full((32, 48, 3), 20 * number, dtype=np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        made[suffix] = path.read_bytes()
    return made


def mutated(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """The file with one to eight changes."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        if not changed:
            break
        _CHANGES[rng.randrange(len(_CHANGES))](changed, other, rng)
    return bytes(changed)


def _flip(changed: bytearray, other: bytes, rng: random.Random) -> None:
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)


def _put_byte(changed: bytearray, other: bytes, rng: random.Random) -> None:
    # The beginning is where sizes and offsets stand.
    at = rng.randrange(min(len(changed), rng.choice((64, 512, 1 << 30))))
    changed[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))


def _put_number(changed: bytearray, other: bytes, rng: random.Random) -> None:
    at = rng.randrange(min(len(changed), rng.choice((64, 512, 1 << 30))))
    size = rng.choice((2, 4, 8))
    number = rng.choice(
        (0, 1, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**64 - 1)
    )
    changed[at : at + size] = (number % 2 ** (8 * size)).to_bytes(
        size, rng.choice(("big", "little"))
    )


def _cut(changed: bytearray, other: bytes, rng: random.Random) -> None:
    del changed[rng.randrange(len(changed)) :]


def _drop(changed: bytearray, other: bytes, rng: random.Random) -> None:
    at = rng.randrange(len(changed))
    del changed[at : at + rng.choice((1, 4, 16, 100))]


def _double(changed: bytearray, other: bytes, rng: random.Random) -> None:
    at = rng.randrange(len(changed))
    piece = changed[at : at + rng.choice((1, 4, 16, 100, 1000))]
    changed[at:at] = piece * rng.choice((1, 2, 50))


def _insert(changed: bytearray, other: bytes, rng: random.Random) -> None:
    at = rng.randrange(len(changed))
    changed[at:at] = rng.randbytes(rng.choice((1, 2, 16, 64)))


def _splice(changed: bytearray, other: bytes, rng: random.Random) -> None:
    at = rng.randrange(len(changed))
    start = rng.randrange(len(other))
    changed[at:] = other[start:]


_CHANGES = (
    _flip,
    _flip,
    _put_byte,
    _put_byte,
    _put_number,
    _put_number,
    _cut,
    _drop,
    _double,
    _insert,
    _splice,
)


def inputs(
    seeds: Mapping[str, bytes], count: int, seed: int
) -> Iterator[tuple[int, str, bytes]]:
    """Number, kind and content of mutated files; each depends on the seed and its number only."""
    names = list(seeds)
    for number in range(count):
        rng = random.Random(f"{seed}:{number}")
        name, other = names[number % len(names)], rng.choice(names)
        yield number, name, mutated(seeds[name], seeds[other], rng)


def odd_values(rng: random.Random, good: str) -> Any:
    """What may stand in a cell where nobody expects it."""
    deep: Any = "x"
    for _ in range(rng.choice((1, 50, 400))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    random_text = rng.randbytes(12).decode("latin-1")
    return rng.choice(
        [*ODD_TEXTS, *ODD_NUMBERS, *odd_records(good), *ODD_CHATS, deep, random_text]
    )


ODD_TEXTS: tuple[Any, ...] = (
    "",
    " ",
    "\ud83d",
    "a\ud83d b",
    "\0",
    "a" * 5000,
    "<image>",
    "<video><image>",
    "<|im_start|>",
    "<|image_pad|>",
    "{{ x }}",
    "/dev/zero",
    "/etc/passwd",
    "../../x.png",
    "fifo.png",
    "zero.png",
    "folder",
    "~nobody/x.png",
    "file://",
    "file:///dev/zero",
    "https://x/y.png",
    "data:image/png;base64,",
    "data:image/png;base64,AAAA",
    "/9j/" + "A" * 80,
    "/9j/" + "A" * 80 + " " * 3000 + "!",
    "[" * 500,
    '{"role": "user"}',
    "[1, 2]",
    "0",
    "1e999",
)
ODD_NUMBERS: tuple[Any, ...] = (
    None,
    0,
    -1,
    True,
    1.5,
    3_000_000_000,
    10**300,
    float("nan"),
    float("inf"),
    [0, 1, 2],
    [3, 2, 1],
    [10**400, 1],
)
ODD_CHATS: tuple[Any, ...] = (
    [],
    {},
    [None],
    [[]],
    {"\udc00": 1},
    ["\ud800"],
    {"type": "image"},
    [{"role": "user"}],
    [{"role": [], "content": ""}],
    [{"from": {}, "value": 1}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]}],
    [{"role": "user", "content": [5]}],
    [{"role": "user", "content": [{"type": [], "text": "a"}]}],
    [{"role": "user", "content": [{"type": "text", "text": "\ud83d"}]}],
    [{"role": "assistant", "content": "a"}],
)


def odd_records(good: str) -> list[Any]:
    """Cells of media that hold something else."""
    return [
        {"bytes": "text"},
        {"bytes": [1, 2, 300]},
        {"bytes": [-1]},
        {"bytes": 3_000_000_000},
        {"bytes": 2.5},
        {"bytes": {}},
        {"bytes": []},
        {"bytes": None, "path": 7},
        {"bytes": None, "path": ["x"]},
        {"bytes": None},
        {"path": good, "bytes": ""},
        {"image": {"image": {"image": good}}},
        {"url": None},
        {"url": {"url": good}},
        [good, None],
        [good, 5],
        [[good]],
    ]


def good_rows(good: str) -> list[dict[str, Any]]:
    """One row of each layout. All have an answer: a mutation may add the column, which the good row must then fill."""
    ask = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
    return [
        {"question": "<image>What is it?", "answer": "1", "image": good, "id": "a"},
        {"problem": "<image><image>Which?", "answer": 2, "images": [good, good]},
        {"prompt": [ask], "image": good, "answer": "3"},
        {"messages": [ask], "images": [good], "answer": "4"},
        {
            "conversations": [
                {"from": "human", "value": "<image>Say."},
                {"from": "gpt", "value": "5"},
            ],
            "image": good,
            "answer": "5",
        },
        {"question": "Sum?", "answer": [1, 2]},
        {
            "question": "<video>When?",
            "answer": "6",
            "frames": [good, good],
            "times": [0.0, 0.5],
        },
        {"question": "<video>When?", "answer": "6", "frames": [good, good], "fps": 2},
    ]


def mutated_row(row: dict[str, Any], good: str, rng: random.Random) -> bytes:
    """A row as a line of JSON with one or two odd values, or a line that is damaged."""
    row = dict(row)
    for _ in range(rng.choice((1, 1, 2))):
        key = rng.choice([*row, "images", "answer", "extra", "id", "\ud83dkey"])
        row[key] = odd_values(rng, good)
    line = json.dumps(row).encode()
    if rng.random() < 0.1:
        line = mutated(line, line, rng).replace(b"\n", b" ")
    return line


def write_parquet(path: Path, good: Path, hostile: int, rng: random.Random) -> None:
    """Rows with embedded bytes, of which some are damaged, and texts that are no UTF-8."""
    import pyarrow
    import pyarrow.parquet as parquet

    content, cells, texts = good.read_bytes(), [], []
    for number in range(hostile + 1):
        damaged = mutated(content, content, rng) if number else content
        path_cell = rng.choice([None, "", "/etc/passwd", "\0", "../x.png", "good.png"])
        choices = [damaged, damaged, None, b""] if number else [damaged]
        cells.append({"bytes": rng.choice(choices), "path": path_cell})
        texts.append(
            rng.choice([b"<image>?", b"\xff\xfe", b"\xed\xa0\xbd", b"", b"<image>\0"])
            if number
            else b"<image>?"
        )
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    raw = pyarrow.array(texts, pyarrow.binary())
    # Taken over as they are, since a cast would check them.
    question = pyarrow.StringArray.from_buffers(len(raw), raw.buffers()[1], raw.buffers()[2])
    answer = pyarrow.array([str(number) for number in range(len(texts))])
    table = pyarrow.table(
        {"question": question, "image": pyarrow.array(cells, kind), "answer": answer}
    )
    parquet.write_table(table, path, row_group_size=16)
