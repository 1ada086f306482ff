"""Families other than LLaVA: features, projector, loss and prompts are those of the family's own code; or a refusal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import (
    IMAGE_TOKENS,
    TOWER_WIDTH,
    build_family,
    build_tiny,
    draw_photos,
    prepare_ground,
    tiny_family,
    tiny_lvlm,
    tiny_tokenizer,
)
from transformers import (
    AutoTokenizer,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
)
from transformers.utils import is_torchvision_available

from vrray.data.batches import collate
from vrray.data.encode import encode_prompt, encode_records
from vrray.data.features import tower_features
from vrray.data.records import Record, Turn
from vrray.data.rows import Row
from vrray.data.tasks import Example
from vrray.errors import ModelError, TrainingError
from vrray.evaluate.answer import answer_likelihoods, choose_options
from vrray.models.family import FAMILIES, family_of, image_text, project_features, vision_tower
from vrray.models.loading import decoder_layers, load_model, load_processor, model_shape, resolve_model, tower_identity
from vrray.models.smol import CHAT_TEMPLATE
from vrray.region import place
from vrray.specs import Recipe
from vrray.train.execution import Execution
from vrray.train.loop import Training, train
from vrray.train.loss import SupervisedLoss

OTHERS = [name for name in FAMILIES if name != "llava"]
NESTED = {"idefics3", "smolvlm"}  # their pixels are [rows, images, 3, side, side]
EXTRA_TOKENS = {
    "idefics3": {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>", "global": "<global-img>"},
    "smolvlm": {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>", "global": "<global-img>"},
    "internvl": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    "gemma3": {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
}
IMAGE_IN_TEMPLATE = {"internvl": "<IMG_CONTEXT>\\n", "gemma3": "<start_of_image>"}


@pytest.fixture(scope="module", params=OTHERS)
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_family(request.param)


def pixels_of(images: int, kind: str = "") -> torch.Tensor:
    pixels = torch.randn(images, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    return pixels.unsqueeze(1) if kind in NESTED else pixels


def image_embeddings(model: Any, images: int) -> torch.Tensor:
    family, config = family_of(model.config), model.config
    return project_features(model, family.features(vision_tower(model), config, pixels_of(images)))


def row_of(model: Any, before: list[int], images: int, after: list[int]) -> list[int]:
    return [*before, *([model.config.image_token_id] * IMAGE_TOKENS + [40]) * images, *after]


class Stacked:
    """Features of images that are named by their numbers."""

    def __init__(self, features: torch.Tensor):
        self.features, self.shape = features, (features.shape[1], features.shape[2])

    def stack(self, images: Any) -> torch.Tensor:
        return self.features[[int(image) for image in images]]


def loss_of(model: Any, rows: list[Row], features: torch.Tensor, packing: bool = False) -> float:
    batch = collate(rows, Stacked(features), 0, torch.device("cpu"), packing=packing)
    with torch.inference_mode():
        return float(SupervisedLoss(model)(batch, 1.0))


def features_of(model: Any, images: int) -> torch.Tensor:
    with torch.inference_mode():
        return family_of(model.config).features(vision_tower(model), model.config, pixels_of(images))


def test_what_enters_the_decoder_is_what_the_family_computes_from_pixels(model: Any) -> None:
    kind = model.config.model_type
    features = features_of(model, 3)
    assert tuple(features.shape[1:]) == family_of(model.config).feature_shape(model.config)
    with torch.inference_mode():
        expected = model.model.get_image_features(pixel_values=pixels_of(3, kind)).pooler_output
        expected = torch.cat([part.reshape(-1, part.shape[-1]) for part in expected]).view(3, IMAGE_TOKENS, -1)
        assert expected.std() > 0.3
        torch.testing.assert_close(project_features(model, features), expected)


def test_decoder_and_shape(model: Any, tmp_path: Path) -> None:
    kind = model.config.model_type
    family = FAMILIES[kind]
    assert model.get_submodule(family.decoder) is model.get_decoder()
    model.save_pretrained(tmp_path)
    shape = model_shape(tmp_path)
    sizes = {
        path: sum(p.numel() for p in model.get_submodule(path).parameters())
        for path in (family.projector, family.tower)
    }
    assert (shape.depth, shape.projector, shape.tower) == (6, sizes[family.projector], sizes[family.tower])
    assert (shape.image_tokens, shape.tower_width) == tuple(features_of(model, 1).shape[1:])
    assert shape.tower_width == (TOWER_WIDTH if kind == "gemma3" else 4 * TOWER_WIDTH)


def test_the_loss_is_that_of_the_family_with_pixels(model: Any) -> None:
    kind = model.config.model_type
    ids = row_of(model, [1, 50, 51], 2, list(range(60, 72)))
    supervised = [False] * (len(ids) - 9) + [True] * 9
    labels = torch.tensor([[token if counts else -100 for token, counts in zip(ids, supervised, strict=True)]])
    family, tokens, pixels = family_of(model.config), torch.tensor([ids]), pixels_of(2, kind)
    with torch.inference_mode():
        expected = model(
            input_ids=tokens,
            pixel_values=pixels.transpose(0, 1) if kind in NESTED else pixels,
            labels=labels,
            **family.token_inputs(model.config, tokens),
        ).loss
    found = loss_of(model, [Row("a", tuple(ids), tuple(supervised), ("0", "1"))], features_of(model, 2))
    assert found == pytest.approx(9 * float(expected), rel=1e-5)


def test_rows_together_have_the_loss_of_each_row_alone(model: Any) -> None:
    def row(images: tuple[str, ...], length: int) -> Row:
        ids = row_of(model, [1, 50 + length], len(images), list(range(60, 60 + length)))
        return Row("a", tuple(ids), tuple(place > len(ids) - 4 for place in range(len(ids))), images)

    rows, features = [row(("1",), 14), row((), 20), row(("0", "2"), 9), row((), 5)], features_of(model, 3)
    alone = [loss_of(model, [one], features) for one in rows]
    assert len({round(loss, 2) for loss in alone}) == len(rows)
    packable = not family_of(model.config).two_way_images
    for packing in {False, packable}:
        assert loss_of(model, rows, features, packing) == pytest.approx(sum(alone), rel=1e-5)
    swapped = [replace(rows[0], images=("2",)), *rows[1:]]
    assert loss_of(model, swapped, features) != pytest.approx(sum(alone), rel=1e-5)


def test_rows_without_images_run_the_projector_and_every_layer(model: Any) -> None:
    ids = row_of(model, [1, 50], 0, [60, 61, 62])
    row = Row("a", tuple(ids), (False, False, True, True, True), ())
    batch = collate([row], Stacked(features_of(model, 1)), 0, torch.device("cpu"))
    watched = list(model.get_submodule(family_of(model.config).projector).parameters())
    for parameter in watched:
        parameter.requires_grad_(True)
    entered = []
    handle = decoder_layers(model)[0].register_full_backward_hook(lambda *_: entered.append(True))
    try:
        gradients = torch.autograd.grad(SupervisedLoss(model)(batch, 1.0), watched)
    finally:
        handle.remove()
        for parameter in watched:
            parameter.requires_grad_(False)
    assert entered and not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("kind", FAMILIES)
def test_which_positions_see_what_comes_later(kind: str) -> None:
    model = tiny_lvlm() if kind == "llava" else tiny_family(kind)
    ids = torch.tensor([row_of(model, [1, 50], 1, [60, 61, 62])])
    begin = 2
    changed = image_embeddings(model, 1).clone()
    changed[:, -1] += 1.0  # the last position of the image
    family = family_of(model.config)

    def hidden(embeddings: torch.Tensor) -> torch.Tensor:
        inputs = family.token_inputs(model.config, ids)
        with torch.inference_mode():
            return model.model(
                input_ids=ids, mm_encoder_outputs=family.encoded(embeddings), **inputs
            ).last_hidden_state[0]

    moved = (hidden(image_embeddings(model, 1)) - hidden(changed)).abs().amax(-1) > 1e-6
    assert not moved[:begin].any() and moved[begin + IMAGE_TOKENS :].all()
    assert bool(moved[begin : begin + IMAGE_TOKENS - 1].all()) == (kind == "gemma3")
    assert bool(moved[begin : begin + IMAGE_TOKENS - 1].any()) == (kind == "gemma3")


def test_flash_attention_is_refused_where_images_are_read_in_both_directions(tmp_path: Path) -> None:
    tiny_family("gemma3").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"gemma3 lets the positions .* use --attention sdpa"):
        load_model(tmp_path, attention="flash_attention_2")
    assert load_model(tmp_path, attention="sdpa").config.model_type == "gemma3"


@pytest.mark.parametrize("kind", OTHERS)
def test_a_directory_of_a_family_is_a_model(tmp_path: Path, kind: str) -> None:
    tiny_family(kind).save_pretrained(tmp_path)
    assert resolve_model(str(tmp_path)) == tmp_path.resolve()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "qwen2_vl"}, "numbered in two dimensions"),
        ({"model_type": "qwen2_5_vl"}, "numbered in two dimensions"),
        ({"model_type": "qwen3_vl"}, r"first decoder layers, too, past the projector \(DeepStack\)"),
        ({"model_type": "qwen3_vl_moe"}, r"first decoder layers, too, past the projector \(DeepStack\)"),
        ({"model_type": "llava_next"}, "cuts an image into tiles by its size"),
        ({"model_type": "llava_onevision"}, "cuts an image into tiles by its size"),
        ({"model_type": "mistral3"}, "its tower reads an image in its own size"),
        ({"model_type": "llava", "vision_config": {"model_type": "pixtral"}}, "its tower reads an image in its own"),
        ({"model_type": "paligemma"}, "the whole prompt in both directions"),
        ({"model_type": "blip_2"}, "use one of llava, internvl, gemma3, idefics3, smolvlm"),
        ({}, "model_type None is not supported"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(tmp_path: Path, config: dict[str, Any], reason: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=reason) as refused:
        resolve_model(str(tmp_path))
    assert f"model_type {config.get('model_type')!r} is not supported" in str(refused.value)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_identity_of_a_tower_follows_its_weights_and_settings(tmp_path: Path, kind: str) -> None:
    folder = build_tiny(tmp_path) if kind == "llava" else build_family(tmp_path, kind)
    file, family = folder / "model.safetensors", FAMILIES[kind]
    before, found = load_file(file), [tower_identity(folder)]
    part = f"{family.tower.rpartition('.')[2]}."
    inside, outside = (next(name for name in before if (part in name) == wanted) for wanted in (True, False))
    for name in (outside, inside):
        save_file(before | {name: before[name] + 1}, file, {"format": "pt"})
        found.append(tower_identity(folder))
    assert found[0] == found[1] != found[2]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {family.feature_settings[0]: -3}))
    assert tower_identity(folder) != found[2]


def own_processor(folder: Path, kind: str) -> Any:
    """The processor of a family, with its tiles switched on, saved and loaded as a user's is."""
    tiny_tokenizer().save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, extra_special_tokens=EXTRA_TOKENS[kind])
    template = CHAT_TEMPLATE.replace("<image>\\n", IMAGE_IN_TEMPLATE.get(kind, "<image>"))
    sizes = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}
    square = {"height": 28, "width": 28}
    processor: Any
    if kind == "idefics3":
        images = Idefics3ImageProcessorPil(**sizes)
        processor = Idefics3Processor(images, tokenizer, image_seq_len=IMAGE_TOKENS, chat_template=template)
    elif kind == "gemma3":
        images = Gemma3ImageProcessorPil(size=square, do_pan_and_scan=True, pan_and_scan_min_crop_size=4)
        processor = Gemma3Processor(images, tokenizer, image_seq_length=IMAGE_TOKENS, chat_template=template)
    else:
        if not is_torchvision_available():
            pytest.skip(f"the processor of {kind} needs torchvision")
        pytest.importorskip("num2words")
        from transformers import (
            GotOcr2ImageProcessor,
            InternVLProcessor,
            InternVLVideoProcessor,
            SmolVLMImageProcessor,
            SmolVLMProcessor,
            SmolVLMVideoProcessor,
        )

        if kind == "smolvlm":
            parts = (SmolVLMImageProcessor(**sizes), tokenizer, SmolVLMVideoProcessor())
            processor = SmolVLMProcessor(*parts, image_seq_len=IMAGE_TOKENS, chat_template=template)
        else:
            parts = (GotOcr2ImageProcessor(size=square, crop_to_patches=True), tokenizer, InternVLVideoProcessor())
            processor = InternVLProcessor(*parts, image_seq_length=IMAGE_TOKENS, chat_template=template)
    processor.save_pretrained(folder)
    return load_processor(folder)


@pytest.mark.parametrize("kind", OTHERS)
def test_an_image_is_one_view_in_pixels_and_in_prompts(tmp_path: Path, kind: str) -> None:
    processor, model = own_processor(tmp_path, kind), tiny_family(kind)
    photo = Image.open(tmp_path / draw_photos(tmp_path, 1)[0]).resize((90, 31))
    features = tower_features(vision_tower(model), model.config, processor.image_processor, [photo, photo])
    assert features.shape == (2, *family_of(model.config).feature_shape(model.config))

    parts = [{"type": "image"}, {"type": "text", "text": "Which colour?"}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    written = image_text(processor)
    one_view = {"crop_to_patches": False} if kind == "internvl" else {}
    expected = processor(text=text, images=[photo], **one_view)["input_ids"][0]
    token = processor.tokenizer.convert_tokens_to_ids(written.token)
    assert expected.count(token) == IMAGE_TOKENS
    for_each = written.write(text)[0].replace(written.token, written.token * IMAGE_TOKENS)
    assert processor.tokenizer(for_each)["input_ids"] == list(expected)


@pytest.mark.parametrize("kind", OTHERS)
def test_rows_and_prompts_hold_what_the_family_writes(tmp_path: Path, kind: str) -> None:
    processor = own_processor(tmp_path, kind)
    photo = Image.new("RGB", (28, 28), (9, 99, 9))
    one_view = {"crop_to_patches": False} if kind == "internvl" else {}

    def expected(messages: list[Any], images: int, **options: Any) -> list[int]:
        text = processor.apply_chat_template(messages, **options)
        return list(processor(text=text, images=[photo] * images, **one_view)["input_ids"][0])

    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which colour?"}]}
    found = encode_prompt("Which colour?", processor, IMAGE_TOKENS, with_image=True)
    assert found == expected([question], 1, add_generation_prompt=True)

    answers = ("green", "a big circle")
    turns = (Turn("<image>\nWhich colour?", answers[0]), Turn("<image>\nWhich colour?", answers[1]))
    (row,) = encode_records([Record("r", ("a", "b"), turns)], processor, IMAGE_TOKENS)
    said = [{"role": "assistant", "content": [{"type": "text", "text": text}]} for text in answers]
    assert list(row.ids) == expected([question, said[0], question, said[1]], 2)
    spoken = [token for token, counts in zip(row.ids, row.supervised, strict=True) if counts]
    assert processor.tokenizer.decode(spoken) == "green<|im_end|>a big circle<|im_end|>"


def test_marks_move_with_the_images_before_them() -> None:
    write = image_text(own_tokens("<i>", "<a><i><b>")).write
    text = "x<i>y<i>zz"
    found, marks = write(text, [(0, 1), (4, 5), (8, 10)])
    assert found == "x<a><i><b>y<a><i><b>zz"
    assert [found[begin:end] for begin, end in marks] == ["x", "y", "zz"]


def own_tokens(placeholder: str, written: str) -> Any:
    """A processor of InternVL, as far as its image tokens go."""
    before, _, after = written.partition(placeholder)
    tokens = {"image_token": placeholder, "start_image_token": before, "end_image_token": after}
    return type("InternVLProcessor", (), tokens)()


@pytest.fixture(scope="module")
def appended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model, and the same one with rows that a conversion appended, likelier than any other token."""
    plain = build_tiny(tmp_path_factory.mktemp("plain"))
    ground = prepare_ground(tmp_path_factory.mktemp("ground"), plain, photos=2, texts=4)
    longer = tiny_lvlm()
    known = longer.config.text_config.vocab_size
    longer.resize_token_embeddings(known + 5, mean_resizing=False)
    longer.lm_head.weight.data[known:] = 3.0 * longer.lm_head.weight.data.abs().max()
    longer.config.text_config.original_vocab_size = known
    return {"ground": ground, "longer": longer}


def test_the_loss_leaves_appended_vocabulary_rows_out(appended: dict[str, Any]) -> None:
    workspace = appended["ground"].workspace_alone()
    batch = collate(list(appended["ground"].rows), workspace.features, 0, workspace.device)
    plain, longer = workspace.model, appended["longer"]
    with torch.inference_mode():
        expected = float(SupervisedLoss(plain)(batch, 1.0))
        assert float(SupervisedLoss(longer)(batch, 1.0)) == pytest.approx(expected, rel=1e-6)
        longer.config.text_config.original_vocab_size = None
        assert float(SupervisedLoss(longer)(batch, 1.0)) > expected + 1  # the rows would have counted
        longer.config.text_config.original_vocab_size = plain.config.text_config.vocab_size


@pytest.mark.parametrize("score", [answer_likelihoods, choose_options])
def test_likelihoods_leave_appended_vocabulary_rows_out(appended: dict[str, Any], score: Callable[..., Any]) -> None:
    workspace, options = appended["ground"].workspace_alone(), ("yes", "no big circle", "the red square", "small")
    examples = [Example(str(n), f"What is it? {n}", options[n % 4], None, options) for n in range(6)]
    keywords = {"blind": False} if score is answer_likelihoods else {}
    expected = score(workspace, examples, batch=4, **keywords)
    found = score(replace(workspace, model=appended["longer"]), examples, batch=4, **keywords)
    if score is choose_options:
        assert found == expected
    else:
        assert all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(found, expected, strict=True))


def test_packing_is_refused_where_images_are_read_in_both_directions(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    ground = prepare_ground(tmp_path, build_family(tmp_path / "model", "gemma3"), photos=2, texts=2)
    execution = Execution(micro_batch=2, packing=True)
    recipe = Recipe(mode="full", global_batch=2, max_steps=1, precision="fp32")
    training = Training(ground.rows, place("1", 6), recipe, 0, execution)
    with pytest.raises(TrainingError, match=r"gemma3 lets the positions .* leave --packing away"):
        train(ground.workspace_alone(), training, lambda _: None)
