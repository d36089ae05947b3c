"""Which speakers are withheld together. A site works it out alone, from its own speakers.

Guarantees:
  - Each speaker is in exactly one fold, whatever the order in which the speakers are listed.
  - A site's folds do not depend on any other site: no roster leaves a hospital for the sake of a split.
  - `by_speaker` folds of one site differ by at most one speaker, and each site starts dealing at a fold
    of its own, so that over many sites no fold is systematically the larger.
  - A named set gives exactly the published folds; a speaker that is not in it is an error, never a guess.

`by_patient_hash` folds are not equal in size, and do not move when a patient comes or goes: what differential
privacy compares is two data sets that differ by one patient, and dealt cards would differ by many.

`by_speaker` folds change with the study's seed: five seeds vary the folds as well as the initial weights, so
their spread includes the luck of the split. Named folds are the same for every seed.

A voice that is at two sites under one id is dealt twice and may be trained on in one fold and scored in it at
the other site. A site alone cannot see that; `predictions.check` refuses predictions in which it happened.

>>> from sottovoce.common.study import SpeakerFolds
>>> fold_of(SpeakerFolds(kind="by_speaker", k=2), 0, "site-1", ["ann", "bea", "cyd"])
{'ann': 0, 'bea': 0, 'cyd': 1}
"""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sottovoce.common.errors import CorpusError
from sottovoce.common.streams import stream
from sottovoce.common.study import Folds, HashFolds, NamedFolds

# Actor numbers of RAVDESS. Luna-Jiménez et al. 2021 ("Multimodal emotion recognition on RAVDESS dataset using
# transfer learning", subject-wise 5-CV) and EmoBox (Ma et al. 2024).
NAMED_FOLDS: dict[str, tuple[frozenset[int], ...]] = {
    "ravdess-luna-jimenez": (
        frozenset({2, 5, 14, 15, 16}),
        frozenset({3, 6, 7, 13, 18}),
        frozenset({10, 11, 12, 19, 20}),
        frozenset({8, 17, 21, 23, 24}),
        frozenset({1, 4, 9, 22}),
    ),
    "ravdess-emobox": (
        frozenset({1, 11, 20, 21}),
        frozenset({4, 10, 12, 14}),
        frozenset({8, 9, 19, 23}),
        frozenset({3, 5, 7, 24}),
        frozenset({2, 15, 16, 18}),
        frozenset({6, 13, 17, 22}),
    ),
}


def n_folds(spec: Folds) -> int:
    """Returns how many folds a study has."""
    return len(NAMED_FOLDS[spec.name]) if isinstance(spec, NamedFolds) else spec.k


def fold_of(spec: Folds, seed: int, site: str, speakers: Sequence[str]) -> dict[str, int]:
    """Returns the fold in which each of a site's speakers is withheld, in sorted order of the speakers.

    For `by_patient_hash` hand in patients: who they are decides, and nobody else does.

    Raises:
        CorpusError: a speaker is not in the named set.
    """
    ordered = sorted(set(speakers))
    if isinstance(spec, NamedFolds):
        return {speaker: _named_fold(spec.name, speaker) for speaker in ordered}
    if isinstance(spec, HashFolds):
        return {patient: int(stream(seed, "fold", patient).integers(spec.k)) for patient in ordered}
    random = stream(seed, "folds", site)
    start = int(random.integers(spec.k))
    dealt = random.permutation(len(ordered)).tolist()
    return {speaker: (start + turn) % spec.k for speaker, turn in zip(ordered, dealt, strict=True)}


def leaking_random_fold(*, seed: int, site: str, labels: Sequence[int], k: int) -> npt.NDArray[np.int64]:
    """Deals utterances to k folds at random, class by class. It LEAKS: a voice is on both sides.

    For simulation only, to show beside the honest number what a random split would have claimed.

    Guarantees:
      - Every fold has as many utterances of a class as any other, give or take one; and so has the total.
    """
    random = stream(seed, "folds that leak", site)
    truth = np.asarray(labels, dtype=np.int64)
    shuffled = random.permutation(len(truth))
    by_class = shuffled[np.argsort(truth[shuffled], kind="stable")]
    folds = np.empty(len(truth), dtype=np.int64)
    folds[by_class] = (int(random.integers(k)) + np.arange(len(truth))) % k
    return folds


def _named_fold(name: str, speaker: str) -> int:
    number = re.fullmatch(r"0*([1-9][0-9]?)", speaker, flags=re.ASCII)
    if number is not None:
        for index, members in enumerate(NAMED_FOLDS[name]):
            if int(number[1]) in members:
                return index
    raise CorpusError(
        f"evaluation.folds: expected the speakers 01 to 24 of {name!r}; this corpus has another. "
        "Use folds of kind 'by_speaker' or 'by_patient_hash' for other corpora."
    )
