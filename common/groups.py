"""Which groups of speakers an evaluation tells apart, and which tables of counts follow from it. All of it is public.

    [evaluation.groups]
    attributes = { sex = ["female", "male"], age = ["18-39", "40-64", "65-120"] }
    intersections = true

Guarantees:
  - A recording is in the table of all, and in at most one table of each attribute and of each pair of attributes:
    in `per_recording` tables at most, whatever a corpus states of it. The noise of a private study rests on that.
  - A value that the study does not name is in no table but that of all.
  - The tables and their order follow from the study alone: site and coordinator agree on them without a word.

>>> groups = Groups(attributes={"sex": ("female", "male"), "age": ("18-39", "40-64")}, intersections=True)
>>> tables = Tables(n_classes=8, groups=groups)
>>> len(tables.all), tables.per_recording, tables.n_cells
(9, 4, 576)
>>> [tables.all[index].name for index in tables.of_recording({"sex": "female", "age": "52"})]
['all', 'age 40-64', 'sex female', 'age 40-64, sex female']
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

from sottovoce.common.config import Interval

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Indices = npt.NDArray[np.int64]

SITE = "site"  # a site is a group in simulations only: a table of one site would be its own figure
AGE = "age"
MOST_TABLES = 100  # each of them is noised: whoever asks for more reads none
MOST_NAME = 60  # characters of an attribute's name
MOST_TEXT = (
    4_000  # characters of all tables' names: a person who approves a study signs for every one of them
)

Value = Annotated[str, Interval(1, 60)]
_BAND = re.compile(r"(\d{1,3})-(\d{1,3})")


@dataclass(frozen=True, kw_only=True)
class Groups:
    """What a study tells apart: values by attribute, as corpora state them. Bands such as "18-39" hold ages in years.

    `intersections` adds a table for each pair of values of two attributes. A group's figures are shown where its
    noised number of recordings is surely `minimum_size` or more. `by_site` makes each site a group too, in
    simulations on public corpora alone: no table of it leaves a site.
    """

    attributes: Annotated[Mapping[str, Annotated[tuple[Value, ...], Interval(2, 40)]], Interval(1, 8)]
    intersections: bool = False
    minimum_size: Annotated[int, Interval(1, 1_000_000)] = 30
    by_site: bool = False

    def value_of(self, attribute: str, stated: Mapping[str, str]) -> str | None:
        """Returns the study's value for what is stated of a recording; None where it is none of them."""
        values, said = self.attributes[attribute], stated.get(attribute)
        if said in values:
            return said
        if attribute != AGE or said is None:
            return None
        return next((value for value in values if _holds(value, said)), None)


def unnamed(groups: Groups, stated: Iterable[Mapping[str, str]]) -> Iterator[str]:
    """Yields, for each attribute, which values of a public corpus are in no group of the study, and of how many.

    >>> groups = Groups(attributes={"age": ("18-39", "40-64")})
    >>> list(unnamed(groups, [{"age": "20"}, {"age": "35-54"}, {}]))
    ["age: 2 of 3 recordings are in no group (35-54: 1, not stated: 1); the study's are 18-39, 40-64"]
    """
    rows = list(stated)
    for attribute, values in groups.attributes.items():
        others = Counter(
            row.get(attribute, "not stated") for row in rows if groups.value_of(attribute, row) is None
        )
        if others:
            counts = ", ".join(f"{value}: {n:,}" for value, n in others.most_common(6))
            more = ", ..." if len(others) > 6 else ""
            yield (
                f"{attribute}: {others.total():,} of {len(rows):,} recordings are in no group ({counts}{more}); the "
                f"study's are {', '.join(values)}"
            )


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table: of recordings for which every (attribute, value) of `where` holds. Without any, of all."""

    where: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Returns the table's name, as figures are printed with."""
        return ", ".join(f"{name} {value}" for name, value in self.where) or "all"


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The confusion tables of one release: the first is of all. Flat, they stand one after the other.

    With `confidence_bins` the tables of `calibration_counts.py` stand behind them, 3 * bins cells, filled up with
    empty ones to whole pages of the size of a confusion.
    """

    n_classes: int
    groups: Groups | None = None
    confidence_bins: int = 0

    @cached_property
    def all(self) -> tuple[Table, ...]:
        """The tables, in order."""
        if self.groups is None:
            return (Table(),)
        singles = [[((name, value),) for value in self.groups.attributes[name]] for name in self.attributes]
        pairs = itertools.combinations(singles, 2) if self.groups.intersections else ()
        crossed = [first + second for one, other in pairs for first in one for second in other]
        return (Table(), *(Table(where=where) for where in [*itertools.chain(*singles), *crossed]))

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes, in order."""
        return () if self.groups is None else tuple(sorted(self.groups.attributes))

    @property
    def per_recording(self) -> int:
        """How many tables a recording can be in at most."""
        n = len(self.attributes)
        crossed = self.groups is not None and self.groups.intersections
        return 1 + n + (n * (n - 1) // 2 if crossed else 0) + (2 if self.confidence_bins else 0)

    @property
    def names(self) -> tuple[str, ...]:
        """What is counted, by name: each table of all and of groups, and what calibration counts beside them."""
        beside = (
            ("how sure answers are, and how strange the truth is to the model",)
            if self.confidence_bins
            else ()
        )
        return (*(table.name for table in self.all), *beside)

    @property
    def n_confusions(self) -> int:
        """How many cells the confusions have; those of calibration follow."""
        return len(self.all) * self.n_classes**2

    @property
    def n_cells(self) -> int:
        """How many numbers a release has."""
        return self.shape[0] * self.n_classes**2

    @property
    def shape(self) -> tuple[int, int, int]:
        """Returns (tables and pages, truth, predicted)."""
        pages = -(-3 * self.confidence_bins // self.n_classes**2)
        return len(self.all) + pages, self.n_classes, self.n_classes

    def of_attribute(self, name: str) -> tuple[int, ...]:
        """Returns the tables of one attribute's values: no recording is in two of them."""
        return tuple(i for i, table in enumerate(self.all) if [key for key, _ in table.where] == [name])

    def of_recording(self, stated: Mapping[str, str]) -> tuple[int, ...]:
        """Returns the tables that a recording counts in, of which a corpus states so much."""
        groups = self.groups
        values = {} if groups is None else {name: groups.value_of(name, stated) for name in self.attributes}
        return tuple(
            index
            for index, table in enumerate(self.all)
            if all(values[name] == value for name, value in table.where)
        )

    def memberships(self, stated: Iterable[Mapping[str, str]]) -> "tuple[Indices, Indices]":
        """Returns the number of the recording, and of the table, for each time that a recording counts."""
        import numpy as np  # here: a study is read where nothing is counted

        found = [(row, table) for row, one in enumerate(stated) for table in self.of_recording(one)]
        each = np.array(found, np.int64).reshape(-1, 2)
        return each[:, 0], each[:, 1]


def problems(groups: Groups) -> list[str]:
    """Returns what is wrong between values that are right one by one, each with its key."""
    found, key = [], "evaluation.groups.attributes"
    for name, values in groups.attributes.items():
        if name == SITE:
            found.append(
                f"{key}: expected no attribute {SITE!r}: its tables would be each site's own figures. Say by_site = "
                "true for simulations."
            )
        if not 1 <= len(name) <= MOST_NAME:
            found.append(f"{key}: expected names of 1 to {MOST_NAME} characters; one has {len(name)}.")
        if not all(text.isprintable() and ";" not in text for text in (name, *values)):
            found.append(
                f"{key}: expected names that can be printed, without ';': a person signs for the list."
            )
        if len(set(values)) < len(values):
            found.append(f"{key}.{name}: expected different values; some are there twice.")
        bands = [band for value in values if name == AGE and (band := _band(value))]
        if any(max(a[0], b[0]) <= min(a[1], b[1]) for a, b in itertools.combinations(bands, 2)):
            found.append(f"{key}.{name}: expected bands without a common year; some overlap.")
    names = Tables(n_classes=1, groups=groups, confidence_bins=1).names
    n_tables, length = len(names) - 1, len("; ".join(names))
    if n_tables > MOST_TABLES:
        found.append(f"evaluation.groups: expected at most {MOST_TABLES} tables of counts; came {n_tables}.")
    if length > MOST_TEXT:
        found.append(
            f"evaluation.groups: expected names of tables of at most {MOST_TEXT} characters together, all of which a "
            f"hospital signs for; came {length}. Take shorter values, or fewer."
        )
    return found


def _band(value: str) -> tuple[int, int] | None:
    found = _BAND.fullmatch(value)
    return None if found is None else (int(found[1]), int(found[2]))


def _holds(value: str, said: str) -> bool:
    """Says whether a band holds an age, or all of a narrower band."""
    band, inner = _band(value), _band(said)
    if band is None:
        return False
    if inner is None:
        if not re.fullmatch(r"\d{1,3}(\.\d{1,6})?", said):
            return False
        years = int(float(said))
        inner = (years, years)
    return band[0] <= inner[0] <= inner[1] <= band[1]
