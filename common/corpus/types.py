"""What a scanned corpus is: utterances, what is wrong with it, and one digest that is the same everywhere."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sottovoce.common.labels import LabelMap

_DIGEST_DOMAIN = b"sottovoce/manifest/1\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
    """One recording, or one stretch of a longer one.

    `key` is unique in its corpus: the recording's path relative to the root, with forward slashes and in
    Unicode's composed form, and `#start-end` for a stretch. `groups` holds what the corpus states of the
    speaker: "sex", "age" (a band), "language", and a manifest's own. `split` is the corpus's official one.
    """

    key: str
    path: Path
    label: str
    corpus_label: str
    speaker: str
    patient: str
    groups: Mapping[str, str] = field(default_factory=dict)
    site: str | None = None
    start_seconds: float = 0.0
    end_seconds: float | None = None
    split: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong: in which file, in which row of it (the first is 1), and what.

    `what` tells of places and counts. It never tells a person's label, sex or age.
    """

    file: str
    row: int | None
    what: str

    def __str__(self) -> str:
        place = self.file if self.row is None else f"{self.file}, row {self.row}"
        return f"{place}: {self.what}"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A folder of recordings that was understood, by which adapter, and why by that one.

    Guarantees:
      - `utterances` are sorted by key, and no key is there twice.
      - Every path is a regular file inside `root`, reached through no link.
      - `losses` state each label that became coarser or was left out, with how many utterances.
    """

    name: str
    adapter: str
    evidence: str
    root: Path
    utterances: tuple[Utterance, ...]
    problems: tuple[Problem, ...] = ()
    losses: tuple[str, ...] = ()

    def manifest_digest(self) -> str:
        """Returns SHA-256 over what the corpus states, as 64 hexadecimal digits.

        Guarantees:
          - The same on every machine, from every folder, in every order of the file system or manifest.
          - Changes with any key, label, speaker, patient, group, site or split; not with the audio.
        """
        digest = hashlib.sha256(_DIGEST_DOMAIN)
        for utterance in sorted(self.utterances, key=lambda u: u.key):
            digest.update(_canonical_row(utterance))
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What an adapter says of one recording, before labels are mapped; `source` and `row` say where."""

    file: str
    corpus_label: str
    speaker: str
    patient: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    site: str | None = None
    start_seconds: float = 0.0
    end_seconds: float | None = None
    split: str | None = None
    source: str
    row: int | None = None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """All that an adapter read: rows, the map of their labels, and what it left out on purpose."""

    rows: list[Row]
    labels: LabelMap
    losses: tuple[str, ...] = ()


def _canonical_row(utterance: Utterance) -> bytes:
    fields = {
        "groups": dict(utterance.groups),
        "key": utterance.key,
        "label": utterance.label,
        "patient": utterance.patient,
        "site": utterance.site,
        "speaker": utterance.speaker,
        "split": utterance.split,
    }
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"
