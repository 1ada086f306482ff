"""Letters to read: eight capitals in several fonts, sizes, colours and places. No split shares a font family.

Fonts: DejaVu, STIX and Computer Modern, which matplotlib ships; Caladea (Apache-2.0); Manrope, Hanken Grotesk and
Intuitive (OFL-1.1).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vrray.data.demo_order import in_rounds, seeded
from vrray.data.demo_packages import package_folder
from vrray.data.tasks import Example

TASK = "font-letters"
QUESTION = "Which letter is written in the picture?"
LETTERS = tuple("ABEHKMRS")
_EXAMPLES = 200  # of each of select and test
_SIDE = 96
_SMALLEST, _LARGEST = 60, 84  # px of a letter's longer side
_DARK, _LIGHT = (0, 110), (190, 256)  # red, green and blue of the two colours of a picture
_LIGHT_ON_DARK = 0.3

# Split -> family -> (package, files).
FONTS: Mapping[str, Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "train": {
        "DejaVu Sans": (
            "matplotlib",
            ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf", "DejaVuSans-BoldOblique.ttf"),
        ),
        "DejaVu Sans Mono": ("matplotlib", ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf")),
        "DejaVu Serif": ("matplotlib", ("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSerif-Italic.ttf")),
        "STIX General": (
            "matplotlib",
            ("STIXGeneral.ttf", "STIXGeneralBol.ttf", "STIXGeneralItalic.ttf", "STIXGeneralBolIta.ttf"),
        ),
        "Computer Modern": ("matplotlib", ("cmr10.ttf", "cmb10.ttf", "cmss10.ttf", "cmtt10.ttf")),
    },
    "select": {
        "Caladea": (
            "font-caladea",
            ("Caladea-Regular.ttf", "Caladea-Bold.ttf", "Caladea-Italic.ttf", "Caladea-BoldItalic.ttf"),
        ),
        "Manrope": (
            "font-manrope",
            ("Manrope-Light.ttf", "Manrope-Regular.ttf", "Manrope-SemiBold.ttf", "Manrope-Bold.ttf"),
        ),
    },
    "test": {
        "Hanken Grotesk": (
            "font-hanken-grotesk",
            (
                "HankenGrotesk-Light.otf",
                "HankenGrotesk-Regular.otf",
                "HankenGrotesk-Bold.otf",
                "HankenGrotesk-Italic.otf",
            ),
        ),
        "Intuitive": ("font-intuitive", ("Intuitive.ttf",)),
    },
}


def draw_letters(images: Path, training_rows: int) -> dict[str, list[Example]]:
    """Draws the pictures of every split into the folder `images` and asks for their letters.

    Families alternate, and every eight examples in a row hold each letter once.

    Args:
        training_rows: a multiple of the number of letters.
    """
    rows = {"train": training_rows, "select": _EXAMPLES, "test": _EXAMPLES}
    examples: dict[str, list[Example]] = {}
    for split, count in rows.items():
        generator = seeded(f"{TASK} {split} pictures")
        families = [[_font_path(package, file) for file in files] for package, files in FONTS[split].values()]
        (images / TASK / split).mkdir(parents=True)
        examples[split] = []
        for number, letter in enumerate(in_rounds(LETTERS, count // len(LETTERS), f"{TASK} {split}")):
            font = generator.choice(families[number % len(families)])
            name = f"{TASK}/{split}/{number:04}-{letter}-{font.stem}.png"
            _write(letter, font, generator).save(images / name)
            examples[split].append(Example(f"{TASK}/{split}/{number}", QUESTION, letter, name))
    return examples


def caption_letters(examples: Iterable[Example]) -> list[tuple[str, str]]:
    """(image, caption) of each example."""
    return [(example.image, f"the letter {example.answer}") for example in examples if example.image]


def _font_path(package: str, file: str) -> Path:
    folder = "mpl-data/fonts/ttf" if package == "matplotlib" else "files"
    return package_folder(package) / folder / file


def _write(letter: str, font: Path, generator: random.Random) -> Image.Image:
    dark, light = (tuple(generator.randrange(*band) for _ in range(3)) for band in (_DARK, _LIGHT))
    ink, paper = (light, dark) if generator.random() < _LIGHT_ON_DARK else (dark, light)
    fitted = _fit(letter, font, generator.randint(_SMALLEST, _LARGEST))
    left, top, right, bottom = fitted.getbbox(letter)
    x, y = generator.uniform(0, _SIDE - (right - left)), generator.uniform(0, _SIDE - (bottom - top))
    picture = Image.new("RGB", (_SIDE, _SIDE), paper)
    ImageDraw.Draw(picture).text((round(x - left), round(y - top)), letter, font=fitted, fill=ink)
    return picture


def _fit(letter: str, font: Path, side: int) -> ImageFont.FreeTypeFont:
    """The font in the size in which the longer side of the letter's box has so many px."""
    size = 64.0
    left, top, right, bottom = _load(font, size).getbbox(letter)
    return _load(font, size * side / max(right - left, bottom - top))


def _load(font: Path, size: float) -> ImageFont.FreeTypeFont:
    # The basic layout, since the other depends on libraries of the system.
    return ImageFont.truetype(str(font), size, layout_engine=ImageFont.Layout.BASIC)
