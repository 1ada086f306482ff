"""Decoding: every kind of image file becomes upright RGB or is refused with the reason, a bomb by its header."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps
from transformers.image_transforms import convert_to_rgb

from vrray.data.decode import MAX_SIDE, check_image, open_image
from vrray.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of damage, before it raises
Pixels = np.ndarray[Any, Any]


def photo(width: int = 48, height: int = 32) -> Image.Image:
    """Smooth colours with noise; no two quarters are alike."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(1).integers(0, 16, (height, width, 3))
    return Image.fromarray((np.stack([x * 4, y * 6, 200 - x - y], -1) % 240 + noise).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def opened(data: bytes) -> Image.Image:
    """What both functions make of a file; they must agree."""
    try:
        image = open_image(data, "it")
    except DataError as error:
        with pytest.raises(DataError) as refused:
            check_image(data, "it")
        assert str(refused.value) == str(error)
        raise
    check_image(data, "it")
    assert image.mode == "RGB"
    assert not image.info and not image.getexif()
    return image


def pixels(data: bytes) -> Pixels:
    return np.asarray(opened(data))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes = b"", bits: int = 8, colour: int = 2, more: bytes = b"") -> bytes:
    """A PNG file whose header says what it likes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = header + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "PNG", {}),
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True}),
        ("RGB", "WEBP", {}),
        ("RGB", "BMP", {}),
        ("RGB", "TIFF", {}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("RGB", "PPM", {}),
        ("RGB", "GIF", {}),
        ("L", "PNG", {}),
        ("L", "JPEG", {}),
        ("1", "PNG", {}),
        ("1", "TIFF", {}),
        ("P", "PNG", {}),
        ("P", "GIF", {}),
        ("CMYK", "JPEG", {}),
        ("CMYK", "TIFF", {}),
    ],
)
def test_opaque_images_are_as_pillow_converts_them(mode: str, kind: str, options: dict[str, Any]) -> None:
    source = photo().quantize(16) if mode == "P" else photo().convert(mode)
    data = encoded(source, kind, **options)
    np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert pixels(data).shape == (32, 48, 3)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_has_its_colours(kind: str) -> None:
    """A JPEG holds CMYK inverted, as Adobe writes it, a TIFF does not."""
    red = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), kind)
    assert np.abs(pixels(red).astype(int) - (255, 0, 0)).max() < 4


def transparent_files() -> dict[str, bytes]:
    fading = photo().convert("RGBA")
    fading.putalpha(Image.linear_gradient("L").resize(fading.size))
    palette = photo().quantize(16)
    return {
        "RGBA": encoded(fading, "PNG"),
        "RGBA in WebP": encoded(fading, "WEBP", lossless=True, exact=True),
        "LA": encoded(fading.convert("LA"), "PNG"),
        "palette with one colour": encoded(palette, "PNG", transparency=3),
        "palette with a list": encoded(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        "palette in GIF": encoded(palette, "GIF", transparency=3),
        "RGB with a colour": encoded(photo(), "PNG", transparency=photo().getpixel((5, 5))),
        "grey with a value": encoded(photo().convert("L"), "PNG", transparency=120),
    }


@pytest.mark.parametrize("kind", transparent_files())
def test_transparency_is_composed_onto_white_as_transformers_does(kind: str) -> None:
    data = transparent_files()[kind]
    raw = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(pixels(data), convert_to_rgb(raw, return_numpy=True))
    assert (pixels(data) != np.asarray(raw.convert("RGB"))).any()


def test_transparent_pixels_do_not_show_what_lies_under_them() -> None:
    image = Image.new("RGBA", (3, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 128))
    assert pixels(encoded(image, "PNG"))[0].tolist() == [[200, 0, 0], [255, 255, 255], [127, 127, 127]]


def ppm_16(values: Pixels) -> bytes:
    height, width = values.shape
    return f"P5 {width} {height} 65535\n".encode() + values.astype(">u2").tobytes()


@pytest.mark.parametrize(
    "write",
    [
        lambda values: encoded(Image.fromarray(values), "PNG"),
        lambda values: encoded(Image.fromarray(values), "TIFF"),
        lambda values: encoded(Image.fromarray(values), "TIFF", compression="tiff_deflate"),
        ppm_16,
    ],
    ids=["PNG", "TIFF", "deflated TIFF", "PPM"],
)
def test_grey_of_16_bits_is_scaled_not_clipped(write: Callable[[Pixels], bytes]) -> None:
    grey = np.asarray(photo().convert("L"))
    found = pixels(write(grey.astype(np.uint16) * 257))
    np.testing.assert_array_equal(found, np.repeat(grey[..., None], 3, axis=2))


def test_a_transparent_value_of_16_bits_is_white() -> None:
    row = b"\0" + struct.pack(">HHHH", 0x1234, 0x1235, 0x8000, 0xFFFF)
    data = png(4, 1, row, bits=16, colour=0, more=chunk(b"tRNS", struct.pack(">H", 0x1234)))
    assert pixels(data)[0, :, 0].tolist() == [255, 0x12, 0x80, 0xFF]


def test_other_pixel_types_are_refused() -> None:
    real = Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8))
    wide = Image.fromarray(np.arange(64, dtype=np.int32).reshape(8, 8))
    inverted = encoded(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)), "TIFF")
    black_is_0, white_is_0 = (struct.pack("<HHIHH", 262, 3, 1, value, 0) for value in (1, 0))
    assert black_is_0 in inverted
    for mode, data in (
        ("F", encoded(real, "TIFF")),
        ("I", encoded(wide, "TIFF")),
        ("I;16", inverted.replace(black_is_0, white_is_0)),
    ):
        with pytest.raises(DataError, match=f"image 'it' has pixels of type {mode}; save it as 8-bit or 16-bit grey"):
            opened(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_image_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(photo(), kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(pixels(data), expected)
    assert expected.shape == ((48, 32, 3) if orientation > 4 else (32, 48, 3))


def test_a_photo_taken_upright_with_a_sensor_on_its_side() -> None:
    """Orientation 6: the first row of the file is the right column of what was seen."""
    image = Image.new("RGB", (32, 16), "blue")
    image.paste((255, 0, 0), (0, 0, 32, 8))
    exif = Image.Exif()
    exif[274] = 6
    seen = opened(encoded(image, "PNG", exif=exif))
    assert seen.size == (16, 32)
    assert seen.getpixel((15, 16)) == (255, 0, 0)
    assert seen.getpixel((0, 16)) == (0, 0, 255)


def test_exif_that_cannot_be_read_turns_nothing() -> None:
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_several_frames_are_refused(kind: str) -> None:
    others = [photo().rotate(90), photo().rotate(180)]
    with pytest.raises(DataError, match="image 'it' has 3 frames; extract one"):
        opened(encoded(photo(), kind, save_all=True, append_images=others))
    assert opened(encoded(photo(), kind, save_all=True)).size == (48, 32)


def test_of_a_multi_picture_jpeg_the_first_is_the_photo() -> None:
    several = encoded(photo(), "MPO", save_all=True, append_images=[photo(16, 16)])
    np.testing.assert_array_equal(pixels(several), pixels(encoded(photo(), "JPEG")))


@pytest.mark.parametrize(
    ("side", "kind", "size"),
    [(480, "JPEG", (60, 40)), (48, "JPEG", (48, 32)), (480, "PNG", (480, 320))],
)
def test_checking_decodes_a_large_jpeg_at_an_eighth(
    side: int, kind: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(photo(side, side * 2 // 3), kind)
    sizes: list[tuple[int, int]] = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: (sizes.append(image.size), load(image))[1])
    assert check_image(data, "it").size == size
    assert set(sizes) == {size}
    open_image(data, "it")
    assert set(sizes) == {size, (side, side * 2 // 3)}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.95])
def test_truncated_files_are_refused(kind: str, kept: float) -> None:
    data = encoded(photo(), kind)
    with pytest.raises(DataError, match="image 'it' is damaged"):
        opened(data[: int(len(data) * kept)])


def test_a_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    jpeg = bytearray(encoded(photo(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 50_000, 50_000)
    for data in (png(50_000, 50_000), bytes(jpeg), b"P6 50000 50000 255\n"):
        with pytest.raises(DataError, match=r"image 'it' is too large .*2500000000 pixels.*; scale it down"):
            opened(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # somebody else's setting
    for data in (png(50_000, 50_000), bytes(jpeg), b"P6 50000 50000 255\n"):
        with pytest.raises(DataError, match=r"image 'it' has 50000 x 50000 pixels, at most 89,478,485 .*scale it down"):
            opened(data)
    with pytest.raises(DataError, match="16,384 a side are taken; scale it down"):
        opened(png(MAX_SIDE + 1, 1000))


def test_a_thin_image_is_refused_before_resizing_makes_it_huge() -> None:
    with pytest.raises(DataError, match="image 'it' has 402 x 2 pixels; it is thinner than 1:200; crop it"):
        opened(encoded(photo(402, 2), "PNG"))
    assert opened(encoded(photo(400, 2), "PNG")).size == (400, 2)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a text",
        b"%PDF-1.7\n1 0 obj\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        encoded(photo(), "ICO"),
        encoded(photo(), "TGA"),
        png(0, 5),
    ],
    ids=["empty", "text", "PDF", "EPS", "SVG", "ICO", "TGA", "no pixels"],
)
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=f"is damaged or not a PNG, JPEG, .* \\(it has {len(data)} bytes and starts"):
        opened(data)


def test_plugins_of_other_formats_are_not_even_loaded() -> None:
    code = """
import sys
from vrray.data.decode import open_image
from vrray.errors import DataError
for data in (b"%!PS-Adobe-3.0 EPSF-3.0", b"II*\\0", b"RIFF....WEBPVP8 ", b"nothing"):
    try:
        open_image(data, "it")
    except DataError:
        print("refused")
print("PIL.EpsImagePlugin" in sys.modules, "torch" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["refused"] * 4 + ["False", "False"]


def corrupted(data: bytes, generator: random.Random) -> bytes:
    damaged = bytearray(data)
    place, length = generator.randrange(len(data)), generator.randrange(1, 60)
    match generator.randrange(6):
        case 0:
            del damaged[place:]
        case 1:
            damaged[place] ^= 1 << generator.randrange(8)
        case 2:
            for _ in range(length):
                damaged[generator.randrange(len(data))] = generator.randrange(256)
        case 3:
            damaged[generator.randrange(min(64, len(data)))] = generator.randrange(256)  # the header
        case 4:
            del damaged[place : place + length]
        case 5:
            damaged[place:place] = generator.randbytes(length)
    return bytes(damaged)


def test_both_functions_agree_on_damaged_files_and_raise_nothing_else() -> None:
    exif = Image.Exif()
    exif[274] = 6
    originals = [
        encoded(photo(96, 64), "JPEG", exif=exif),
        encoded(photo(96, 64), "JPEG", progressive=True),
        encoded(photo(96, 64).convert("CMYK"), "JPEG"),
        encoded(photo(), "MPO", save_all=True, append_images=[photo()]),
        encoded(photo(), "PNG"),
        encoded(Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32)), "PNG"),
        encoded(photo(), "WEBP"),
        encoded(photo(), "GIF"),
        encoded(photo(), "BMP"),
        encoded(photo(), "TIFF"),
        encoded(photo(), "TIFF", compression="tiff_lzw"),
        encoded(photo(), "PPM"),
        *transparent_files().values(),
    ]
    generator, kept, refused = random.Random(7), 0, 0
    for _ in range(600):
        try:
            opened(corrupted(generator.choice(originals), generator))
            kept += 1
        except DataError:
            refused += 1
    assert kept > 100 and refused > 100
