"""EmoBox's metadata: JSON lines with key, dataset, wav, emo; beside other variants with audio and label.

EmoBox states no speaker. For the corpora whose file names tell, it is read from the name; for others a plain
manifest is needed. Its folds are not used: some of them share speakers between training and test.

Every JSON-lines file of one dataset below the root is read; a recording that several files name is one row.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from sottovoce.common.corpus.dialogues import iemocap_speaker
from sottovoce.common.corpus.file_names import NAMED_CORPORA, Named, split_path
from sottovoce.common.corpus.manifest import refusal
from sottovoce.common.corpus.problems import Problems, show
from sottovoce.common.corpus.table import first_object, json_records
from sottovoce.common.corpus.tree import Tree, why_not
from sottovoce.common.corpus.types import Reading, Row
from sottovoce.common.errors import CorpusError
from sottovoce.common.labels import CORPUS_LABELS, WORDS, LabelMap

# EmoBox's own names of datasets that we know under another.
_ADAPTERS = {"cremad": "crema-d", "emodb": "emo-db"}
_PATHS = ("wav", "audio")
_LABELS = ("emo", "label")
_SPEAKERS = ("speaker", "spk", "spk_id")


def is_emobox(row: Mapping[str, Any]) -> bool:
    """Tells whether a JSON object is a row of EmoBox."""
    return "key" in row and "dataset" in row and any(name in row for name in _PATHS)


def find(tree: Tree) -> list[str]:
    """Returns the tree's JSON-lines files that begin with a row of EmoBox."""
    candidates = (file for file in tree.files if file.lower().endswith(".jsonl"))
    return [file for file in candidates if is_emobox(first_object(tree, file))]


def read(tree: Tree, files: list[str], problems: Problems) -> Reading:
    """Reads all files of one dataset.

    Raises:
        CorpusError: there are several datasets, or EmoBox does not tell this one's speakers.
    """
    dataset, files = _dataset(tree, files)
    rows: dict[tuple[str, str], Row] = {}
    n_repeated = 0
    for file in sorted(files, key=lambda file: (file.count("/"), file)):
        for number, entry in json_records(tree, file, problems):
            row = _row(tree, file, number, entry, dataset, problems)
            if row is None:
                continue
            n_repeated += (row.file, row.corpus_label.lower()) in rows
            rows.setdefault((row.file, row.corpus_label.lower()), row)
    repeated = f"EmoBox: {n_repeated:,} rows repeat a recording of another fold or file variant; taken once."
    folds = "EmoBox: its folds are not used; speakers are kept apart instead."
    losses = (repeated, folds) if n_repeated else (folds,)
    return Reading(rows=list(rows.values()), labels=_labels(dataset), losses=losses)


def _dataset(tree: Tree, files: list[str]) -> tuple[str, list[str]]:
    """Returns the one dataset that is meant, and its files."""
    by_dataset: dict[str, list[str]] = {}
    for file in files:
        by_dataset.setdefault(str(first_object(tree, file).get("dataset", "")).lower(), []).append(file)
    if len(by_dataset) > 1:  # the repository describes many; the recordings of few are there
        here = {name: group for name, group in by_dataset.items() if _has_recording(tree, group[0])}
        by_dataset = here or by_dataset
    if len(by_dataset) != 1:
        names = ", ".join(show(name) for name in sorted(by_dataset))
        raise CorpusError(
            f"EmoBox: expected one dataset; came {names}. Scan one of the .jsonl files by name."
        )
    return next(iter(by_dataset.items()))


def _has_recording(tree: Tree, file: str) -> bool:
    return _find(tree, _text(first_object(tree, file), _PATHS)) is not None


def _labels(dataset: str) -> LabelMap:
    """Returns the dataset's codes, and the words that EmoBox writes instead of some of them."""
    codes = CORPUS_LABELS.get(_ADAPTERS.get(dataset, dataset))
    if codes is None:
        return WORDS
    return LabelMap(
        emotions={**WORDS.emotions, **codes.emotions},
        losses={**WORDS.losses, **codes.losses},
        left_out={**WORDS.left_out, **codes.left_out},
    )


def _row(
    tree: Tree, file: str, number: int, entry: Mapping[str, Any], dataset: str, problems: Problems
) -> Row | None:
    path, label = _text(entry, _PATHS), _text(entry, _LABELS)
    stated = {"path": path, "label": label, "speaker": _text(entry, _SPEAKERS)}
    why = refusal({column: value for column, value in stated.items() if value})
    if not path or not label or str(entry.get("dataset", "")).lower() != dataset:
        why = f"expected wav (or audio), emo (or label), and dataset {show(dataset)}. Left out."
    recording = _find(tree, path) if why is None else None
    if why is None and recording is None:
        why = f"wav: {why_not(tree, path)}"
    if why is not None or recording is None:
        problems.add(file, number, why or "Left out.")
        return None
    speaker, groups = _speaker(dataset, recording)
    if not (stated["speaker"] or speaker):
        raise CorpusError(
            f"{show(file)}, row {number}: EmoBox does not state the speakers of {show(dataset)}, nor do "
            "its file names. Make a manifest with the columns path, label, speaker."
        )
    return Row(
        file=recording,
        corpus_label=label,
        speaker=stated["speaker"] or speaker,
        groups=groups,
        source=file,
        row=number,
    )


def _text(entry: Mapping[str, Any], names: tuple[str, ...]) -> str:
    values = (entry.get(name) for name in names)
    return next((value.strip() for value in values if isinstance(value, str)), "")


def _find(tree: Tree, path: str) -> str | None:
    """Finds downloads/emodb/wav/x.wav also as emodb/wav/x.wav, wav/x.wav or x.wav."""
    if ".." in path.split("/"):
        return None
    parts = PurePosixPath(path).parts
    suffixes = ("/".join(parts[start:]) for start in range(len(parts)) if not path.startswith("/"))
    return next((found for suffix in suffixes if (found := tree.find(suffix)) is not None), None)


def _speaker(dataset: str, recording: str) -> tuple[str, dict[str, str]]:
    """Returns the speaker and the groups that a recording's name tells; an empty text where it tells none."""
    folders, stem = split_path(recording)
    if dataset == "iemocap":
        return iemocap_speaker(stem)
    corpus = next((c for c in NAMED_CORPORA if c.name == _ADAPTERS.get(dataset, dataset)), None)
    named = corpus.parse(folders, stem) if corpus is not None else None
    if corpus is None or not isinstance(named, Named):
        return "", {}
    return named.speaker, corpus.groups(named)
