"""Finding the option that a text chooses, in the several ways of the benchmarks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vrray.evaluate.benchmarks.question import LETTERS

_SIGNS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LONG = 3  # words, from which on a lone A may be an article
_KEYWORDS = ("answer is", "answer is:", "answer:", "assistant:")
_MMMU_ENDS = (",", ".", "!", "?", ";", ":", "'")
_MMMU_WORDS = 5  # above which a text may name an option by its content
_AT_START = re.compile(r"\(?([A-D])(?![A-Za-z])")
_STATED = re.compile(r"(?:(?i:answer is|answer:)|答案(?:选项)?[是为:\uff1a])[:\uff1a(\uff08\s]*([A-D])(?![A-Za-z])")


def first_character(text: str) -> str:
    """The character that AI2D's script in the Visual-Region repository takes for the answer, in lower case.

    That is the first one behind the keyword, without a bracket before it; in "The answer is: B" it is the colon.
    """
    text = text.lower().strip()
    for keyword in _KEYWORDS:
        text = text.rpartition(keyword)[2]
    return text.strip().rstrip(".:,").lstrip("(").rstrip(")")[:1]


def matched_option(text: str, options: Sequence[str]) -> str:
    """The letter that MMBench's matching finds, or "" where it would ask ChatGPT (Liu et al. 2023, section 4.3).

    That is the one letter of an option among the words, or else the one option whose text the answer holds. A lone
    "A" in a text of more than three words may be an article and is no letter.
    """
    words = text.translate(_SIGNS).split()
    named = [letter for letter, _ in zip(LETTERS, options, strict=False) if letter in words]
    if len(named) == 1 and not (named == ["A"] and len(words) > _LONG):
        return named[0]
    lower = text.lower()
    held = [letter for letter, option in zip(LETTERS, options, strict=False) if option and option.lower() in lower]
    return held[0] if len(held) == 1 else ""


def last_option(text: str, letters: Sequence[str], options: Sequence[str]) -> str:
    """The letter that MMMU's `parse_multi_choice_response` finds, or "" where that draws one at random.

    Letters in brackets go before letters between spaces, those before the options' texts in a text of more than five
    words; of several found the one that stands last.
    """
    for end in _MMMU_ENDS:
        text = text.strip(end)
    text = f" {text} "
    for form in ("({})", " {} "):
        found = {letter: text.rfind(form.format(letter)) for letter in letters if form.format(letter) in text}
        if found:
            return max(found, key=found.__getitem__)
    if len(text.split()) <= _MMMU_WORDS:
        return ""
    lower = text.lower()
    pairs = zip(letters, options, strict=False)
    found = {letter: lower.rfind(option.lower()) for letter, option in pairs if option.lower() in lower}
    return max(found, key=found.__getitem__) if found else ""


def stated_option(text: str) -> str:
    """The letter A to D that an answer in an exam gives, or "".

    It stands at the start, behind "answer is", 答案是 and the like, or is the only letter of an option at all.
    """
    text = text.strip()
    start = _AT_START.match(text)
    if start:
        return start[1]
    stated = _STATED.findall(text)
    if stated:
        return str(stated[-1])
    mentioned = set(re.findall(r"(?<![A-Za-z])[A-D](?![A-Za-z])", text))
    return mentioned.pop() if len(mentioned) == 1 else ""
