"""Prompts are those of training, answers are those of `generate`, and variants share what is frozen."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import IMAGE_TOKENS, build_family

from dashboard.conversation import Decoding, End, Exchange, Piece
from dashboard.engine import Engine, Variant, pick
from dashboard.prompts import conversation_prompt
from tests.dashboard.answering import answering_store
from vrray.data.encode import encode_prompt, encode_record
from vrray.data.features import tower_features
from vrray.data.records import Record, Turn
from vrray.data.templates import TEMPLATES
from vrray.errors import DataError, ModelError, StoreError
from vrray.models.family import family_of, project_features, vision_tower
from vrray.models.loading import base_identity, load_processor
from vrray.store import Store
from vrray.variant import load_variant

CPU = torch.device("cpu")
TOP, ALL, UNTUNED = (f"{count:020x}" for count in (2, 6, 0))


def never() -> bool:
    return False


def photo(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def store(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return answering_store(tmp_path_factory.mktemp("answering"), tiny_model, str(tiny_model))


@pytest.fixture(scope="module")
def engine(store: Store, tiny_model: Path) -> Engine:
    return Engine(store, str(tiny_model), None, CPU, "fp32")


def answer(engine: Engine, variant: Variant, *asked: Exchange, decoding: Decoding | None = None) -> tuple[str, End]:
    *pieces, end = engine.answer(variant, asked, decoding or Decoding(12), never)
    assert isinstance(end, End) and all(isinstance(piece, Piece) for piece in pieces)
    return "".join(piece.text for piece in pieces if isinstance(piece, Piece)), end


@pytest.mark.parametrize("template", ["chat", "vicuna_v1"])
@pytest.mark.parametrize("with_image", [True, False])
def test_one_question_is_the_prompt_of_evaluations(tiny_model: Path, template: str, with_image: bool) -> None:
    processor = load_processor(tiny_model)
    images = (photo("red"),) if with_image else ()
    if template != "chat":
        processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "</s>"]})
    expected = encode_prompt("Which colour?", processor, IMAGE_TOKENS, template=template, with_image=with_image)
    found = conversation_prompt([Exchange("Which colour?", images)], processor, IMAGE_TOKENS, template=template)
    assert found == expected


@pytest.mark.parametrize("template", ["chat", "vicuna_v1"])
def test_a_longer_conversation_is_the_prompt_of_trainings(tiny_model: Path, template: str) -> None:
    processor = load_processor(tiny_model)
    if template != "chat":
        processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "</s>"]})
    turns = (Turn("<image>\nWhich colour?", "red"), Turn("Which shape?", "circle"), Turn("big?", "yes"))
    row = encode_record(Record("r", ("a.png",), turns), processor, IMAGE_TOKENS, template=template).row
    asked = [
        Exchange("Which colour?", (photo("red"),), "red"),
        Exchange("Which shape?", (), "circle"),
        Exchange("big?"),
    ]
    found = conversation_prompt(asked, processor, IMAGE_TOKENS, template=template)
    assert list(row.ids[: len(found)]) == found
    assert row.supervised[len(found)] and not row.supervised[len(found) - 1]


def test_texts_that_hold_image_tokens_and_unknown_templates_are_refused(tiny_model: Path) -> None:
    processor = load_processor(tiny_model)
    with pytest.raises(DataError, match="stands for an image"):
        conversation_prompt([Exchange("What is <image>?")], processor, IMAGE_TOKENS, template="chat")
    with pytest.raises(DataError, match="unknown template"):
        conversation_prompt([Exchange("What?")], processor, IMAGE_TOKENS, template="other")
    two = [Exchange("What?", (photo("red"), photo("blue")))]
    with pytest.raises(DataError, match="places 1 of the 2 images"):
        conversation_prompt(two, processor, IMAGE_TOKENS, template="vicuna_v1")
    assert "vicuna_v1" in TEMPLATES


@pytest.mark.parametrize(("key", "removed"), [(UNTUNED, ()), (TOP, ()), (TOP, (1, 3)), (ALL, (2,))])
@pytest.mark.parametrize("images", [0, 1])
def test_answers_are_those_of_the_loaded_variant(
    engine: Engine, store: Store, tiny_model: Path, key: str, removed: tuple[int, ...], images: int
) -> None:
    engine.variant(ALL, (0,))  # others beside it change nothing
    asked = Exchange("Which colour has the circle?", (photo("red"),) * images)
    found, end = answer(engine, engine.variant(key, removed), asked)
    model = load_variant(store, key, removed, tiny_model, base_identity(tiny_model), protect=False)
    assert end.tokens > 0 and found == generated(model, engine, asked)


def generated(model: torch.nn.Module, engine: Engine, asked: Exchange) -> str:
    """What transformers' own `generate` says."""
    ids = torch.tensor([conversation_prompt([asked], engine.processor, IMAGE_TOKENS, template="chat")])
    inputs = {}
    if asked.images:
        family, pixels = family_of(model.config), [Image.open(io.BytesIO(image)) for image in asked.images]
        features = tower_features(vision_tower(model), model.config, engine.processor.image_processor, pixels)
        inputs = {
            "mm_encoder_outputs": family.encoded(project_features(model, features.half())),
            **family.token_inputs(model.config, ids),
        }
    pad = engine.processor.tokenizer.pad_token_id
    output = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=pad,
        **inputs,
    )
    return str(engine.processor.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize("kind", ["gemma3", "internvl"])
def test_other_families_answer_as_generate_does(kind: str, tmp_path: Path) -> None:
    path = build_family(tmp_path / kind, kind)
    store = answering_store(tmp_path / "store", path, str(path))
    engine = Engine(store, str(path), None, CPU, "fp32")
    asked = Exchange("Which colour has the circle?", (photo("red"),))
    found, _ = answer(engine, engine.variant(TOP, (1,)), asked)
    model = load_variant(store, TOP, (1,), path, base_identity(path), protect=False)
    assert found == generated(model, engine, asked)


def test_variants_share_frozen_weights_and_those_of_one_delta_what_it_holds(engine: Engine) -> None:
    top, pruned, full = engine.variant(TOP, ()), engine.variant(TOP, (1,)), engine.variant(ALL, ())
    layers = [variant.model.model.language_model.layers for variant in (top, pruned, full)]
    whole = engine._whole.model.language_model.layers

    def place(layer: torch.nn.Module) -> int:
        return layer.self_attn.q_proj.weight.data_ptr()  # type: ignore[union-attr, operator, return-value]

    assert [len(each) for each in layers] == [6, 5, 6]
    assert place(layers[0][0]) == place(whole[0]) == place(layers[1][0])
    assert place(layers[0][5]) == place(layers[1][4]) != place(whole[5])
    assert place(layers[2][0]) != place(whole[0])
    assert engine.variant(TOP, (0,)).tuned is top.tuned
    del top, pruned
    assert TOP not in engine._tuned


def test_a_seed_decides_and_requests_do_not_disturb_each_other(engine: Engine) -> None:
    variant, asked = engine.variant(UNTUNED, ()), [Exchange("Which colour?")]
    hot = [Decoding(16, temperature=1.5, seed=seed) for seed in (1, 2)]
    alone = [answer(engine, variant, *asked, decoding=decoding)[0] for decoding in hot]
    assert alone[0] != alone[1]
    both = [engine.answer(variant, asked, decoding, never) for decoding in hot]
    texts = ["", ""]
    for events in zip(*both, strict=False):
        for place, event in enumerate(events):
            texts[place] += event.text if isinstance(event, Piece) else ""
    assert all(whole.startswith(text) and text for whole, text in zip(alone, texts, strict=True))


def test_a_stop_ends_at_the_next_token(engine: Engine) -> None:
    asked, stops = [Exchange("Which colour?")], iter([False, False, True])
    *_, end = engine.answer(engine.variant(UNTUNED, ()), asked, Decoding(64), lambda: next(stops))
    assert isinstance(end, End) and (end.finish, end.tokens) == ("cancelled", 2)


def test_what_cannot_be_read_is_refused(engine: Engine) -> None:
    variant = engine.variant(UNTUNED, ())
    with pytest.raises(DataError, match="the model reads 256"):
        answer(engine, variant, Exchange("Which colour?"), decoding=Decoding(1000))
    with pytest.raises(DataError, match="damaged"):
        answer(engine, variant, Exchange("Which colour?", (b"GIF89a",)))
    with pytest.raises(StoreError, match="no complete artefact"):
        engine.variant("0" * 20 + "f", ())
    with pytest.raises(ModelError, match="no finite logits"):
        pick(torch.full((4,), torch.nan), Decoding(), torch.Generator())


def test_the_nucleus_holds_the_likeliest_tokens() -> None:
    logits, random = torch.log(torch.tensor([0.1, 0.5, 0.3, 0.1])), torch.Generator().manual_seed(0)
    drawn = {pick(logits, Decoding(temperature=1.0, top_p=0.6), random) for _ in range(200)}
    assert drawn == {1, 2}
    assert {pick(logits, Decoding(temperature=1.0, top_p=0.05), random) for _ in range(20)} == {1}
    assert {pick(logits, Decoding(temperature=1.0), random) for _ in range(200)} == {0, 1, 2, 3}
    assert pick(logits, Decoding(), random) == 1
