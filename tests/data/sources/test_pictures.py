"""Pictures of every kind that Pillow has, from files and from memory, as viewers show them."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from jaxformer.data.fields.image import ImageField
from jaxformer.data.sources.pictures import Undecodable, is_single, read_picture
from jaxformer.data.tasks.images import ImageTask

COLOURS = np.array([[[200, 30, 90], [10, 220, 60], [40, 40, 250]], [[0, 0, 0], [128, 128, 128], [255, 255, 255]]])
RGB = Image.fromarray(COLOURS.astype(np.uint8))
GREY = np.array([[88, 139, 64], [0, 128, 255]])
"""The luminance of the colours (ITU-R 601)."""
DEEP = np.array([[0, 257, 25_700], [32_768, 51_400, 65_535]], np.uint16)
SHALLOW = np.array([[0, 1, 100], [128, 200, 255]])
"""The nearest of 256 levels."""
FLOATS = np.array([[0, 0.25, 0.5], [0.75, 0.999, 1]], np.float32)
BYTES = np.array([[0, 64, 128], [191, 255, 255]])
ALPHA = np.array([[255, 0, 0], [255, 255, 0]], np.uint8)
BLACK_AND_WHITE = np.array([[0, 255, 0], [0, 255, 255]])


def lab():
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.applyTransform(RGB, ImageCms.buildTransform(*profiles, "RGB", "LAB"))


def hidden(picture):
    """With the pixels transparent that `ALPHA` says."""
    picture = picture.copy()
    picture.putalpha(Image.fromarray(ALPHA))
    return picture


def over_white(pixels):
    pixels = pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, 2)
    return np.where(ALPHA[..., None] > 0, pixels, 255)


def deep(mode):
    order = {"I;16B": ">u2"}.get(mode, "<u2")
    return Image.frombytes(mode, (3, 2), DEEP.astype(order).tobytes())


PALETTE = RGB.quantize(6)
ENTRIES = bytes(ALPHA.flat[np.argsort(np.asarray(PALETTE), axis=None)].tolist())
"""The transparency of each entry of the palette; every pixel has an entry of its own."""
MODES = {
    "1": (RGB.convert("L").point(lambda level: 255 * (level > 127)).convert("1"), BLACK_AND_WHITE),
    "L": (RGB.convert("L"), GREY),
    "P": (PALETTE, COLOURS),
    "RGB": (RGB, COLOURS),
    "RGBX": (RGB.convert("RGBX"), COLOURS),
    "RGBA": (hidden(RGB), over_white(COLOURS)),
    "RGBa": (hidden(RGB).convert("RGBa"), over_white(COLOURS)),
    "LA": (hidden(RGB.convert("L")), over_white(GREY)),
    "La": (hidden(RGB.convert("L")).convert("La"), over_white(GREY)),
    "PA": (hidden(PALETTE), over_white(COLOURS)),
    "CMYK": (RGB.convert("CMYK"), COLOURS),
    "YCbCr": (RGB.convert("YCbCr"), COLOURS),
    "HSV": (RGB.convert("HSV"), COLOURS),
    "LAB": (lab(), COLOURS),
    "I": (Image.fromarray(DEEP.astype(np.int32)), SHALLOW),
    "F": (Image.fromarray(FLOATS), BYTES),
    **{mode: (deep(mode), SHALLOW) for mode in ("I;16", "I;16L", "I;16B", "I;16N")},
}
LOSSY = {"YCbCr": 3, "HSV": 2, "LAB": 16}
"""How far a level may be after the way through a mode whose own levels are coarse."""


@pytest.mark.parametrize("mode", Image.MODES)
def test_read_picture_converts_every_mode_of_pillow(mode):
    picture, expected = MODES[mode]
    assert picture.mode == mode
    expected = expected if expected.ndim == 3 else expected[..., None].repeat(3, 2)
    found = read_picture(picture, 3)
    assert found.mode == "RGB"
    np.testing.assert_allclose(np.asarray(found, int), expected, atol=LOSSY.get(mode, 0))
    grey = read_picture(picture, 1)
    assert grey.mode == "L"
    luminance = np.asarray(Image.fromarray(expected.astype(np.uint8)).convert("L"), int)
    np.testing.assert_allclose(np.asarray(grey, int), luminance, atol=LOSSY.get(mode, 0))


def content(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


FILES = {
    "png 16": (content(deep("I;16")), SHALLOW),
    "png 16 with a hidden level": (content(deep("I;16"), transparency=0), np.where(SHALLOW > 0, SHALLOW, 255)),
    "png 1 with a hidden level": (content(MODES["1"][0], transparency=0), np.full((2, 3), 255)),
    "png palette": (content(PALETTE), COLOURS),
    "png palette with alpha": (content(PALETTE, transparency=ENTRIES), over_white(COLOURS)),
    "png palette with a hidden entry": (
        content(PALETTE, transparency=PALETTE.getpixel((1, 0))),
        np.where(np.arange(6).reshape(2, 3, 1) == 1, 255, COLOURS),
    ),
    "png hidden colour": (
        content(RGB, transparency=(40, 40, 250)),
        np.where(np.arange(6).reshape(2, 3, 1) == 2, 255, COLOURS),
    ),
    "gif": (content(PALETTE, "GIF"), COLOURS),
    "tiff 16": (content(deep("I;16"), "TIFF"), SHALLOW),
    "tiff 16, big-endian": (content(deep("I;16B"), "TIFF"), SHALLOW),
    "tiff float": (content(MODES["F"][0], "TIFF"), BYTES),
    "tiff cmyk": (content(MODES["CMYK"][0], "TIFF"), COLOURS),
    "webp with alpha": (content(hidden(RGB), "WEBP", lossless=True), over_white(COLOURS)),
    "pgm 16": (b"P5 3 2 65535\n" + DEEP.astype(">u2").tobytes(), SHALLOW),
}


@pytest.mark.parametrize("name", FILES)
def test_read_picture_reads_files(name):
    data, expected = FILES[name]
    expected = expected if expected.ndim == 3 else expected[..., None].repeat(3, 2)
    np.testing.assert_array_equal(np.asarray(read_picture(data, 3)), expected)


ARRAYS = {
    "uint8": (SHALLOW.astype(np.uint8), SHALLOW),
    "uint8 [h, w, 1]": (SHALLOW.astype(np.uint8)[..., None], SHALLOW),
    "uint16": (DEEP, SHALLOW),
    "uint16, big-endian": (DEEP.astype(">u2"), SHALLOW),
    "int64": (SHALLOW, SHALLOW),
    "float32": (FLOATS, BYTES),
    "float64 [h, w, 1]": (FLOATS.astype(np.float64)[..., None], BYTES),
    "float16 colours": ((COLOURS / 255).astype(np.float16), COLOURS),
    "bool": (BLACK_AND_WHITE > 0, BLACK_AND_WHITE),
    "uint16 colours": ((COLOURS * 257).astype(np.uint16), COLOURS),
    "grey and alpha": (np.stack([GREY, ALPHA], -1), over_white(GREY)),
    "colours and alpha": (np.concatenate([COLOURS, ALPHA[..., None]], -1).astype(np.uint8), over_white(COLOURS)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_read_picture_reads_arrays(name):
    array, expected = ARRAYS[name]
    expected = expected if expected.ndim == 3 else expected[..., None].repeat(3, 2)
    np.testing.assert_array_equal(np.asarray(read_picture(array, 3)), expected)


REFUSED = [
    (np.full((2, 2), 1.5), "x: cannot be decoded: floating-point pixels range from 1.5 to 1.5: expected 0 to 1"),
    (np.array([[0.5, np.nan]]), "floating-point pixels range from nan to nan: expected 0 to 1"),
    (np.array([[-1, 7]]), "pixels of int64 range from -1 to 7: expected 0 to 255"),
    (np.zeros((3, 4, 8), np.uint8), "an array of shape (3, 4, 8): expected [height, width] or [height, width, 1, 2, 3"),
    (np.zeros((0, 4), np.uint8), "an array of shape (0, 4): expected"),
    (np.zeros((2, 2), complex), "an array of complex128: expected numbers"),
    (Image.fromarray(np.array([[-1, 70_000]], np.int32)), "32-bit pixels range from -1 to 70000: expected 0 to 65535"),
    (Image.fromarray(np.array([[0, 255]], np.float32)), "floating-point pixels range from 0 to 255: expected 0 to 1"),
    (b"no picture", "x: cannot be decoded: cannot identify image file"),
    (7, "x: cannot be decoded: "),
]


@pytest.mark.parametrize(("image", "line"), REFUSED)
def test_pixels_of_unknown_range_are_refused(image, line):
    with pytest.raises(Undecodable) as caught:
        read_picture(image, 3, "x")
    assert line in str(caught.value) and "\n" not in str(caught.value)


TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 3),
}
"""How a picture is stored that is to be seen upright, by its EXIF orientation."""


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_read_picture_applies_exif_orientation(kind, orientation, tmp_path):
    # Large even areas, which JPEG keeps nearly as they are.
    upright = COLOURS.astype(np.uint8).repeat(16, 0).repeat(16, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    stored = Image.fromarray(np.ascontiguousarray(TURNED[orientation](upright)))
    stored.save(tmp_path / "picture", kind, exif=exif, **options)
    found = np.asarray(read_picture(tmp_path / "picture", 3), int)
    np.testing.assert_allclose(found, upright, atol=6 if kind == "JPEG" else 0)


def test_damaged_exif_data_are_ignored():
    data = content(RGB, "PNG", exif=b"Exif\x00\x00XX nonsense")
    np.testing.assert_array_equal(np.asarray(read_picture(data, 3)), COLOURS)


def test_all_kinds_of_images_give_the_same_pixels(tmp_path):
    task = ImageTask(ImageField(2, fit="stretch"))
    RGB.save(tmp_path / "a.png")
    path, array = str(tmp_path / "a.png"), np.asarray(RGB)
    ways = [path, tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), array, array / 255, RGB]
    asked = task.prepare_requests(ways)
    assert [found.path for found in asked] == [path, path, *(f"image {number}" for number in range(3, 7))]
    for way, found in zip(ways, asked, strict=True):
        np.testing.assert_array_equal(found.pixels, asked[0].pixels)
        np.testing.assert_array_equal(task.image.prepared(task.image.encode(way).picture), asked[0].pixels)


def test_one_input_or_several():
    assert all(map(is_single, ("a.png", b"", Path("a.png"), RGB, np.zeros((2, 2)), np.zeros((2, 2, 3)))))
    assert not any(map(is_single, (["a.png"], ("a", "b"), np.zeros((5, 2, 2, 3)), np.array(["a", "b"]))))


def test_a_long_strip_is_cropped_before_resizing():
    strip = np.zeros((2, 40_000, 1), np.uint8)
    strip[:, 20_000:] = 255
    found = ImageField(4, 1).prepared(read_picture(strip, 1))
    assert found.shape == (4, 4, 1) and found[0, 0, 0] < 40 and found[0, 3, 0] > 215
