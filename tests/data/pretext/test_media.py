"""Bad media: each file is used correctly or refused with its reason."""

import io
import struct
import zlib

import av
import numpy as np
import pytest
from PIL import Image

from mmrl.data.pretext.craft.procedural import scene
from mmrl.data.pretext.stream.media import (
    LONGEST,
    FileClip,
    clip_from_bytes,
    clip_id,
    clip_medium,
    decode_depth,
    decode_picture,
    near,
    perceptual_hash,
)
from mmrl.ground.faults import BadMedia
from mmrl.ground.quarantine import Quarantine

RGB = scene(0, 0, 96, 128).picture()


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def close(found: np.ndarray, expected: np.ndarray, limit: float = 4.0) -> bool:
    return found.shape == expected.shape and np.abs(found.astype(int) - expected).mean() < limit


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "RGB"), ("JPEG", "RGB"), ("WEBP", "RGB"), ("BMP", "RGB"), ("TIFF", "RGB"),
                       ("PPM", "RGB"), ("PNG", "RGBA"), ("JPEG", "CMYK"), ("TIFF", "CMYK"), ("PNG", "P"), ("GIF", "P")],
)  # fmt: skip
def test_colour_modes_and_formats_are_read(kind: str, mode: str) -> None:
    content = encoded(Image.fromarray(RGB).convert(mode), kind)
    found = decode_picture(content, "x")
    assert found.dtype == np.uint8 and close(
        found, RGB, 30.0 if mode == "P" else 12.0 if kind in ("JPEG", "WEBP") else 4.0
    )


def test_grey_bilevel_and_alpha() -> None:
    grey = np.asarray(Image.fromarray(RGB).convert("L"))
    assert close(
        decode_picture(encoded(Image.fromarray(grey), "PNG"), "x"),
        np.repeat(grey[..., None], 3, 2),
    )
    assert set(
        np.unique(decode_picture(encoded(Image.fromarray(grey).convert("1"), "PNG"), "x"))
    ) == {0, 255}
    clear = Image.new("RGBA", (40, 30), (255, 0, 0, 0))
    assert (decode_picture(encoded(clear, "PNG"), "x") == 255).all()


def test_sixteen_bit_and_float_grey_keep_their_relations() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    for image in (
        Image.fromarray(ramp.astype(np.uint16)),
        Image.fromarray((ramp / 65535).astype(np.float32)),
    ):
        found = decode_picture(encoded(image, "TIFF"), "x")[..., 0].astype(int)
        assert found.min() == 0 and found.max() >= 254 and np.all(np.diff(found.ravel()) >= 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode_picture(encoded(Image.fromarray(RGB), "JPEG", exif=exif, quality=95), "x")
    turned = {1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2),
              6: np.rot90(RGB, -1), 7: RGB[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(RGB, 1)}  # fmt: skip
    assert close(found, turned[orientation], 12.0)


def test_the_first_frame_of_an_animation_is_used() -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode_picture(content, "x")[0, 0] == (255, 0, 0)).all()


def test_wide_and_tiny_pictures_are_decoded_within_limits() -> None:
    wide = decode_picture(encoded(Image.new("RGB", (20_000, 50), "navy"), "PNG"), "x")
    assert wide.shape[1] == LONGEST and wide.shape[0] >= 1
    assert decode_picture(encoded(Image.new("RGB", (1, 1), "navy"), "PNG"), "x").shape == (
        1,
        1,
        3,
    )


def huge_png(width: int, height: int) -> bytes:
    """A small file that promises many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body))
            + kind
            + body
            + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


JPEG = encoded(Image.fromarray(RGB), "JPEG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"just some text in a .jpg", "not an image"),
        (b"<!doctype html><html></html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (b"\xff\xd8\xff\xe0", "not an image"),
        (JPEG[: len(JPEG) // 3], "broken image"),
        (encoded(Image.fromarray(RGB), "PNG")[:2000], "broken image"),
        (huge_png(40_000, 40_000), "too many pixels"),
        (huge_png(2_000_000_000, 2), "too many pixels"),
    ],
)
def test_bad_images_are_refused_with_a_reason(content: bytes, reason: str) -> None:
    with pytest.raises(BadMedia) as caught:
        decode_picture(content, "somewhere")
    assert caught.value.reason == reason and caught.value.where == "somewhere"


def test_depth_maps_in_millimetres_and_metres() -> None:
    metres = np.linspace(0.5, 9.5, 600, dtype=np.float32).reshape(20, 30)
    millimetres = Image.fromarray((metres * 1000).round().astype(np.uint16))
    assert np.allclose(decode_depth(encoded(millimetres, "PNG"), "x"), metres, atol=6e-4)
    buffer = io.BytesIO()
    np.save(buffer, metres)
    assert np.array_equal(decode_depth(buffer.getvalue(), "x"), metres)
    with pytest.raises(BadMedia, match="broken depth map"):
        decode_depth(b"\x93NUMPY broken", "x")
    with pytest.raises(BadMedia, match="broken depth map"):
        decode_depth(encoded(Image.fromarray(RGB), "PNG"), "x")


def test_pickled_arrays_are_not_executed() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadMedia, match="broken depth map"):
        decode_depth(buffer.getvalue(), "x")


def test_near_duplicates_have_near_hashes() -> None:
    picture = scene(1, 1).picture()
    small = decode_picture(
        encoded(Image.fromarray(picture).resize((300, 225)), "JPEG", quality=60), "x"
    )
    others = np.array(
        [perceptual_hash(scene(1, index).picture()) for index in range(2, 12)], dtype=np.uint64
    )
    assert near(perceptual_hash(small), np.array([perceptual_hash(picture)], dtype=np.uint64))
    assert not near(perceptual_hash(picture), others) and not near(
        0, np.zeros(0, dtype=np.uint64)
    )


def video(path, codec: str = "mpeg4", frames: int = 24, gop: int = 12, rate: int = 12) -> str:
    """A clip whose grey level rises by ten per frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 128, 96, "yuv420p", gop
        for index in range(frames):
            plane = np.full((96, 128, 3), 10 * index % 250, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(plane, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def test_clips_give_the_frames_asked_for(tmp_path) -> None:
    clip = FileClip(video(tmp_path / "a.mp4"), "a.mp4")
    assert (
        len(clip.times) == 24
        and clip.times[0] == 0.0
        and np.allclose(np.diff(clip.times), 1 / 12)
    )
    frames = clip.read([20, 3, 3, 0])
    assert frames.shape == (4, 96, 128, 3) and frames.dtype == np.uint8
    assert np.allclose(frames.mean(axis=(1, 2, 3)), [200, 30, 30, 0], atol=8)
    assert np.array_equal(clip.read([3])[0], frames[1]) and clip.held == 3 * 96 * 128 * 3


@pytest.mark.parametrize("gop", [1, 1000])
def test_clips_without_usual_key_frames_are_read(tmp_path, gop: int) -> None:
    clip = FileClip(video(tmp_path / "a.mp4", gop=gop), "a.mp4")
    assert np.allclose(clip.read([23]).mean(), 230, atol=8)


def test_a_clip_from_an_archive_lives_as_long_as_its_medium(tmp_path) -> None:
    import gc
    from pathlib import Path

    content = (tmp_path / "a.mp4").read_bytes() if video(tmp_path / "a.mp4") else b""
    medium = clip_from_bytes(content, "tar:a.mp4", "id")
    path = medium.video().path  # type: ignore[attr-defined]
    assert Path(path).exists() and medium.video().read([1]).shape == (1, 96, 128, 3)
    del medium
    gc.collect()
    assert not Path(path).exists()


def audio(path) -> str:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 2048), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def test_bad_clips_are_refused_with_a_reason(tmp_path) -> None:
    whole = (tmp_path / "a.mp4").read_bytes() if video(tmp_path / "a.mp4") else b""
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a clip")
    bad = {name: str(tmp_path / f"{name}.mp4") for name in ("cut", "empty", "text")}
    bad["audio"] = audio(tmp_path / "audio.mp4")
    bad["one"] = video(tmp_path / "one.mp4", frames=1)
    reasons = {}
    for name, path in bad.items():
        with pytest.raises(BadMedia) as caught:
            clip_medium(path, path, "id")
        reasons[name] = caught.value.reason
    assert all(reasons.values()) and reasons["one"] == "one frame only", reasons


def test_clip_ids_follow_content_not_names(tmp_path) -> None:
    first, second = video(tmp_path / "a.mp4"), video(tmp_path / "b.mp4", frames=30)
    copy = tmp_path / "c.mp4"
    copy.write_bytes((tmp_path / "a.mp4").read_bytes())
    assert clip_id(first) == clip_id(copy) != clip_id(second)


def test_the_quarantine_counts_all_and_lists_each_once(tmp_path) -> None:
    import json

    quarantine = Quarantine(tmp_path / "deep" / "bad.jsonl")
    for where, reason in (("a", "empty file"), ("a", "empty file"), ("b", "not an image")):
        quarantine.add(BadMedia(where, reason))
    rows = [
        json.loads(line) for line in (tmp_path / "deep" / "bad.jsonl").read_text().splitlines()
    ]
    assert [row["where"] for row in rows] == ["a", "b"] and quarantine.counts == {
        "empty file": 2,
        "not an image": 1,
    }
