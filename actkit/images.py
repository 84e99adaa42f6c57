"""Images from table cells, checked before anything is decoded."""

import hashlib
import io
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile

from .regular_files import IrregularError, read_regular

MOST_PIXELS = 100_000_000
MOST_RATIO = 200
MOST_BYTES = 512 * 2**20
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")

_NO_IMAGE = "is not an image (PNG, JPEG, WebP, BMP, GIF or TIFF)"
_TOO_LARGE = f"is larger than {MOST_PIXELS // 10**6} megapixels (decompression bomb)"
_TOO_LONG = f"is larger than {MOST_BYTES // 2**20} MB"
_URL = re.compile(r"data:|[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_SIGNATURES = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|RIFF.{4}WEBP|BM.{4}\0{4}|GIF8[79]a|II\*\0|MM\0\*", re.DOTALL
)
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(value: Any, root: Path) -> tuple[Image.Image | None, str, str]:
    """Read the image that a cell of a table holds.

    Never raises or warns for bad data, and never decodes an image before its size is known.

    Parameters
    ----------
    value
        A path below `root`, the bytes of an image file, or a Hugging Face image: a mapping with
        ``bytes``, or else ``path``.
    root
        Folder that no path may leave, neither through ``..`` nor through a link.

    Returns
    -------
    image : PIL.Image.Image or None
        First frame in RGB, upright according to its EXIF orientation, with transparent pixels over white;
        ``None`` if there is a fault.
    fault : str
        The fault, as a phrase that follows the name of the cell; empty if there is none.
    digest : str
        SHA-256 of the encoded bytes; empty if none could be read.

    Examples
    --------
    >>> read_image(b"some text", Path("."))[1]
    'is not an image (PNG, JPEG, WebP, BMP, GIF or TIFF)'
    """
    content, fault = _content(value, root)
    if content is None:
        return None, fault, ""
    image, fault = _decode(content)
    return image, fault, hashlib.sha256(content).hexdigest()


def _content(value: Any, root: Path) -> tuple[bytes | None, str]:
    """Return the encoded bytes, or a fault."""
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if value is None:
        return None, "is empty"
    if isinstance(value, bytes | bytearray | memoryview):
        if len(value) > MOST_BYTES:
            return None, _TOO_LONG
        return bytes(value), ""
    if isinstance(value, str | os.PathLike):
        return _file(os.fspath(value), root)
    kind = type(value).__name__
    return None, f"holds {'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}, not an image"


def _file(path: str | bytes, root: Path) -> tuple[bytes | None, str]:
    """Read a regular file below `root`."""
    path = os.fsdecode(path)
    shown = path.encode("unicode_escape" if not path.isprintable() else "utf-8").decode()
    shown = shown if len(shown) <= 100 else f"{shown[:60]}…{shown[-30:]}"
    if not path.strip():
        return None, "is empty"
    if _URL.match(path):
        return None, "is a URL; download it first"
    try:
        # not Path.resolve, which raises for circular links
        inside = os.path.realpath(root)
        real = os.path.realpath(os.path.join(inside, path))
        if not Path(real).is_relative_to(inside):
            return None, f"lies outside {root}"
        return read_regular(real, MOST_BYTES), ""
    except IrregularError as error:
        return None, str(error)
    except (FileNotFoundError, NotADirectoryError):
        return None, f"is missing: {shown}"
    except OSError as error:
        return None, f"cannot be read: {error.strerror}"
    except ValueError:
        return None, f"is not a path: {shown}"


def _decode(content: bytes) -> tuple[Image.Image | None, str]:
    """Decode all pixels of an image, once its size has been checked."""
    if not content:
        return None, "has zero bytes"
    try:
        with _quiet_and_strict():
            with Image.open(io.BytesIO(content), formats=FORMATS) as checked:
                if checked.width * checked.height > MOST_PIXELS:
                    return None, _TOO_LARGE
                # processors scale the shorter side up, and the longer one in proportion
                if max(checked.size) > MOST_RATIO * min(checked.size):
                    return None, f"is more than {MOST_RATIO} times as long as wide"
                # only PNG has checksums, which decoding does not verify
                checked.verify()
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                image.load()
                if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
                    return None, "has 32 bits per pixel and channel; save it with 8 or 16"
                return _rgb(_upright(image)), ""
    except Image.DecompressionBombError:
        return None, _TOO_LARGE
    except MemoryError:
        return None, "does not fit into memory"
    except Exception as error:  # damaged files make the decoders raise almost anything
        if not _SIGNATURES.match(content):
            return None, _NO_IMAGE
        truncated = isinstance(error, EOFError) or "truncated" in str(error).lower()
        return None, "is truncated" if truncated else "is truncated or damaged"


@contextmanager
def _quiet_and_strict() -> Iterator[None]:
    """Silence Pillow's warnings, and make it reject truncated files whatever its global setting."""
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _upright(image: Image.Image) -> Image.Image:
    """Rotate or flip the image according to its EXIF orientation."""
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # the metadata are damaged, the pixels are not
        turn = None
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    """Return 8-bit RGB over white, without metadata: an EXIF orientation would be applied twice."""
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    alpha = image.convert("RGBA") if image.has_transparency_data else None
    result = Image.new("RGB", image.size, "white")
    result.paste(image.convert("RGB") if alpha is None else alpha, mask=alpha)
    return result
