"""What corpora and manifests state of their speakers, in one spelling: sex, age band, language.

Ages become bands: figures per group need groups with people in them, and a band names a person less.

>>> sex("F"), age("31"), age("elderly"), language("deu")
('female', '30-44', 'elderly', 'de')
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from sottovoce.common.corpus.problems import Problems
from sottovoce.common.corpus.table import cells_of
from sottovoce.common.corpus.tree import Tree

AGE_BANDS_YEARS = (18, 30, 45, 60)  # a band starts at each, and one before the first
MAX_AGE_YEARS = 120

_SEXES = {"f": "female", "w": "female", "woman": "female", "m": "male", "man": "male"}
_LANGUAGES = {
    "eng": "en", "english": "en", "deu": "de", "ger": "de", "german": "de", "fra": "fr", "fre": "fr",
    "french": "fr", "ben": "bn", "bangla": "bn", "bengali": "bn", "urd": "ur", "urdu": "ur", "zho": "zh",
    "chi": "zh", "cmn": "zh", "chinese": "zh", "spa": "es", "spanish": "es", "ita": "it", "italian": "it",
    "jpn": "ja", "japanese": "ja", "tur": "tr", "turkish": "tr", "dan": "da", "danish": "da",
}  # fmt: skip


@dataclass(frozen=True)
class Person:
    """A speaker's sex, and age in years as published."""

    sex: str | None = None
    years: str | None = None

    @property
    def age(self) -> str | None:
        """The age's band."""
        return None if self.years is None else age(self.years)


@lru_cache(maxsize=4096)
def sex(text: str) -> str:
    """Returns "female", "male", or the lower-case text as it stands."""
    lowered = text.strip().lower()
    return _SEXES.get(lowered, lowered)


@lru_cache(maxsize=4096)
def age(text: str) -> str:
    """Returns the band of an age in years; a text that is no age in years stays as it is."""
    lowered = text.strip().lower()
    if not re.fullmatch(r"\d{1,3}(\.0*)?", lowered) or float(lowered) > MAX_AGE_YEARS:
        return lowered
    years = int(float(lowered))
    below = [start for start in AGE_BANDS_YEARS if start <= years]
    above = [start for start in AGE_BANDS_YEARS if start > years]
    if not above:
        return f"{below[-1]}+"
    return f"{below[-1] if below else 0}-{above[0] - 1}"


@lru_cache(maxsize=4096)
def language(text: str) -> str:
    """Returns the two-letter code of a language where it is known, else the lower-case text."""
    lowered = text.strip().lower()
    return _LANGUAGES.get(lowered, lowered)


def crema_d_people(tree: Tree, problems: Problems) -> Mapping[str, Person]:
    """Reads CREMA-D's VideoDemographics.csv (ActorID,Age,Sex,Race,Ethnicity)."""
    file = next((f for f in tree.files if f.lower().rsplit("/", 1)[-1] == "videodemographics.csv"), None)
    if file is None:
        problems.add(".", None, "VideoDemographics.csv is not there: the speakers' sex and age are unknown.")
        return {}
    people: dict[str, Person] = {}
    header: list[str] = []
    for number, line in tree.lines(file):
        cells = cells_of(line.decode("utf-8-sig", "replace")) or []
        if not header:
            header = [cell.strip().lower() for cell in cells]
            continue
        row = dict(zip(header, cells, strict=False))
        actor, years = row.get("actorid", "").strip(), row.get("age", "").strip()
        person = Person(sex(row.get("sex", "")), years)
        if actor and years.isdecimal() and person.sex in _SEXES.values():
            people[actor] = person
        elif line.strip():
            problems.add(file, number, "expected ActorID, Age in years, and Sex (Female or Male). Left out.")
    return people
