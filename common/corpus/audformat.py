"""audformat databases (db.yaml and its tables), through the optional library `audformat`; its only door.

The library itself would build any Python object that a header or a pickled table names, which is to run a
stranger's code. So the header is parsed here with YAML's safe loader, pickled tables are refused, and only
tables that lie at the top of the scanned folder are handed to the library.
"""

import importlib
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from sottovoce.common.corpus import people
from sottovoce.common.corpus.manifest import MAX_SECONDS, refusal
from sottovoce.common.corpus.problems import Problems, show
from sottovoce.common.corpus.tree import Tree, why_not
from sottovoce.common.corpus.types import Reading, Row
from sottovoce.common.errors import CorpusError
from sottovoce.common.labels import WORDS

HEADER = "db.yaml"
MAX_HEADER_BYTES = 5_000_000
MAX_TABLE_BYTES = 200_000_000

_TABLE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")
_Stretch = tuple[str, float, float | None]


def is_database(tree: Tree) -> bool:
    """Tells whether an audformat header lies at the tree's top."""
    return HEADER in tree.files


def read(tree: Tree, problems: Problems) -> Reading:
    """Reads the tables with a column or scheme `emotion`, and whichever tell each recording's `speaker`.

    Raises:
        CorpusError: the extra is missing, the database is damaged, or states no emotion or speaker.
    """
    database = _load(tree)
    tables = {name: table for name, table in database.tables.items() if _column(table, "emotion")}
    # A gold standard is what the raters' single votes were made into.
    gold = {name: table for name, table in tables.items() if name.endswith("gold_standard")}
    if not tables:
        raise CorpusError("audformat: expected a table with a column or scheme 'emotion'; found none.")
    speakers = _speakers(database)
    if not speakers:
        raise CorpusError("audformat: expected a table with a column or scheme 'speaker'; found none.")
    persons = _persons(database)
    rows: dict[_Stretch, Row] = {}
    for name, table in (gold or tables).items():
        source = f"db.{name}"
        for number, stretch, label in _cells(table, "emotion"):
            row = _row(tree, source, number, stretch, label, speakers, persons, problems)
            if row is not None:
                rows.setdefault((row.file, *stretch[1:]), row)
    unlabelled = "audformat: only tables of the gold standard are used." if gold else None
    return Reading(rows=list(rows.values()), labels=WORDS, losses=(unlabelled,) if unlabelled else ())


def _load(tree: Tree) -> Any:
    try:
        import audformat as library

        yaml = importlib.import_module("yaml")  # PyYAML comes with the extra, and ships no types
    except ImportError:
        raise CorpusError(
            f"{HEADER}: this is an audformat database; reading it needs an extra. "
            "Run `pip install 'sottovoce[audformat]'`."
        ) from None
    text = b"\n".join(_bounded_header(tree))
    try:
        database = library.Database.load_header_from_yaml(yaml.load(text, Loader=yaml.SafeLoader))
    except Exception as error:  # a stranger's header: any type of exception may come out of the library
        raise CorpusError(f"{HEADER}: is no audformat header ({type(error).__name__}).") from None
    for name in [*database.misc_tables, *database.tables]:
        _load_table(tree, database, name)
    return database


def _bounded_header(tree: Tree) -> Iterator[bytes]:
    if tree.size_bytes(HEADER) > MAX_HEADER_BYTES:
        raise CorpusError(f"{HEADER}: expected at most {MAX_HEADER_BYTES:,} bytes.")
    for _, line in tree.lines(HEADER):
        yield line


def _load_table(tree: Tree, database: Any, name: str) -> None:
    if not _TABLE_ID.fullmatch(name):
        raise CorpusError(
            f"{HEADER}: expected table names of letters, digits, '.', '_', '-'; came {show(name)}."
        )
    if (tree.root / f"db.{name}.pkl").is_symlink() or (tree.root / f"db.{name}.pkl").exists():
        raise CorpusError(
            f"db.{name}.pkl: pickled tables are refused: reading one runs what it says. "
            "Save the database as CSV or Parquet, and delete the .pkl files."
        )
    file = next((f for f in (f"db.{name}.parquet", f"db.{name}.csv") if f in tree.files), None)
    if file is None:
        raise CorpusError(f"{HEADER}: expected db.{name}.csv or db.{name}.parquet beside it; found neither.")
    if tree.size_bytes(file) > MAX_TABLE_BYTES:
        raise CorpusError(f"{file}: expected at most {MAX_TABLE_BYTES:,} bytes.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own use of pandas; nothing a user can mend
            database[name].load(str(tree.root / f"db.{name}"))
    except Exception as error:  # as above: a stranger's table
        raise CorpusError(f"{file}: is no audformat table ({type(error).__name__}).") from None


def _column(table: Any, name: str) -> str | None:
    """Returns the id of the column that is called `name`, or whose scheme is."""
    for column_id, column in table.columns.items():
        if column_id == name or column.scheme_id == name:
            return str(column_id)
    return None


def _cells(table: Any, name: str) -> Iterator[tuple[int, _Stretch, str | None]]:
    """Yields (row of the file, stretch, value or None) of a column."""
    frame = table.df[[_column(table, name)]].reset_index()
    missing = frame.isna()
    for number, (values, holes) in enumerate(
        zip(frame.itertuples(index=False), missing.itertuples(index=False), strict=True), start=2
    ):
        start, end = 0.0, None
        if len(values) == 4:
            start = 0.0 if holes[1] else float(values[1].total_seconds())
            end = None if holes[2] else float(values[2].total_seconds())
        yield number, (str(values[0]), start, end), None if holes[-1] else str(values[-1]).strip()


def _speakers(database: Any) -> dict[_Stretch | str, str]:
    """Returns the speaker of each stretch, and of each file that has only one."""
    speakers: dict[_Stretch | str, str] = {}
    by_file: dict[str, set[str]] = {}
    for table in database.tables.values():
        if _column(table, "speaker"):
            for _, stretch, speaker in _cells(table, "speaker"):
                if speaker:
                    speakers[stretch] = speaker
                    by_file.setdefault(stretch[0], set()).add(speaker)
    speakers.update({file: next(iter(voices)) for file, voices in by_file.items() if len(voices) == 1})
    return speakers


def _persons(database: Any) -> dict[str, dict[str, str]]:
    """Returns what the scheme `speaker` states of each speaker."""
    languages = list(database.languages or [])
    common = {"language": people.language(languages[0])} if len(languages) == 1 else {}
    # audformat's tables of schemes answer `in` and [], and get() only in newer releases.
    labels = database.schemes["speaker"].labels if "speaker" in database.schemes else None
    if isinstance(labels, str):
        labels = database.misc_tables[labels].df.to_dict(orient="index")
    persons: dict[str, dict[str, str]] = {"": common}
    if isinstance(labels, Mapping):
        for speaker, facts in labels.items():
            persons[str(speaker)] = common | (_groups(facts) if isinstance(facts, Mapping) else {})
    return persons


def _groups(facts: Mapping[str, Any]) -> dict[str, str]:
    known = {key: str(value) for key, value in facts.items() if value is not None and value == value}
    groups = {"sex": people.sex(known.get("sex") or known.get("gender") or "")}
    groups["age"] = people.age(known.get("age", ""))
    groups["language"] = people.language(known.get("language", ""))
    return {key: value for key, value in groups.items() if value}


def _row(
    tree: Tree,
    source: str,
    number: int,
    stretch: _Stretch,
    label: str | None,
    speakers: Mapping[_Stretch | str, str],
    persons: Mapping[str, dict[str, str]],
    problems: Problems,
) -> Row | None:
    path, start, end = stretch
    recording = tree.find(path)
    speaker = speakers.get(stretch) or speakers.get(path)
    groups = persons.get(speaker or "", persons[""])
    why = refusal({"path": path, "label": label or "", "speaker": speaker or "", **groups})
    if recording is None:
        why = f"file: {why_not(tree, path)}"
    elif label is None or speaker is None:
        why = f"{'emotion' if label is None else 'speaker'}: expected a value; came none. Left out."
    elif not 0.0 <= start < (MAX_SECONDS if end is None else end) <= MAX_SECONDS:
        why = f"expected 0 <= start < end <= {MAX_SECONDS:g} s. Left out."
    if why is not None or recording is None or label is None or speaker is None:
        problems.add(source, number, why or "Left out.")
        return None
    return Row(
        file=recording,
        corpus_label=label,
        speaker=speaker,
        groups=groups,
        start_seconds=start,
        end_seconds=end,
        source=source,
        row=number,
    )
