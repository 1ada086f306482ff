"""Image features: keyed by tower and content, computed once; cached or live, they are what enters the projector."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import IMAGE_TOKENS, TOWER_WIDTH, Ground, draw_photos
from transformers import AutoConfig

from vrray.data.chunks import FeatureChunk, plan_chunks
from vrray.data.features import CachedFeatures, LiveFeatures, compute_chunks, tower_features
from vrray.errors import DataError, StoreError
from vrray.models.loading import load_model, load_processor
from vrray.store import Store


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    draw_photos(tmp_path / "photos", 6)
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def images(tiny_model: Path) -> Any:
    return load_processor(tiny_model).image_processor


def keys(chunks: list[FeatureChunk]) -> list[str]:
    return [chunk.key for chunk in chunks]


def compute(chunks: list[FeatureChunk], roots: dict[str, Path], model: Any, images: Any, store: Store) -> None:
    compute_chunks(chunks, roots, model.model.vision_tower, model.config, images, store)


def live(roots: dict[str, Path], model: Any, images: Any) -> LiveFeatures:
    return LiveFeatures(roots, (IMAGE_TOKENS, TOWER_WIDTH), model.model.vision_tower, model.config, images)


def names(photos: Path) -> list[str]:
    return sorted(path.name for path in photos.iterdir())


def test_chunks_hold_every_image_once(photos: Path) -> None:
    chunks = plan_chunks(names(photos) * 2, {"": photos}, "tower", chunk=4)
    assert [len(chunk.images) for chunk in chunks] == [4, 2]
    assert [name for chunk in chunks for name in chunk.images] == names(photos)


def test_keys_depend_on_contents_not_on_where_they_lie(photos: Path, tmp_path: Path) -> None:
    before = keys(plan_chunks(names(photos), {"": photos}, "tower", chunk=4))
    moved = shutil.copytree(photos, tmp_path / "elsewhere")
    assert keys(plan_chunks(names(photos), {"": moved}, "tower", chunk=4)) == before
    assert keys(plan_chunks(names(photos)[:4], {"": moved}, "tower", chunk=4)) == before[:1]
    Image.new("RGB", (28, 28)).save(moved / names(photos)[0])
    changed = keys(plan_chunks(names(photos), {"": moved}, "tower", chunk=4))
    assert changed[0] != before[0]
    assert changed[1] == before[1]


def test_keys_depend_on_contents_not_on_names(photos: Path, tmp_path: Path) -> None:
    first, second = names(photos)[:2]
    (tmp_path / "renamed" / "deep").mkdir(parents=True)
    shutil.copy(photos / first, tmp_path / "renamed" / "one.png")
    shutil.copy(photos / second, tmp_path / "renamed" / "deep" / "two.png")
    roots = {"": photos, "new": tmp_path / "renamed"}
    (before,) = keys(plan_chunks([first, second], roots, "tower"))
    assert keys(plan_chunks(["new:one.png", "new:deep/two.png"], roots, "tower")) == [before]
    assert keys(plan_chunks([second, first], roots, "tower")) != [before]  # features lie in the order of the images


def test_renamed_images_are_read_under_their_new_names(photos: Path, tmp_path: Path, model: Any, images: Any) -> None:
    store, old = Store(tmp_path / "store"), names(photos)
    before = plan_chunks(old, {"": photos}, "tower")
    compute(before, {"": photos}, model, images, store)
    for name in old:
        (photos / name).rename(photos / f"new-{name}")
    after = plan_chunks([f"new-{name}" for name in old], {"": photos}, "tower")
    features = CachedFeatures(store, after)  # nothing is computed anew
    expected = live({"": photos}, model, images).stack([f"new-{old[3]}"])
    torch.testing.assert_close(features.stack([f"new-{old[3]}"]), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(KeyError):
        features.stack([old[3]])
    features.close()


def test_keys_depend_on_the_tower(photos: Path) -> None:
    one, other = (keys(plan_chunks(names(photos), {"": photos}, tower)) for tower in ("one", "other"))
    assert set(one).isdisjoint(other)


def test_a_missing_image_is_named(photos: Path) -> None:
    with pytest.raises(DataError, match=r"image .*absent\.png cannot be read: No such file"):
        plan_chunks(["absent.png"], {"": photos}, "tower")


def test_read_features_are_what_the_projector_takes(ground: Ground, model: Any, images: Any) -> None:
    features = CachedFeatures(Store(ground.store), ground.chunks)
    assert features.shape == (IMAGE_TOKENS, TOWER_WIDTH)
    for name in ground.photos:
        pixels = images(images=[Image.open(ground.roots[""] / name)], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            expected = model.get_image_features(pixel_values=pixels).pooler_output[0]
            projected = model.model.multi_modal_projector(features.stack([name]).float())[0]
        torch.testing.assert_close(projected, expected, rtol=2e-3, atol=2e-2)
    features.close()


def test_cached_features_equal_live_ones(ground: Ground, model: Any, images: Any) -> None:
    cached, computed = CachedFeatures(Store(ground.store), ground.chunks), live(ground.roots, model, images)
    assert cached.shape == computed.shape == (IMAGE_TOKENS, TOWER_WIDTH)
    for asked in ([ground.photos[9]], [ground.photos[index] for index in (7, 0, 11, 3)]):  # from both chunks, any order
        found, expected = computed.stack(asked), cached.stack(asked)
        assert found.dtype == expected.dtype == torch.float16
        assert found.shape == expected.shape == (len(asked), IMAGE_TOKENS, TOWER_WIDTH)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)  # float16 keeps 11 bits
    cached.close()
    computed.close()


def test_live_features_are_those_of_the_images_as_they_are_now(photos: Path, model: Any, images: Any) -> None:
    features, name = live({"": photos}, model, images), names(photos)[0]
    before = features.stack([name])
    Image.new("RGB", (28, 28), "yellow").save(photos / name)
    assert not torch.allclose(features.stack([name]), before, atol=0.1)
    (photos / name).unlink()
    with pytest.raises(DataError, match=rf"image .*{name} cannot be read"):
        features.stack([name])


def test_features_of_different_images_differ(ground: Ground) -> None:
    features = CachedFeatures(Store(ground.store), ground.chunks)
    assert float(torch.pdist(features.stack(ground.photos).flatten(1).float()).min()) > 0.1
    features.close()


def test_several_layers_are_joined(tiny_model: Path, model: Any, images: Any, photos: Path) -> None:
    image = [Image.open(photos / names(photos)[0])]
    config = AutoConfig.from_pretrained(tiny_model)
    parts = []
    for layer in (-2, 0):
        config.vision_feature_layer = layer
        parts.append(tower_features(model.model.vision_tower, config, images, image))
    config.vision_feature_layer = [-2, 0]
    assert torch.equal(tower_features(model.model.vision_tower, config, images, image), torch.cat(parts, -1))
    config.vision_feature_select_strategy = "full"
    assert tower_features(model.model.vision_tower, config, images, image).shape == (1, 5, 32)


def test_prefixes_choose_the_root(photos: Path, tmp_path: Path, model: Any, images: Any) -> None:
    first, second = names(photos)[:2]
    (tmp_path / "demo").mkdir()
    shutil.copy(photos / second, tmp_path / "demo" / first)
    shutil.copy(photos / second, photos / "odd:name.png")  # a colon alone makes no prefix
    roots, asked = {"": photos, "demo": tmp_path / "demo"}, [first, f"demo:{first}", second, "odd:name.png"]
    chunks = plan_chunks(asked, roots, "tower")
    compute(chunks, roots, model, images, store := Store(tmp_path / "store"))
    features = CachedFeatures(store, chunks)
    for source in (features, live(roots, model, images)):
        one, copied, two, odd = source.stack(asked)
        torch.testing.assert_close(copied, two, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(odd, two, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(one, two, atol=0.1)
    features.close()


def test_an_unreadable_image_is_named(photos: Path, tmp_path: Path, model: Any, images: Any) -> None:
    (photos / names(photos)[0]).write_bytes(b"not an image")
    chunks = plan_chunks(names(photos), {"": photos}, "tower")
    with pytest.raises(DataError, match=rf"image .*{names(photos)[0]} cannot be read"):
        compute(chunks, {"": photos}, model, images, store := Store(tmp_path / "store"))
    assert not store.has("features", chunks[0].key)


def test_what_is_complete_is_not_computed_again(photos: Path, tmp_path: Path, model: Any, images: Any) -> None:
    store, roots = Store(tmp_path / "store"), {"": photos}
    chunks = plan_chunks(names(photos), roots, "tower", chunk=4)
    compute(chunks[:1], roots, model, images, store)
    calls: list[int] = []
    handle = model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    try:
        compute(chunks, roots, model, images, store)
        assert len(calls) == 1  # the second chunk only
        compute(chunks, roots, model, images, store)
        assert len(calls) == 1
    finally:
        handle.remove()


def test_features_that_were_not_computed(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no complete artefact features/"):
        CachedFeatures(Store(tmp_path / "store"), plan_chunks(names(photos), {"": photos}, "tower"))
