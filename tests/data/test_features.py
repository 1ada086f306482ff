"""Image features: keyed by tower and content, computed once; cached or live, they are what enters the projector."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import IMAGE_TOKENS, TOWER_WIDTH, Ground, draw_photos
from transformers import AutoConfig, AutoModel

from vrray.data.chunks import FeatureChunk, plan_chunks
from vrray.data.features import CachedFeatures, LiveFeatures, compute_chunks, tower_features
from vrray.data.images import Images, content_hashes
from vrray.errors import DataError, StoreError
from vrray.models.loading import load_model, load_processor
from vrray.models.preprocess import image_processor
from vrray.store import Store

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "models"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    draw_photos(tmp_path / "photos", 6)
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def processor(tiny_model: Path) -> Any:
    return load_processor(tiny_model).image_processor


def keys(chunks: list[FeatureChunk]) -> list[str]:
    return [chunk.key for chunk in chunks]


def plan(names: list[str], images: Images | Path, tower: str = "tower", chunk: int = 128) -> list[FeatureChunk]:
    images = images if isinstance(images, Images) else Images({"": images})
    return plan_chunks(names, content_hashes(images, names), tower, chunk)


def compute(chunks: list[FeatureChunk], images: Images, model: Any, processor: Any, store: Store) -> None:
    compute_chunks(chunks, images, model.model.vision_tower, model.config, processor, store)


def live(images: Images, model: Any, processor: Any) -> LiveFeatures:
    return LiveFeatures(images, (IMAGE_TOKENS, TOWER_WIDTH), model.model.vision_tower, model.config, processor)


def names(photos: Path) -> list[str]:
    return sorted(path.name for path in photos.iterdir())


def test_chunks_hold_every_image_once(photos: Path) -> None:
    chunks = plan(names(photos) * 2, photos, chunk=4)
    assert [len(chunk.images) for chunk in chunks] == [4, 2]
    assert [name for chunk in chunks for name in chunk.images] == names(photos)


def test_keys_depend_on_contents_not_on_where_they_lie(photos: Path, tmp_path: Path) -> None:
    before = keys(plan(names(photos), photos, chunk=4))
    moved = shutil.copytree(photos, tmp_path / "elsewhere")
    assert keys(plan(names(photos), moved, chunk=4)) == before
    assert keys(plan(names(photos)[:4], moved, chunk=4)) == before[:1]
    Image.new("RGB", (28, 28)).save(moved / names(photos)[0])
    changed = keys(plan(names(photos), moved, chunk=4))
    assert changed[0] != before[0]
    assert changed[1] == before[1]


def test_keys_depend_on_contents_not_on_names(photos: Path, tmp_path: Path) -> None:
    first, second = names(photos)[:2]
    (tmp_path / "renamed" / "deep").mkdir(parents=True)
    shutil.copy(photos / first, tmp_path / "renamed" / "one.png")
    shutil.copy(photos / second, tmp_path / "renamed" / "deep" / "two.png")
    images = Images({"": photos, "new": tmp_path / "renamed"})
    (before,) = keys(plan([first, second], images))
    assert keys(plan(["new:one.png", "new:deep/two.png"], images)) == [before]
    assert keys(plan([second, first], images)) != [before]  # features lie in the order of the images


def test_renamed_images_are_read_under_their_new_names(
    photos: Path, tmp_path: Path, model: Any, processor: Any
) -> None:
    store, old = Store(tmp_path / "store"), names(photos)
    compute(plan(old, photos), Images({"": photos}), model, processor, store)
    for name in old:
        (photos / name).rename(photos / f"new-{name}")
    after = plan([f"new-{name}" for name in old], photos)
    features = CachedFeatures(store, after)  # nothing is computed anew
    expected = live(Images({"": photos}), model, processor).stack([f"new-{old[3]}"])
    torch.testing.assert_close(features.stack([f"new-{old[3]}"]), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(KeyError):
        features.stack([old[3]])
    features.close()


def test_keys_depend_on_the_tower(photos: Path) -> None:
    one, other = (keys(plan(names(photos), photos, tower)) for tower in ("one", "other"))
    assert set(one).isdisjoint(other)


def test_read_features_are_what_the_projector_takes(ground: Ground, model: Any, processor: Any) -> None:
    features = CachedFeatures(Store(ground.store), ground.chunks)
    assert features.shape == (IMAGE_TOKENS, TOWER_WIDTH)
    for name in ground.photos:
        pixels = processor(images=[ground.images.open(name)], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            expected = model.get_image_features(pixel_values=pixels).pooler_output[0]
            projected = model.model.multi_modal_projector(features.stack([name]).float())[0]
        torch.testing.assert_close(projected, expected, rtol=2e-3, atol=2e-2)
    features.close()


def test_cached_features_equal_live_ones(ground: Ground, model: Any, processor: Any) -> None:
    cached, computed = CachedFeatures(Store(ground.store), ground.chunks), live(ground.images, model, processor)
    assert cached.shape == computed.shape == (IMAGE_TOKENS, TOWER_WIDTH)
    for asked in ([ground.photos[9]], [ground.photos[index] for index in (7, 0, 11, 3)]):  # from both chunks, any order
        found, expected = computed.stack(asked), cached.stack(asked)
        assert found.dtype == expected.dtype == torch.float16
        assert found.shape == expected.shape == (len(asked), IMAGE_TOKENS, TOWER_WIDTH)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)  # float16 keeps 11 bits
    cached.close()
    computed.close()


def test_live_features_are_those_of_the_images_as_they_are_now(photos: Path, model: Any, processor: Any) -> None:
    features, name = live(Images({"": photos}), model, processor), names(photos)[0]
    before = features.stack([name])
    Image.new("RGB", (28, 28), "yellow").save(photos / name)
    assert not torch.allclose(features.stack([name]), before, atol=0.1)
    (photos / name).unlink()
    with pytest.raises(DataError, match=rf"image '{name}' cannot be read: No such file"):
        features.stack([name])
    features.close()


def test_features_of_different_images_differ(ground: Ground) -> None:
    features = CachedFeatures(Store(ground.store), ground.chunks)
    assert float(torch.pdist(features.stack(ground.photos).flatten(1).float()).min()) > 0.1
    features.close()


def test_several_layers_are_joined(tiny_model: Path, model: Any, processor: Any, photos: Path) -> None:
    image = [Image.open(photos / names(photos)[0])]
    config = AutoConfig.from_pretrained(tiny_model)
    parts = []
    for layer in (-2, 0):
        config.vision_feature_layer = layer
        parts.append(tower_features(model.model.vision_tower, config, processor, image))
    config.vision_feature_layer = [-2, 0]
    assert torch.equal(tower_features(model.model.vision_tower, config, processor, image), torch.cat(parts, -1))
    config.vision_feature_select_strategy = "full"
    assert tower_features(model.model.vision_tower, config, processor, image).shape == (1, 5, 32)


def test_prefixes_choose_the_root(photos: Path, tmp_path: Path, model: Any, processor: Any) -> None:
    first, second = names(photos)[:2]
    (tmp_path / "demo").mkdir()
    shutil.copy(photos / second, tmp_path / "demo" / first)
    shutil.copy(photos / second, photos / "odd:name.png")  # a colon alone makes no prefix
    images, asked = Images({"": photos, "demo": tmp_path / "demo"}), [first, f"demo:{first}", second, "odd:name.png"]
    chunks = plan(asked, images)
    compute(chunks, images, model, processor, store := Store(tmp_path / "store"))
    features = CachedFeatures(store, chunks)
    for source in (features, live(images, model, processor)):
        one, copied, two, odd = source.stack(asked)
        torch.testing.assert_close(copied, two, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(odd, two, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(one, two, atol=0.1)
    features.close()


def test_an_unreadable_image_is_named(photos: Path, tmp_path: Path, model: Any, processor: Any) -> None:
    (photos / names(photos)[0]).write_bytes(b"not an image")
    chunks = plan(names(photos), photos)
    with pytest.raises(DataError, match=rf"image '{names(photos)[0]}' is damaged or not a PNG"):
        compute(chunks, Images({"": photos}), model, processor, store := Store(tmp_path / "store"))
    assert not store.has("features", chunks[0].key)


def test_what_is_complete_is_not_computed_again(photos: Path, tmp_path: Path, model: Any, processor: Any) -> None:
    store, images = Store(tmp_path / "store"), Images({"": photos})
    chunks = plan(names(photos), images, chunk=4)
    compute(chunks[:1], images, model, processor, store)
    calls: list[int] = []
    handle = model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    try:
        compute(chunks, images, model, processor, store)
        assert len(calls) == 1  # the second chunk only
        compute(chunks, images, model, processor, store)
        assert len(calls) == 1
    finally:
        handle.remove()


def test_features_that_were_not_computed(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no complete artefact features/"):
        CachedFeatures(Store(tmp_path / "store"), plan(names(photos), photos))


def test_chunks_of_any_size_keep_the_order_of_their_images(tmp_path: Path, model: Any, processor: Any) -> None:
    """More images than are read ahead, in chunks that batches do not divide."""
    (tmp_path / "photos").mkdir()
    photos, opened, held = draw_photos(tmp_path / "photos", 150), set[str](), list[int]()

    class Watched(Images):
        def open(self, name: str) -> Image.Image:
            opened.add(name)
            return super().open(name)

    def watch(*_: object) -> None:
        if not held:
            time.sleep(0.3)  # the tower is slow, and threads do what they may
        held.append(len(opened))

    images = Watched({"": tmp_path / "photos"})
    chunks, store = plan(photos, images, chunk=47), Store(tmp_path / "store")
    handle = model.model.vision_tower.register_forward_hook(watch)
    try:
        compute(chunks, images, model, processor, store)
    finally:
        handle.remove()
    assert held[0] <= 3 * 32 + 1  # the batch itself, and two ahead
    assert held[-1] == 150
    features, computed = CachedFeatures(store, chunks), live(images, model, processor)
    alone = torch.cat([computed.stack([name]) for name in photos])
    torch.testing.assert_close(features.stack(photos), alone, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(computed.stack(photos), alone, rtol=1e-3, atol=1e-3)
    features.close()
    computed.close()


def test_images_differ_in_size_and_kind(tmp_path: Path, model: Any, processor: Any) -> None:
    Image.new("RGB", (50, 30), "red").save(tmp_path / "wide.jpg", quality=100)
    Image.new("RGBA", (30, 50), (255, 0, 0, 255)).save(tmp_path / "tall.png")
    Image.new("P", (28, 28)).save(tmp_path / "flat.gif")
    features = live(Images({"": tmp_path}), model, processor)
    wide, tall, flat = features.stack(["wide.jpg", "tall.png", "flat.gif"])
    torch.testing.assert_close(wide, tall, rtol=0, atol=0.05)
    assert not torch.allclose(wide, flat, atol=0.1)
    features.close()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not list a process's files")
def test_mapped_chunks_hold_no_file_open(ground: Ground) -> None:
    """A process may open about a thousand; a large data set has more chunks."""
    before = len(os.listdir("/proc/self/fd"))
    features = CachedFeatures(Store(ground.store), ground.chunks)
    assert len(os.listdir("/proc/self/fd")) == before
    assert features.stack(ground.photos).isfinite().all()
    features.close()


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference fixtures are not there")
@pytest.mark.parametrize(("name", "strategy"), [("llava15", "default"), ("bunny_phi3", "full")])
def test_features_equal_the_reference(name: str, strategy: str) -> None:
    (tower,) = (REFERENCE / name).glob("*_tower")
    processor = image_processor(json.loads((tower / "preprocessor_config.json").read_text()), pad=True)
    config = SimpleNamespace(model_type="llava", vision_feature_layer=-2, vision_feature_select_strategy=strategy)
    images = Images({"": REFERENCE / name})
    photos = [images.open(f"image_{number}.png") for number in range(3)]
    found = tower_features(AutoModel.from_pretrained(tower).eval(), config, processor, photos)
    expected = np.load(REFERENCE / name / "outputs.npz")["tower_features"]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-4)
