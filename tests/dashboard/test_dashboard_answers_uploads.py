"""What is sent as an image: decoded or refused, and no path leads anywhere but to uploads."""

from __future__ import annotations

import base64
import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from dashboard import uploads
from dashboard.uploads import MAX_BYTES, MAX_SIDE, accept_image, image_of_url, png, read_upload, upload_of
from vrray.data.decode import open_image
from vrray.errors import DataError

SMALL = png(Image.new("RGB", (30, 20), "red"))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes whose header says that it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


def test_a_small_image_is_kept_as_it_came_and_a_large_one_scaled_down() -> None:
    assert accept_image(SMALL) == SMALL
    large = open_image(accept_image(png(Image.new("RGB", (MAX_SIDE * 2, 100), "red"))), "large")
    assert large.size == (MAX_SIDE, 50)


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (8_000, 8_000)])
def test_decompression_bombs_are_refused_by_their_header(width: int, height: int) -> None:
    with pytest.raises(DataError, match=r"pixels|too large"):
        accept_image(bomb(width, height))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a",
        b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n(ls) system\n",
        b"MZ" + bytes(100),
        SMALL[:60],
        SMALL[:40] + bytes(20) + SMALL[60:],
    ],
    ids=["empty", "cut", "svg", "postscript", "program", "truncated", "damaged"],
)
def test_what_is_no_whole_image_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="damaged"):
        accept_image(data)


def test_too_many_bytes_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(DataError, match=r"has 11\.0 MiB; at most 10 MiB"):
        accept_image(SMALL + bytes(MAX_BYTES + (1 << 20) - len(SMALL)))


def test_paths_of_a_request_lead_to_uploads_alone(tmp_path: Path) -> None:
    folder, outside = tmp_path / "uploads", tmp_path / "secret.png"
    folder.mkdir()
    outside.write_bytes(SMALL)
    (folder / "own.png").write_bytes(SMALL)
    (folder / "link.png").symlink_to(outside)
    os.mkfifo(folder / "pipe.png")
    assert read_upload(str(folder / "own.png"), folder) == SMALL
    for path in (outside, folder / ".." / "secret.png", folder / "link.png", "/etc/passwd", tmp_path / "uploads2"):
        with pytest.raises(DataError, match="is not an upload"):
            read_upload(str(path), folder)
    for path in (folder / "gone.png", folder, f"{folder}/nul\0.png"):
        with pytest.raises(DataError, match="not there any more"):
            read_upload(str(path), folder)
    with pytest.raises(DataError, match="not a file"):
        read_upload(str(folder / "pipe.png"), folder)


def test_a_message_has_text_and_at_most_one_image(tmp_path: Path) -> None:
    path = tmp_path / "own.png"
    path.write_bytes(SMALL)
    assert upload_of({"text": " What? ", "files": [str(path)]}, tmp_path) == ("What?", (SMALL,))
    assert upload_of(None, tmp_path) == ("", ())
    with pytest.raises(DataError, match="one image"):
        upload_of({"text": "", "files": [str(path)] * 2}, tmp_path)


def test_data_urls_are_decoded_and_no_other_address_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    assert image_of_url("data:image/png;base64," + base64.b64encode(SMALL).decode()) == SMALL
    for url in ("http://127.0.0.1/a.png", "file:///etc/passwd", "/etc/passwd", "data:text/html,<b>", "ftp://x/y,z"):
        with pytest.raises(DataError, match="other addresses are not opened"):
            image_of_url(url)
    for url in ("data:image/png;base64,", "data:image/png,abc", "data:image/png;base64,!!!"):
        with pytest.raises(DataError, match="base64"):
            image_of_url(url)
    monkeypatch.setattr(uploads, "MAX_BYTES", 10)
    with pytest.raises(DataError, match="MiB"):
        image_of_url("data:image/png;base64," + base64.b64encode(SMALL).decode())
