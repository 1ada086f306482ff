"""Models from the hub: a server that speaks its protocol, and caches as its client leaves them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from vrray.errors import ModelError
from vrray.models import hub
from vrray.models.hub import download_config, download_model, is_hub_id
from vrray.models.loading import conversation, load_model, load_processor, model_config, model_shape, resolve_model

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "reference"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "fedcba9876543210fedcba9876543210fedcba98"
needs_fixtures = pytest.mark.skipif(not SHARED.is_dir(), reason="the reference fixtures are not beside the repository")


@dataclass
class Hub:
    """A hub: folders of models by name and commit, and what was asked of it."""

    models: dict[str, dict[str, Path]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    gated: bool = False

    def downloaded(self, model: str) -> set[str]:
        return {name.removeprefix(f"{model}/") for name in self.files if name.startswith(f"{model}/")}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        api = parts[:2] == ["api", "models"]
        model, verb, revision = "/".join(parts[2:4] if api else parts[:2]), *(parts[4:6] if api else parts[2:4])
        if model not in self.hub.models:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if self.hub.gated:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        commit = {"main": COMMIT, "old": OTHER}.get(revision, revision)
        folder = self.hub.models[model].get(commit)
        if folder is None:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if verb == "revision":
            return self._send_json({"id": model, "sha": commit, "siblings": []})
        if verb == "tree":
            return self._send_json([_entry(path, folder) for path in sorted(folder.rglob("*")) if path.is_file()])
        name = "/".join(parts[4:])
        content = (folder / name).read_bytes()
        if self.command == "GET":
            self.hub.files.append(f"{model}/{name}")
        return self._send(200, content, {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": commit})

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def _entry(path: Path, folder: Path) -> dict[str, object]:
    content = path.read_bytes()
    name = path.relative_to(folder).as_posix()
    return {"type": "file", "path": name, "size": len(content), "oid": _digest(content)}


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client, and an empty vrray home."""
    monkeypatch.setenv("VRRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def online(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": found}))
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture
def directory(tiny_model: Path, tmp_path: Path) -> Path:
    """A model directory with files that must not be taken."""
    folder = shutil.copytree(tiny_model, tmp_path / "published")
    for name in ("modeling_llava.py", "pytorch_model.bin", "model.gguf", "README.md", "onnx/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def cached(cache: Path, model: str, folder: Path, revision: str = "main", commit: str = COMMIT) -> Path:
    """What a download of `folder` under this id leaves in the cache."""
    home = cache / f"models--{model.replace('/', '--')}"
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / revision).write_text(commit)
    return shutil.copytree(folder, home / "snapshots" / commit)


@pytest.mark.parametrize("name", ["llava-hf/llava-1.5-7b-hf", "a/b", "a-b/c_d.e", "a/b@main", "a/b@refs/pr/3"])
def test_hub_ids(name: str) -> None:
    assert is_hub_id(name)


@pytest.mark.parametrize("name", ["smol", "a/b/c", "/a/b", "./a/b", "~/a", "../a", "a/", "a/b@", "a b/c", ""])
def test_other_names(name: str) -> None:
    assert not is_hub_id(name)


def test_a_model_is_downloaded_without_anything_that_runs(online: Hub, directory: Path, tiny_model: Path) -> None:
    online.models["org/tiny"] = {COMMIT: directory}
    found = resolve_model("org/tiny")
    assert {path.name for path in found.iterdir()} == {path.name for path in tiny_model.iterdir()}
    assert online.downloaded("org/tiny") == {path.name for path in tiny_model.iterdir()}
    assert load_model(found).config.model_type == load_processor(found).__class__.__name__[:5].lower() == "llava"
    online.files.clear()
    assert resolve_model("org/tiny") == found
    assert online.files == []


def test_a_revision_is_what_was_asked_for(online: Hub, directory: Path, tmp_path: Path) -> None:
    old = shutil.copytree(directory, tmp_path / "old")
    (old / "config.json").write_text((directory / "config.json").read_text() + " ")
    online.models["org/tiny"] = {COMMIT: directory, OTHER: old}
    for name, folder in {"org/tiny": directory, "org/tiny@old": old, f"org/tiny@{OTHER}": old}.items():
        assert (resolve_model(name) / "config.json").read_text() == (folder / "config.json").read_text()
    with pytest.raises(ModelError, match=r"org/tiny@none cannot be taken from the hub: it has no such revision; or "):
        resolve_model("org/tiny@none")


def test_a_shape_needs_the_configuration_alone(online: Hub, directory: Path) -> None:
    online.models["org/tiny"] = {COMMIT: directory}
    assert model_config("org/tiny").to_dict()["text_config"]["num_hidden_layers"] == model_shape(directory).depth
    assert online.downloaded("org/tiny") == {"config.json"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llava_llama"}, r"org/tiny: model_type 'llava_llama' has the layout of an original checkpoint"),
        ({"model_type": "qwen2_vl"}, r"org/tiny: model_type 'qwen2_vl' is not supported"),
    ],
)
def test_a_model_that_cannot_be_used_is_not_downloaded(
    online: Hub, directory: Path, changes: dict[str, str], message: str
) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))
    online.models["org/tiny"] = {COMMIT: directory}
    with pytest.raises(ModelError, match=message):
        resolve_model("org/tiny")
    assert online.downloaded("org/tiny") == {"config.json"}


def test_a_model_without_safetensors_is_refused(online: Hub, directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    online.models["org/tiny"] = {COMMIT: directory}
    with pytest.raises(ModelError, match=r"org/tiny cannot be .*: it has no \*\.safetensors; or download it elsewhere"):
        resolve_model("org/tiny")
    assert "pytorch_model.bin" not in online.downloaded("org/tiny")


def test_original_weights_may_be_pickled_where_there_are_no_safetensors(online: Hub, directory: Path) -> None:
    online.models["org/both"] = {COMMIT: directory}
    assert not (download_model("org/both", pickled=True) / "pytorch_model.bin").exists()
    (directory / "model.safetensors").unlink()
    (directory / "training_args.bin").touch()
    online.models["org/pickled"] = {COMMIT: directory}
    found = download_model("org/pickled", pickled=True)
    assert (found / "pytorch_model.bin").is_file()
    assert "training_args.bin" not in online.downloaded("org/pickled")


def test_what_is_not_there_is_said(online: Hub, directory: Path) -> None:
    with pytest.raises(ModelError, match=r"org/none cannot be taken from the hub: there is no such model"):
        resolve_model("org/none")
    online.models["org/tiny"], online.gated = {COMMIT: directory}, True
    with pytest.raises(ModelError, match=r"org/tiny cannot be taken .*: it is gated; accept its terms .*hf auth login"):
        resolve_model("org/tiny")
    (directory / "config.json").unlink()
    online.models["org/empty"], online.gated = {COMMIT: directory}, False
    with pytest.raises(ModelError, match=r"org/empty cannot be taken from the hub: it has no config\.json"):
        resolve_model("org/empty")


def test_offline_the_cache_is_used(cache: Path, tiny_model: Path) -> None:
    found = cached(cache, "org/tiny", tiny_model)
    cached(cache, "org/tiny", tiny_model, "old", OTHER)
    assert resolve_model("org/tiny") == found
    assert resolve_model("org/tiny@old") == resolve_model(f"org/tiny@{OTHER}") == found.parent / OTHER


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("org/tiny", "org/tiny"),
        ("org/tiny@old", "org/tiny@old"),
        ("llava-1.5-7b", "llava-hf/llava-1.5-7b-hf"),
        ("llava-1.5-13b", "llava-hf/llava-1.5-13b-hf"),
        ("bunny-llama3-8b", "BAAI/Bunny-Llama-3-8B-V"),
        ("bunny-phi3-4b", "BAAI/Bunny-v1_0-4B"),
    ],
)
def test_offline_the_error_says_what_to_do(cache: Path, model: str, named: str) -> None:
    with pytest.raises(ModelError) as error:
        resolve_model(model)
    assert str(error.value).startswith(f"{named} cannot be taken from the hub: it is not in the cache, and HF_HUB_OFF")
    assert "give its directory" in str(error.value)
    assert "`vrray convert SRC OUT`" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unreachable_hub_is_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(
        ModelError, match=r"org/tiny cannot be .*: the hub cannot be reached \(.*refused\); or download"
    ):
        resolve_model("org/tiny")


def test_a_part_of_the_weights_is_not_a_model(cache: Path, directory: Path) -> None:
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (directory / "model.safetensors").rename(directory / shards["a"])
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    found = cached(cache, "org/tiny", directory)
    with pytest.raises(ModelError, match=r"org/tiny cannot be .*: model-00002-of-00002\.safetensors of .* is missing"):
        resolve_model("org/tiny")
    (found / shards["b"]).touch()
    assert resolve_model("org/tiny") == found


def test_a_llava_preset_is_its_standard_directory(cache: Path, tiny_model: Path) -> None:
    found = cached(cache, "llava-hf/llava-1.5-7b-hf", tiny_model)
    assert resolve_model("llava-1.5-7b") == found
    assert conversation("llava-1.5-7b", found) == conversation("llava-hf/llava-1.5-7b-hf@main", found) == "vicuna_v1"
    assert conversation(str(found), found) == "chat"


@needs_fixtures
def test_an_original_checkpoint_of_the_hub_names_the_preset(cache: Path) -> None:
    cached(cache, "liuhaotian/llava-v1.5-7b", SHARED / "models" / "llava15" / "checkpoint")
    with pytest.raises(ModelError, match=r"`vrray convert SRC OUT` and give OUT, or use the preset llava-1\.5-7b"):
        resolve_model("liuhaotian/llava-v1.5-7b")


@needs_fixtures
@pytest.mark.parametrize(
    ("preset", "checkpoint", "fixture", "expected"),
    [
        ("bunny-llama3-8b", "BAAI/Bunny-Llama-3-8B-V", "bunny_llama3", "llama"),
        ("bunny-phi3-4b", "BAAI/Bunny-v1_0-4B", "bunny_phi3", "phi3"),
    ],
)
def test_a_bunny_preset_is_converted_once(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    preset: str,
    checkpoint: str,
    fixture: str,
    expected: str,
) -> None:
    cached(cache, checkpoint, SHARED / "models" / fixture / "checkpoint")
    cached(cache, "google/siglip-so400m-patch14-384", SHARED / "models" / fixture / "siglip_tower")
    found = resolve_model(preset)
    assert found == tmp_path / "home" / "models" / f"{preset}-v1"
    assert [path.name for path in found.parent.iterdir()] == [found.name]  # nothing half-made stays beside it
    assert load_model(found).config.text_config.num_hidden_layers == model_shape(found).depth == 8
    assert conversation(preset, found) == conversation(str(found), found) == expected
    monkeypatch.setattr(hub, "download_model", lambda *_, **__: pytest.fail("taken from the hub again"))
    assert resolve_model(preset) == found


def test_a_configuration_alone_is_found_offline(cache: Path, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    shutil.copy(tiny_model / "config.json", tmp_path / "only" / "config.json")
    found = cached(cache, "org/tiny", tmp_path / "only")
    assert download_config("org/tiny") == found
    with pytest.raises(ModelError, match=r"it has no \*\.safetensors"):
        resolve_model("org/tiny")
