"""Image files to pixels, whatever they hold; what cannot be used is refused with the reason. Light to import."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

# Imported so that Image.open knows these formats and never loads its other plugins, one of which runs Ghostscript.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from vrray.errors import DataError

MAX_PIXELS = (1 << 28) // 3  # 256 MiB as RGB; from there on Pillow warns by itself
MAX_SIDE = 1 << 14  # padded to a square: 768 MiB
MAX_RATIO = 200  # a thinner image explodes when its shorter side is resized to the tower's
_DRAFT = (32, 32)  # smallest sides of a reduced JPEG
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_PLAIN = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"}
_ALPHA = {"LA", "PA", "RGBA", "La", "RGBa"}
_GREY_16 = {"I;16", "I;16L", "I;16B"}
_ORIENTATION, _BITS, _PHOTOMETRIC = 274, 258, 262  # TIFF tags; EXIF has the first
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(data: bytes, name: str) -> Image.Image:
    """An image file's image in RGB, upright, without metadata.

    Transparency is composed onto white, as transformers' image processors do, so that an image gives the same pixels
    however it reaches a model (LLaVA and Bunny drop the alpha channel, which shows whatever colour lies under it).
    Opaque RGB, grey and palette images are what Pillow's `convert("RGB")` gives. CMYK is taken as Adobe writes it,
    colour profiles are ignored, and of 16-bit grey the upper 8 bits are kept. EXIF that cannot be read turns nothing.

    Raises:
        DataError: the file is damaged, truncated or of another format; its header says that it is larger than
            `MAX_PIXELS`, `MAX_SIDE` or `MAX_RATIO` allow; it has several frames or pixels of an unsupported type.
    """
    return _decode(data, name, reduced=False)


def check_image(data: bytes, name: str) -> Image.Image:
    """Refuse what `open_image` refuses, at less cost; the image, of a large JPEG at an eighth of its size.

    Raises:
        DataError: as `open_image`.
    """
    return _decode(data, name, reduced=True)


def _decode(data: bytes, name: str, *, reduced: bool) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.width, image.height, name)
            _check_frames(image, name)
            _check_pixels(image, name)
            if reduced and isinstance(image, JpegImagePlugin.JpegImageFile):
                image.draft(None, _DRAFT)
            image.load()
            turn = _UPRIGHT.get(_orientation(image))
            plain = _to_rgb(image)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(
            f"image {name!r} is damaged or not a PNG, JPEG, WebP, GIF, BMP, TIFF or PPM file "
            f"(it has {len(data)} bytes and starts with {data[:8]!r})"
        ) from None
    except Image.DecompressionBombError as error:
        raise DataError(f"image {name!r} is too large ({error}); scale it down") from None
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise DataError(f"image {name!r} is damaged: {error or type(error).__name__}") from error
    plain.info.clear()  # nobody shall turn it a second time
    return plain if turn is None else plain.transpose(turn)


def _check_size(width: int, height: int, name: str) -> None:
    size = f"image {name!r} has {width} x {height} pixels"
    if min(width, height) < 1:
        raise DataError(f"{size}; it is empty")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise DataError(f"{size}, at most {MAX_PIXELS:,} and {MAX_SIDE:,} a side are taken; scale it down")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise DataError(f"{size}; it is thinner than 1:{MAX_RATIO}; crop it")


def _check_frames(image: Image.Image, name: str) -> None:
    # Of a multi-picture JPEG, which many cameras write, the first is the photo; the others are previews or depths.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames != 1:
        raise DataError(f"image {name!r} has {frames} frames; extract one")


def _check_pixels(image: Image.Image, name: str) -> None:
    if image.mode in _PLAIN | _ALPHA:
        return
    grey = image.mode in _GREY_16 or image.mode == "I"  # Pillow reads 16-bit PPM as I
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # it may also hold 12 bits, signed values, or white as 0
        grey = image.mode in _GREY_16 and (image.tag_v2.get(_BITS), image.tag_v2.get(_PHOTOMETRIC)) == ((16,), 1)
    if not grey:
        raise DataError(f"image {name!r} has pixels of type {image.mode}; save it as 8-bit or 16-bit grey or as RGB")


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # as `open_image` says
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _GREY_16 or image.mode == "I":
        values = np.asarray(image)
        transparent = values == image.info.get("transparency", -1)
        return Image.fromarray(np.where(transparent, 255, values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in _ALPHA or image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
