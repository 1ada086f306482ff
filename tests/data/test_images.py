"""Images by name: below folders and URIs, embedded, never outside their root; shared by threads and processes."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

import vrray.data.images
from vrray.data.images import Images, content_hashes, embedded_name, image_hash, write_blobs
from vrray.errors import DataError


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    (folder / "red.png").write_bytes(png("red"))
    (folder / "deep" / "green.png").write_bytes(png("green"))
    return folder


@pytest.fixture
def in_memory() -> Images:
    """Images on a file system that is not local (pyarrow's own for tests)."""
    images = Images({"": "mock:///bucket"})
    filesystem, folder = images._open_root("mock:///bucket")
    filesystem.create_dir(f"{folder}/deep")
    for name, colour in (("red.png", "red"), ("deep/green.png", "green")):
        with filesystem.open_output_stream(f"{folder}/{name}") as stream:
            stream.write(png(colour))
    return images


def test_names_start_at_the_folder(photos: Path) -> None:
    for root in (photos, str(photos), f"{photos}/", photos.as_uri()):
        images = Images({"": root})
        assert images.read("red.png") == png("red")
        assert images.read("deep/green.png") == images.read("./deep//green.png") == png("green")
        assert images.open("deep/green.png").getpixel((0, 0)) == (0, 128, 0)


def test_a_folder_is_meant_from_where_it_was_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    images = Images({"": "photos"})
    monkeypatch.chdir("/")
    assert images.read("red.png") == pickle.loads(pickle.dumps(images)).read("red.png") == png("red")


def test_prefixes_choose_the_root(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png("blue"))
    (photos / "odd:name.png").write_bytes(png("white"))  # a colon alone makes no prefix
    (photos / ":red.png").write_bytes(png("black"))  # nor does an empty one
    images = Images({"": photos, "demo": tmp_path})
    assert images.read("demo:red.png") == png("blue")
    assert images.read("odd:name.png") == png("white")
    assert images.read(":red.png") == png("black")
    with pytest.raises(DataError, match=rf"image 'demo:x\.png' cannot be read: No such file .*below {tmp_path}\)"):
        images.read("demo:x.png")
    with pytest.raises(DataError, match=r"image 'red\.png' cannot be read: no folder is given for the images"):
        Images({"demo": tmp_path}).read("red.png")


def test_a_missing_image_is_named_with_where_it_was_looked_for(photos: Path, in_memory: Images) -> None:
    absent = r"image 'absent\.png' cannot be read: No such file or directory \(looked for below"
    with pytest.raises(DataError, match=rf"{absent} {photos}\)"):
        Images({"": photos}).read("absent.png")
    with pytest.raises(DataError, match=r"image 'absent\.png' cannot be read: .*\(looked for below mock:///bucket\)"):
        in_memory.read("absent.png")
    with pytest.raises(DataError, match=r"image 'red\.png' cannot be read: .*below nowhere://bucket\)"):
        Images({"": "nowhere://bucket"}).read("red.png")
    for folder in ("deep", "."):
        with pytest.raises(DataError, match=rf"image '{folder}' cannot be read: Is a directory"):
            Images({"": photos}).read(folder)


@pytest.mark.parametrize("name", ["../secret.png", "deep/../../secret.png", "/etc/hostname", "C:\\x.png", "..", ""])
def test_names_do_not_leave_their_root(photos: Path, in_memory: Images, name: str) -> None:
    (photos.parent / "secret.png").write_bytes(png("red"))
    for images, asked in (
        (Images({"": photos}), name),
        (Images({"": photos, "demo": photos}), f"demo:{name}"),
        (in_memory, name),
    ):
        with pytest.raises(DataError, match=r"is absolute|may leave the image root|write a relative path"):
            images.read(asked)


def test_links_may_lead_inside_the_root_only(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key.png").write_bytes(png("red"))
    (photos / "alias.png").symlink_to("deep/green.png")
    (photos / "folder").symlink_to(photos / "deep", target_is_directory=True)
    (photos / "out.png").symlink_to(tmp_path / "secrets" / "key.png")
    (photos / "out").symlink_to(tmp_path / "secrets", target_is_directory=True)
    (photos / "photos-2").symlink_to(tmp_path / "photos-2", target_is_directory=True)
    (tmp_path / "photos-2").mkdir()
    (tmp_path / "photos-2" / "x.png").write_bytes(png("red"))
    (photos / "round").symlink_to("round")
    (tmp_path / "link").symlink_to(photos, target_is_directory=True)
    for root in (photos, tmp_path / "link", f"file://{tmp_path}/link"):
        images = Images({"": root})
        assert images.read("alias.png") == images.read("folder/green.png") == png("green")
        for name in ("out.png", "out/key.png", "photos-2/x.png"):
            with pytest.raises(
                DataError, match=rf"image '{name}' cannot be read: a link leads out of the folder, to /"
            ):
                images.read(name)
        with pytest.raises(DataError, match="image 'round' cannot be read: Too many levels of symbolic links"):
            images.read("round")


def test_what_is_not_a_readable_file_is_refused(
    photos: Path, monkeypatch: pytest.MonkeyPatch, in_memory: Images
) -> None:
    images = Images({"": photos})
    os.mkfifo(photos / "pipe.png")
    with pytest.raises(DataError, match=r"image 'pipe\.png' cannot be read: it is not a file"):
        images.read("pipe.png")  # and nobody waits for its writer
    for name in ("a\0b.png", "x" * 300 + ".png", "\udcff.png"):
        with pytest.raises(DataError, match=r"File name too long|is no file name"):
            images.read(name)
    (photos / "text.jpg").write_text("a text")
    with pytest.raises(DataError, match=r"image 'text\.jpg' is damaged or not a PNG"):
        images.open("text.jpg")
    monkeypatch.setattr(vrray.data.images, "MAX_BYTES", 50)
    for source in (images, in_memory):
        with pytest.raises(DataError, match=rf"'red\.png' cannot be read: it has {len(png('red'))} bytes, at most 50"):
            source.read("red.png")


def test_images_of_a_uri(in_memory: Images) -> None:
    assert in_memory.read("red.png") == png("red")
    assert in_memory.read("deep/green.png") == in_memory.read("./deep//green.png") == png("green")
    assert in_memory.open("red.png").getpixel((0, 0)) == (255, 0, 0)


def test_embedded_images(photos: Path, tmp_path: Path) -> None:
    write_blobs(tmp_path / "one.arrow", [(embedded_name(png("blue")), png("blue"))])
    write_blobs(tmp_path / "two.arrow", [(embedded_name(png("pink")), png("pink"))])
    files = [tmp_path / "one.arrow", tmp_path / "two.arrow"]
    images = Images({"": photos}, files)
    for colour in ("blue", "pink"):
        assert images.read(embedded_name(png(colour))) == png(colour)
    assert images.open(embedded_name(png("blue"))).getpixel((0, 0)) == (0, 0, 255)
    assert images.read("red.png") == png("red")
    absent = embedded_name(b"absent")
    with pytest.raises(DataError, match=rf"image '{absent}' .* embedded images \({files[0]}, {files[1]}\)"):
        images.read(absent)
    with pytest.raises(DataError, match=rf"image '{absent}' .* embedded images \(none is given\)"):
        Images({"": photos}).read(absent)


def test_a_copy_for_a_worker_opens_everything_anew(photos: Path, tmp_path: Path, in_memory: Images) -> None:
    write_blobs(tmp_path / "one.arrow", [(embedded_name(png("blue")), png("blue"))])
    images = Images({"": photos, "uri": photos.as_uri()}, [tmp_path / "one.arrow"])
    names = ["red.png", "uri:deep/green.png", embedded_name(png("blue"))]
    before = [images.read(name) for name in names]
    sent = pickle.dumps(images)
    assert len(sent) < 1000  # neither mappings nor file systems are sent
    copy = pickle.loads(sent)
    assert (copy.roots, copy.blobs) == (images.roots, images.blobs)
    assert [copy.read(name) for name in names] == before
    with pytest.raises(DataError):  # a new file system, which is empty
        pickle.loads(pickle.dumps(in_memory)).read("red.png")


def test_threads_share_it(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    contents = {f"{number}.png": os.urandom(100) for number in range(200)}
    for name, content in contents.items():
        (photos / name).write_bytes(content)
    embedded = {embedded_name(content): content for content in (os.urandom(50) for _ in range(200))}
    write_blobs(tmp_path / "blobs.arrow", embedded.items())
    images = Images({"": photos}, [tmp_path / "blobs.arrow"])
    wanted = contents | embedded
    start, blobs = threading.Barrier(8), vrray.data.images.Blobs
    monkeypatch.setattr(vrray.data.images, "Blobs", lambda paths: (opened.extend(paths), blobs(paths))[1])

    def read(part: int) -> None:
        start.wait()
        for name in list(wanted)[part::2]:
            assert images.read(name) == wanted[name]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, [0, 1] * 4))
    assert opened == [str(tmp_path / "blobs.arrow")]


def test_hashes_are_those_of_the_contents(photos: Path) -> None:
    names = ["red.png", "deep/green.png", "red.png"]
    hashes = content_hashes(Images({"": photos}), names)
    assert hashes == {"red.png": image_hash(png("red")), "deep/green.png": image_hash(png("green"))}
    assert hashes["red.png"] == hashlib.sha256(png("red")).hexdigest()[:16]
    assert content_hashes(Images({}), []) == {}


def test_an_embedded_name_carries_its_hash() -> None:
    name = embedded_name(png("red"))
    assert content_hashes(Images({}), [name]) == {name: image_hash(png("red"))}  # nothing is read


def test_many_hashes_keep_their_names(photos: Path) -> None:
    for number in range(200):
        (photos / f"{number}.png").write_text(str(number))
    names = [f"{number}.png" for number in range(200)]
    hashes = content_hashes(Images({"": photos}), names)
    assert hashes == {f"{number}.png": image_hash(str(number).encode()) for number in range(200)}
    assert list(hashes) == names


def test_all_missing_images_are_counted_and_the_first_named(photos: Path) -> None:
    names = ["red.png", *(f"absent-{number}.png" for number in range(7))]
    with pytest.raises(DataError, match=r"7 of 8 images are missing: .*'absent-0\.png' .*; and 2 more") as found:
        content_hashes(Images({"": photos}), names)
    assert [number for number in range(7) if f"'absent-{number}.png'" in str(found.value)] == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match=r"1 of 2 images are missing: image 'absent\.png' cannot be read: [^;]*$"):
        content_hashes(Images({"": photos}), ["red.png", "absent.png"])
