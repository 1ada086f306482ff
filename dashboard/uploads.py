"""Images that somebody sends: really decoded, of bounded size, kept as bytes. Light to import."""

from __future__ import annotations

import base64
import binascii
import io
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote_to_bytes

from PIL import Image

from vrray.data.decode import FORMATS, open_image
from vrray.data.images import open_at_once
from vrray.errors import DataError

MAX_BYTES = 10 << 20
MAX_PIXELS = 40_000_000  # 120 MB as RGB while it is decoded
MAX_SIDE = 2048  # what is kept: vision towers read 224 to 896 pixels a side


def accept_image(data: bytes, name: str = "the image") -> bytes:
    """The file of an image that may be asked about: as it came where it is small, else scaled down, as a JPEG.

    Raises:
        DataError: it has more than `MAX_BYTES` or `MAX_PIXELS`, or `open_image` refuses it.
    """
    if len(data) > MAX_BYTES:
        raise DataError(f"{name} has {len(data) / 2**20:.1f} MiB; at most {MAX_BYTES >> 20} MiB are taken")
    width, height = _declared_size(data, name)
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{name} has {width} x {height} pixels; at most {MAX_PIXELS / 1e6:.0f} million are taken: scale it down"
        )
    image = open_image(data, name)
    if max(image.size) <= MAX_SIDE:
        return data
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return jpeg(image)


def jpeg(image: Image.Image) -> bytes:
    """An RGB image as a JPEG file of high quality."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def png(image: Image.Image) -> bytes:
    """An image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def read_upload(path: str, folder: str | os.PathLike[str]) -> bytes:
    """The accepted image of a file that Gradio has stored for an upload.

    Args:
        folder: where Gradio keeps uploads; nothing else is read, whatever a request says.

    Raises:
        DataError: the path leads elsewhere, or the image is refused (`accept_image`).
    """
    try:
        real, inside = os.path.realpath(path), os.path.realpath(folder)
        if os.path.commonpath((real, inside)) != inside:
            raise DataError("the image is not an upload; choose the file again")
        with open(real, "rb", opener=open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DataError("the upload is not a file; choose the file again")
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError):
        raise DataError("the uploaded image is not there any more; choose the file again") from None
    return accept_image(data)


def image_of_url(url: str) -> bytes:
    """The accepted image of a `data:image/...;base64,...` URL; no other address is opened.

    Raises:
        DataError: it is another address, or not base64, or the image is refused (`accept_image`).
    """
    head, comma, body = url.partition(",")
    if not head.lower().startswith("data:image/") or not comma:
        raise DataError("image_url must be a data URL, data:image/png;base64,...; other addresses are not opened")
    if len(body) > MAX_BYTES * 4:
        raise DataError(f"the image has more than {MAX_BYTES >> 20} MiB")
    try:
        data = base64.b64decode(unquote_to_bytes(body), validate=True) if head.lower().endswith(";base64") else b""
    except (binascii.Error, ValueError) as error:
        raise DataError(f"image_url is not valid base64: {error}") from None
    if not data:
        raise DataError("image_url holds no base64 data")
    return accept_image(data)


def upload_of(message: Mapping[str, object] | None, folder: str | os.PathLike[str]) -> tuple[str, tuple[bytes, ...]]:
    """Text and images of what a `gr.MultimodalTextbox` holds.

    Raises:
        DataError: it has more than one image, or the image is refused.
    """
    text = str((message or {}).get("text") or "").strip()
    files = (message or {}).get("files") or []
    if not isinstance(files, list) or len(files) > 1:
        raise DataError("a message takes one image; remove the others")
    return text, tuple(read_upload(str(file), Path(folder)) for file in files)


def _declared_size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height that a file's header says, before anything is decoded; `open_image` judges what is damaged."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size
    except Image.DecompressionBombError:
        raise DataError(f"{name} is far too large; at most {MAX_PIXELS / 1e6:.0f} million pixels are taken") from None
    except Exception:  # decoders raise whatever a damaged file leads them to
        return 0, 0
