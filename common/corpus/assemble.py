"""From rows to utterances: labels mapped, duplicates settled, speakers and patients checked.

Guarantees:
  - The same stretch stated twice alike is kept once; stated differently, it is left out: nobody knows which
    is right.
  - Every label that is lost or coarsened is counted and told.
  - A patient with two speakers, a speaker with two patients, sexes or sites, is told.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from sottovoce.common.corpus.problems import FORMULA_STARTS, Problems, show
from sottovoce.common.corpus.tree import Tree
from sottovoce.common.corpus.types import Reading, Row, Utterance


def assemble(
    tree: Tree, reading: Reading, title: str, problems: Problems
) -> tuple[list[Utterance], list[str]]:
    """Returns the utterances sorted by key, and the losses."""
    labelled, losses = _labelled(reading, title, problems)
    settled = _settled(tree, labelled, problems)
    _check_people([row for _, row in settled.values()], problems)
    return [utterance for _, (utterance, _) in sorted(settled.items())], losses


def key_of(row: Row) -> str:
    """Returns the utterance's key: the composed path, and for a stretch its times to the millisecond."""
    path = unicodedata.normalize("NFC", row.file)
    if row.start_seconds == 0.0 and row.end_seconds is None:
        return path
    end = "" if row.end_seconds is None else f"{row.end_seconds:.3f}"
    return f"{path}#{row.start_seconds:.3f}-{end}"


def _labelled(reading: Reading, title: str, problems: Problems) -> tuple[list[tuple[str, Row]], list[str]]:
    """Maps the labels: (emotion, row) of what stays, and sentences on what is lost."""
    meanings = {label: reading.labels.meaning(label) for label in {row.corpus_label for row in reading.rows}}
    labelled: list[tuple[str, Row]] = []
    counts = Counter(row.corpus_label for row in reading.rows)
    unknown: dict[str, Row] = {}
    for row in reading.rows:
        meaning = meanings[row.corpus_label]
        if meaning is None:
            unknown.setdefault(row.corpus_label, row)
        elif meaning.emotion is not None:
            labelled.append((meaning.emotion, row))
    for label, row in unknown.items():
        problems.add(
            row.source,
            row.row,
            f"the label {show(label)!r} is not one of {title}'s; {counts[label]:,} utterances left out "
            "(this is the first).",
        )
    losses = list(reading.losses)
    for label, meaning in sorted(meanings.items()):
        if meaning is not None and meaning.emotion is None:
            losses.append(
                f"{title}: label {label!r} ({meaning.loss}): {counts[label]:,} utterances left out."
            )
        elif meaning is not None and meaning.loss is not None:
            became = f"{meaning.emotion} ({meaning.loss})"
            losses.append(f"{title}: label {label!r} -> {became}: {counts[label]:,} utterances.")
    return labelled, losses


def _settled(
    tree: Tree, labelled: Iterable[tuple[str, Row]], problems: Problems
) -> dict[str, tuple[Utterance, Row]]:
    """Returns (utterance, row) by key, each key once."""
    settled: dict[str, tuple[Utterance, Row]] = {}
    contradictory: set[str] = set()
    for label, row in labelled:
        key = key_of(row)
        if key[0] in FORMULA_STARTS:
            problems.add(
                row.file, None, "its path begins as a formula does; a spreadsheet would run it. Left out."
            )
            continue
        utterance = _utterance(tree, key, label, row)
        if key not in settled:
            settled[key] = utterance, row
        elif settled[key][0] == utterance:
            problems.add(row.source, row.row, f"the same as row {settled[key][1].row}; taken once.")
        else:
            contradictory.add(key)
            first = settled[key][1]
            problems.add(
                row.source, row.row, f"contradicts row {first.row} on the same recording; both left out."
            )
    return {key: entry for key, entry in settled.items() if key not in contradictory}


def _utterance(tree: Tree, key: str, label: str, row: Row) -> Utterance:
    return Utterance(
        key=key,
        path=tree.root / row.file,
        label=label,
        corpus_label=row.corpus_label,
        speaker=row.speaker,
        patient=row.patient or row.speaker,
        groups=row.groups,
        site=row.site,
        start_seconds=row.start_seconds,
        end_seconds=row.end_seconds,
        split=row.split,
    )


def _check_people(rows: list[Row], problems: Problems) -> None:
    """Says where speakers, patients, sexes, sites and splits do not fit together. Names no value."""

    def speaker(row: Row) -> str:
        return row.speaker

    def patient(row: Row) -> str:
        return row.patient or row.speaker

    checks: tuple[tuple[Callable[[Row], str], Callable[[Row], str | None], str], ...] = (
        (speaker, lambda row: row.groups.get("sex"), "the speaker of this row has two sexes"),
        (
            speaker,
            patient,
            "the speaker of this row belongs to two patients; a patient under two ids voids the guarantee",
        ),
        (
            patient,
            speaker,
            "the patient of this row has two speakers; voices other than the patient's are not covered",
        ),
        (
            patient,
            lambda row: row.site,
            "the patient of this row is at two sites; each site spends its own budget on them",
        ),
        (speaker, lambda row: row.split, "the speaker of this row is in two of the corpus's own splits"),
    )
    for who, what, sentence in checks:
        _check(rows, who, what, sentence, problems)


def _check(
    rows: list[Row],
    who: Callable[[Row], str],
    what: Callable[[Row], str | None],
    sentence: str,
    problems: Problems,
) -> None:
    values: dict[str, set[str]] = defaultdict(set)
    first: dict[str, Row] = {}
    for row in rows:
        value = what(row)
        if value is not None and value not in values[who(row)]:
            values[who(row)].add(value)
            if len(values[who(row)]) == 2:
                first[who(row)] = row
    if first:
        row = next(iter(first.values()))
        others = f" ({len(first):,} such in the corpus; this is the first)" if len(first) > 1 else ""
        problems.add(row.source, row.row, f"{sentence}{others}.")
