import hashlib
import io
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from actkit.images import MOST_BYTES, read_image

NOISE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
GREY = NOISE[..., 0]
# an arrow is not mirror-symmetric, and its blocks survive JPEG
ARROW = np.kron(
    np.array([[0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]], np.uint8) * 255, np.ones((16, 16), np.uint8)
)
NO_IMAGE = "is not an image (PNG, JPEG, WebP, BMP, GIF or TIFF)"
BOMB = "is larger than 100 megapixels (decompression bomb)"


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(
    width: int, height: int, data: bytes, *, depth: int = 8, colour: int = 0, before: bytes = b""
) -> bytes:
    """Return a handwritten PNG file, whose header may contradict its data."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


def palette_image() -> Image.Image:
    """Image of four pixels: red, green, blue and a transparent one."""
    image = Image.new("P", (4, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    for x in range(4):
        image.putpixel((x, 0), x)
    return image


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(ARROW, "JPEG", quality=95, exif=exif)


FOUR_COLOURS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]])
SIXTEEN_BITS = struct.pack(">B4H", 0, 0, 255, 256, 65535)
SIXTEEN_BIT_COLOURS = struct.pack(">B6H", 0, 0, 256, 65535, 255, 32768, 512)
ALPHA = np.linspace(0, 255, GREY.size).astype(np.uint8).reshape(GREY.shape)
JPEG = encoded(NOISE, "JPEG")
GOOD = {
    "PNG": (encoded(NOISE), NOISE),
    "BMP": (encoded(NOISE, "BMP"), NOISE),
    "TIFF": (encoded(NOISE, "TIFF"), NOISE),
    "compressed TIFF": (encoded(NOISE, "TIFF", compression="tiff_lzw"), NOISE),
    "WebP": (encoded(NOISE, "WEBP", lossless=True), NOISE),
    "grey": (encoded(GREY), rgb(GREY)),
    "black and white": (encoded(Image.fromarray(GREY > 99)), rgb((GREY > 99) * 255)),
    "16 bits": (png(4, 1, SIXTEEN_BITS, depth=16), rgb(np.array([[0, 0, 1, 255]]))),
    "16-bit TIFF": (encoded(np.array([[0, 257, 65535]], np.uint16), "TIFF"), rgb(np.array([[0, 1, 255]]))),
    "16-bit colours": (
        png(2, 1, SIXTEEN_BIT_COLOURS, depth=16, colour=2),
        np.array([[[0, 1, 255], [0, 128, 2]]]),
    ),
    "palette": (encoded(palette_image()), FOUR_COLOURS),
    "palette with transparency": (
        encoded(palette_image(), transparency=3),
        np.where(np.arange(4)[None, :, None] == 3, 255, FOUR_COLOURS),
    ),
    "transparent GIF": (
        encoded(palette_image(), "GIF", transparency=3),
        np.where(np.arange(4)[None, :, None] == 3, 255, FOUR_COLOURS),
    ),
    "alpha": (encoded(np.dstack([NOISE, ALPHA])), over_white(NOISE, ALPHA)),
    "grey with alpha": (
        encoded(Image.fromarray(np.dstack([GREY, ALPHA]), "LA")),
        over_white(rgb(GREY), ALPHA),
    ),
    "one transparent colour": (
        png(3, 1, bytes([0, 7, 8, 9]), before=chunk(b"tRNS", struct.pack(">H", 8))),
        rgb(np.array([[7, 255, 9]])),
    ),
    "first frame": (
        encoded(rgb(GREY * 0), "GIF", save_all=True, append_images=[Image.fromarray(NOISE)]),
        rgb(GREY * 0),
    ),
    "first page": (
        encoded(NOISE, "TIFF", save_all=True, append_images=[Image.fromarray(GREY)]),
        NOISE,
    ),
    "one pixel": (encoded(NOISE[:1, :1]), NOISE[:1, :1]),
    "one row": (encoded(np.tile(NOISE[:1], (1, 3, 1))), np.tile(NOISE[:1], (1, 3, 1))),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_images_become_the_rgb_they_show(name, tmp_path):
    content, expected = GOOD[name]
    image, fault, digest = read_image(content, tmp_path)
    assert fault == ""
    assert image.mode == "RGB"
    assert digest == hashlib.sha256(content).hexdigest()
    np.testing.assert_allclose(np.asarray(image), expected, atol=1)


def test_jpeg_pixels_are_those_of_its_own_decoder(tmp_path):
    (image, fault, _) = read_image(JPEG, tmp_path)
    assert fault == ""
    np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(JPEG))))


UPRIGHT = {
    1: ARROW,
    2: ARROW[:, ::-1],
    3: ARROW[::-1, ::-1],
    4: ARROW[::-1],
    5: ARROW.T,
    6: np.rot90(ARROW, -1),
    7: ARROW[::-1, ::-1].T,
    8: np.rot90(ARROW),
    99: ARROW,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_once(orientation, tmp_path):
    image, fault, _ = read_image(turned(orientation), tmp_path)
    assert fault == ""
    assert not image.getexif()
    assert not image.info
    np.testing.assert_allclose(np.asarray(image), rgb(UPRIGHT[orientation]), atol=12)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation_of_other_formats(kind, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"lossless": True} if kind == "WEBP" else {}
    image, fault, _ = read_image(encoded(NOISE, kind, exif=exif, **options), tmp_path)
    assert fault == ""
    np.testing.assert_array_equal(np.asarray(image), np.rot90(NOISE, -1))


def test_damaged_exif_is_no_fault(tmp_path):
    broken = encoded(NOISE, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    image, fault, _ = read_image(broken, tmp_path)
    assert (image.size, fault) == ((40, 24), "")


class Value:
    pass


BAD_VALUES = {
    "nothing": (None, "is empty"),
    "empty text": ("", "is empty"),
    "blank": ("  ", "is empty"),
    "struct of nothing": ({"bytes": None, "path": None}, "is empty"),
    "float": (1.5, "holds a float, not an image"),
    "int": (3, "holds an int, not an image"),
    "list": ([0, 1], "holds a list, not an image"),
    "other struct": ({"text": "a"}, "holds a dict, not an image"),
    "struct of a list": ({"bytes": [1, 2]}, "holds a list, not an image"),
    "object": (Value(), "holds a Value, not an image"),
    "URL": ("https://example.org/a.png", "is a URL; download it first"),
    "file URL": ("FILE:///etc/passwd", "is a URL; download it first"),
    "data URL": ("data:image/png;base64,AAAA", "is a URL; download it first"),
    "path into an archive": ("zip://a.png::b.zip", "is a URL; download it first"),
    "zero bytes": (b"", "has zero bytes"),
    "text": (b"a picture of a cat", NO_IMAGE),
    "one byte": (b"\x89", NO_IMAGE),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3", NO_IMAGE),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', NO_IMAGE),
    "pickle": (pickle.dumps({"a": 1}), NO_IMAGE),
    "array": (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}", NO_IMAGE),
    "text that begins like a BMP": (b"BMW and others, a list of cars", NO_IMAGE),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NO_IMAGE),
    "known to Pillow, not to us": (encoded(NOISE, "PPM"), NO_IMAGE),
    "head of a PNG": (encoded(NOISE)[:20], "is truncated"),
    "head of a JPEG": (JPEG[:5], "is truncated or damaged"),
    "half a PNG": (encoded(NOISE)[:900], "is truncated"),
    "PNG without its end": (encoded(NOISE)[:-12], "is truncated"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "is truncated"),
    "JPEG without its end": (JPEG[:-20], "is truncated"),
    "half a GIF": (encoded(GREY, "GIF")[:-200], "is truncated"),
    "half a BMP": (encoded(NOISE, "BMP")[:500], "is truncated"),
    "half a WebP": (encoded(NOISE, "WEBP")[:200], "is truncated or damaged"),
    "flipped bits": (encoded(NOISE)[:500] + b"~~~~" + encoded(NOISE)[504:], "is truncated or damaged"),
    "no width": (png(0, 9, b""), "is truncated or damaged"),
    "bomb": (png(50_000, 50_000, bytes(100)), BOMB),
    "small bomb": (png(10_001, 10_000, bytes(100), depth=1), BOMB),
    "long bomb": (png(65_000, 1, bytes(100), depth=1), "is more than 200 times as long as wide"),
    "text bomb": (
        png(1, 1, bytes(2), before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27)))),
        "is truncated or damaged",
    ),
    "floats": (
        encoded(np.ones((2, 2), np.float32), "TIFF"),
        "has 32 bits per pixel and channel; save it with 8 or 16",
    ),
    "large ints": (
        encoded(np.ones((2, 2), np.int32), "TIFF"),
        "has 32 bits per pixel and channel; save it with 8 or 16",
    ),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_bad_values_are_faults(name, tmp_path):
    value, expected = BAD_VALUES[name]
    image, fault, digest = read_image(value, tmp_path)
    assert image is None
    assert fault == expected
    assert digest == (hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else "")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Workspace with an image, and a second image outside it that must not be reached."""
    root = tmp_path / "work"
    (root / "folder").mkdir(parents=True)
    (tmp_path / "work2").mkdir()
    for path in ("work/a.png", "work/folder/صورة.png", "secret.png", "work2/b.png"):
        (tmp_path / path).write_bytes(encoded(NOISE))
    (root / "empty.png").touch()
    (root / "inside").symlink_to("folder/صورة.png")
    (root / "out.png").symlink_to("../secret.png")
    (root / "up").symlink_to("..")
    (root / "ring").symlink_to("ring")
    os.mkfifo(root / "pipe")
    with (root / "huge.png").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    return root


@pytest.mark.parametrize(
    "value",
    [
        "a.png",
        Path("a.png"),
        "./folder/../a.png",
        "folder/صورة.png",
        "inside",
        "{root}/a.png",
        {"bytes": None, "path": "a.png"},
        {"path": "a.png"},
        {"bytes": encoded(NOISE), "path": "/nowhere/b.png"},
        bytearray(encoded(NOISE)),
        memoryview(encoded(NOISE)),
    ],
)
def test_good_values(root, value):
    value = value.format(root=root) if isinstance(value, str) else value
    image, fault, digest = read_image(value, root)
    assert fault == ""
    assert digest == hashlib.sha256(encoded(NOISE)).hexdigest()
    np.testing.assert_array_equal(np.asarray(image), NOISE)


def test_the_root_may_be_a_link(root):
    link = root.parent / "link"
    link.symlink_to(root)
    assert read_image("a.png", link)[1] == ""
    assert read_image(str(root / "a.png"), link)[1] == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("b.png", "is missing: b.png"),
        ("a.png/b.png", "is missing: a.png/b.png"),
        ("z" * 60 + "y" * 150 + ".png", f"is missing: {'z' * 60}…{'y' * 26}.png"),
        ("z" * 300, "cannot be read: File name too long"),
        ("empty.png", "has zero bytes"),
        ("huge.png", "is larger than 512 MB"),
        ("folder", "is a folder"),
        (".", "is a folder"),
        ("pipe", "is not a regular file"),
        ("ring", "cannot be read: Too many levels of symbolic links"),
        ("../secret.png", "lies outside {root}"),
        ("../work2/b.png", "lies outside {root}"),
        ("../missing.png", "lies outside {root}"),
        ("up/secret.png", "lies outside {root}"),
        ("out.png", "lies outside {root}"),
        ("/etc/passwd", "lies outside {root}"),
        ("/dev/zero", "lies outside {root}"),
        ({"bytes": None, "path": "../secret.png"}, "lies outside {root}"),
        ("a\0.png", r"is not a path: a\x00.png"),
        ("\ud800.png", r"is not a path: \ud800.png"),
        ("a\nb.png", r"is missing: a\nb.png"),
    ],
)
def test_bad_paths_are_faults(root, value, expected):
    assert read_image(value, root)[:2] == (None, expected.format(root=root))


def test_devices_are_never_read():
    assert read_image("zero", Path("/dev")) == (None, "is not a regular file", "")


def test_a_setting_of_others_hides_no_truncated_file(monkeypatch, tmp_path):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert read_image(JPEG[:-20], tmp_path)[1] == "is truncated"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_large_images_below_the_limit_bring_no_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", NOISE[..., 0].size - 1)
    assert read_image(encoded(NOISE), tmp_path)[1] == ""


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_cut_file_is_a_fault_unless_all_pixels_are_there(kind, tmp_path):
    content = encoded(NOISE[:6, :8], kind)
    whole = read_image(content, tmp_path)[0]
    for length in range(len(content)):
        image, fault, _ = read_image(content[:length], tmp_path)
        assert (image is None) == bool(fault)
        assert fault or (image == whole and length >= len(content) - 4)


def test_no_flipped_byte_raises(tmp_path):
    rng = np.random.default_rng(1)
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"):
        content = encoded(NOISE[:6, :8], kind)
        for place in rng.integers(0, len(content), 80):
            changed = bytearray(content)
            changed[place] ^= int(rng.integers(1, 256))
            image, fault, _ = read_image(bytes(changed), tmp_path)
            assert (image is None) == bool(fault)
