"""A scanned corpus as plain data, for a command line to print and for JSON."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from sottovoce.common.corpus.types import Corpus, Utterance
from sottovoce.common.labels import EMOTIONS


def describe(corpus: Corpus) -> dict[str, Any]:
    """Returns what a corpus holds: counts, groups, problems, losses, digest; only JSON's own types.

    `labels`, `corpus_labels`, `sites` and `splits` count utterances; `groups` count speakers and utterances
    ("unknown" where the corpus does not state one). `minutes` is None, since only
    decoding tells, unless every utterance is a stretch with an end.
    """
    utterances = corpus.utterances
    labels = Counter(u.label for u in utterances)
    return {
        "name": corpus.name,
        "adapter": corpus.adapter,
        "evidence": corpus.evidence,
        "root": str(corpus.root),
        "utterances": len(utterances),
        "speakers": len({u.speaker for u in utterances}),
        "patients": len({u.patient for u in utterances}),
        "labels": {name: labels[name] for name in EMOTIONS if name in labels},
        "corpus_labels": _counts(u.corpus_label for u in utterances),
        "groups": _groups(utterances),
        "sites": _counts(u.site for u in utterances if u.site is not None),
        "splits": _counts(u.split for u in utterances if u.split is not None),
        "minutes": _minutes(utterances),
        "problems": [{"file": p.file, "row": p.row, "what": p.what} for p in corpus.problems],
        "losses": list(corpus.losses),
        "manifest_sha256": corpus.manifest_digest(),
    }


def _counts(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _minutes(utterances: tuple[Utterance, ...]) -> float | None:
    if not utterances or any(u.end_seconds is None for u in utterances):
        return None
    return sum((u.end_seconds or 0.0) - u.start_seconds for u in utterances) / 60.0


def _groups(utterances: tuple[Utterance, ...]) -> dict[str, dict[str, Mapping[str, int]]]:
    names = sorted({name for u in utterances for name in u.groups})
    groups: dict[str, dict[str, Mapping[str, int]]] = {}
    for name in names:
        speakers: dict[str, set[str]] = defaultdict(set)
        counts: Counter[str] = Counter()
        for utterance in utterances:
            value = utterance.groups.get(name, "unknown")
            speakers[value].add(utterance.speaker)
            counts[value] += 1
        groups[name] = {
            value: {"speakers": len(speakers[value]), "utterances": counts[value]} for value in sorted(counts)
        }
    return groups
