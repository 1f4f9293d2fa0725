"""Every kind of picture becomes upright uint8 RGB, or is refused with a reason."""

from __future__ import annotations

import base64
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from mmrl.data.rows.images import check_image, read_image
from mmrl.ground.faults import Fault
from mmrl.ground.images import MAX_PIXELS

ASTRONAUT = skimage.data.astronaut()[:96, :128]  # [96, 128, 3]


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def hwc(tensor: torch.Tensor) -> np.ndarray:
    assert (
        tensor.dtype == torch.uint8
        and tensor.ndim == 4
        and tensor.shape[:2] == (1, 3)
        and tensor.is_contiguous()
    )
    return tensor[0].permute(1, 2, 0).numpy()


def test_all_ways_to_hold_an_image_give_the_same_pixels(tmp_path):
    data = encoded(Image.fromarray(ASTRONAUT))
    (tmp_path / "a.png").write_bytes(data)
    text = base64.b64encode(data).decode()
    cells = [
        "a.png",
        str(tmp_path / "a.png"),
        f"file://{tmp_path}/a.png",
        tmp_path / "a.png",
        data,
        {"bytes": data, "path": None},
        {"bytes": None, "path": "a.png"},
        {"url": f"data:image/png;base64,{text}"},
        f"data:image/png;base64,{text}",
        text,
        Image.fromarray(ASTRONAUT),
        ASTRONAUT,
    ]
    for cell in cells:
        if not isinstance(cell, Image.Image | np.ndarray):
            check_image(cell, tmp_path)
        assert np.array_equal(hwc(read_image(cell, tmp_path)), ASTRONAUT)


@pytest.mark.parametrize(
    "name", ["coffee.png", "rocket.jpg", "camera.png", "page.png", "logo.png", "multipage.tif"]
)
def test_real_files(name):
    path = Path(skimage.data.__file__).parent / name
    pixels = hwc(read_image(path))
    with Image.open(path) as image:
        assert pixels.shape == (image.height, image.width, 3)
        if image.mode in ("RGB", "L"):
            assert np.array_equal(pixels, np.asarray(image.convert("RGB")))
    assert pixels.std() > 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    upright = np.zeros((30, 50, 3), dtype=np.uint8)
    upright[:8, :8] = (255, 0, 0)
    upright[:8, -8:] = (0, 255, 0)
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[
        orientation
    ]  # Image.Transpose that hides it again
    stored = Image.fromarray(upright)
    stored = stored if undo is None else stored.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(hwc(read_image(encoded(stored, "PNG", exif=exif))), upright)


def test_transparency_is_laid_over_white():
    rgba = np.zeros((4, 4, 4), dtype=np.uint8)
    rgba[0, 0] = (200, 10, 10, 255)
    rgba[1, 1] = (0, 0, 0, 128)
    pixels = hwc(read_image(encoded(Image.fromarray(rgba))))
    assert pixels[0, 0].tolist() == [200, 10, 10] and pixels[3, 3].tolist() == [255] * 3
    assert abs(int(pixels[1, 1, 0]) - 127) <= 1
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert hwc(read_image(encoded(palette))).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert hwc(read_image(encoded(palette, transparency=1))).tolist() == [
        [[10, 20, 30], [255, 255, 255]]
    ]
    grey = Image.fromarray(np.array([[[7, 255], [7, 0]]], dtype=np.uint8), "LA")
    assert hwc(read_image(encoded(grey))).tolist() == [[[7] * 3, [255] * 3]]


def test_cmyk_sixteen_bit_float_and_bilevel():
    cmyk = Image.fromarray(ASTRONAUT).convert("CMYK")
    assert np.abs(hwc(read_image(encoded(cmyk, "TIFF"))).astype(int) - ASTRONAUT).max() <= 1
    assert (
        np.abs(
            hwc(read_image(encoded(cmyk, "JPEG", quality=95))).astype(int) - ASTRONAUT
        ).mean()
        < 6
    )
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(2, 0)
    for kind in ("PNG", "TIFF"):
        assert hwc(read_image(encoded(Image.fromarray(ramp), kind)))[0, :, 1].tolist() == list(
            range(256)
        )
    unit = Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32)[None])
    assert hwc(read_image(encoded(unit, "TIFF")))[0, :, 2].tolist() == list(range(256))
    assert hwc(read_image(encoded(Image.new("1", (2, 2), 1)))).tolist() == [[[255] * 3] * 2] * 2
    negative = Image.fromarray(np.array([[-1.0, 2.0]], dtype=np.float32))
    with pytest.raises(Fault, match="grey values from -1 to 2"):
        read_image(encoded(negative, "TIFF"))


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (6, 5), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    for kind in ("GIF", "WEBP", "PNG"):
        lossless = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
        assert hwc(read_image(data))[2, 2].tolist() == [255, 0, 0]


def test_broken_files_say_what_they_are(tmp_path):
    good = encoded(Image.fromarray(ASTRONAUT), "JPEG")
    cases = {
        b"": "is empty",
        b"   \n": "is empty",
        b"just a caption": "text of 14 bytes",
        b"<!DOCTYPE html><p>404": "a web page",
        b"version https://git-lfs.github.com/spec/v1\noid": "git lfs pull",
        good[: len(good) // 2]: "cannot be decoded",
        encoded(Image.fromarray(ASTRONAUT))[:-400]: "cannot be decoded",
        bytes(range(64)): "64 bytes of another kind; allowed are JPEG",
    }
    for data, words in cases.items():
        path = tmp_path / "picture.jpg"
        path.write_bytes(data)
        with pytest.raises(Fault, match=words) as caught:
            read_image(path)
        assert caught.value.reason == "broken image" and str(path) in str(caught.value)


def test_missing_and_wrong_cells(tmp_path):
    for cell, reason in [
        ("nowhere.png", "missing media"),
        (None, "missing media"),
        ("", "missing media"),
        (7, "missing media"),
        ({"bytes": None, "path": None}, "missing media"),
        ("https://example.org/a.png", "remote media"),
        ("data:image/png,abc", "broken image"),
        ("data:image/png;base64,@@@", "broken image"),
        (np.zeros((2, 2, 3)), "broken image"),
        (np.zeros((2, 2, 4), dtype=np.uint8), "broken image"),
        (str(tmp_path), "missing media"),
        ("a\0b.png", "missing media"),
        ("x" * 5000, "missing media"),
    ]:
        with pytest.raises(Fault) as caught:
            read_image(cell, tmp_path)
        assert caught.value.reason == reason
        assert len(str(caught.value)) < 600


def test_decompression_bombs_are_refused_before_decoding():
    side = int(MAX_PIXELS**0.5) + 10
    small_file = encoded(Image.new("1", (side, side)), "PNG")
    assert len(small_file) < 100_000
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(Fault, match="pixels") as caught,
    ):
        read_image(small_file)
    assert caught.value.reason == "image too large"
    with pytest.raises(Fault, match="image too large"):
        read_image(encoded(Image.new("1", (side * 2, side)), "PNG"))


def test_faults_keep_their_place_and_travel():
    fault = Fault("broken image", "found x", "Mend it.").at("a.jsonl, line 3")
    assert str(fault) == "a.jsonl, line 3: broken image: found x. Mend it."
    assert fault.at("elsewhere").where == "a.jsonl, line 3"
    assert str(pickle.loads(pickle.dumps(fault))) == str(fault)
