"""What a first study takes from the corpus that it is written for: classes, sites, folds; and what it could not take.

    shape = shape_of(scan(folder, name="corpus"))
    shape.remarks     # what a person should know before the study runs, a sentence or two each

Guarantees:
  - Nothing of a corpus is left aside in silence: an emotion with too few recordings, a site that a manifest states and
    the study does not use, speakers who cannot be enrolled, emotions that speakers give away.
  - Sites are the corpus's own where it states them for every recording, and each person is at one.
  - Every fold has somebody to score.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sottovoce.common.corpus import Corpus, Utterance
from sottovoce.common.errors import CorpusError
from sottovoce.common.folds import fold_of
from sottovoce.common.labels import EMOTIONS
from sottovoce.common.study import Enrolment, SpeakerFolds
from sottovoce.simulations.partition import site_names

MIN_CLASS_UTTERANCES = 10  # a class with fewer cannot be learned or scored
MIN_CLASS_SPEAKERS = 2  # a class of one speaker cannot be scored speaker-independently
STATED = "Sites are those that the corpus states."


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a study must know of a corpus to fit it, and what a person should know of the fit."""

    corpus: str
    adapter: str
    classes: tuple[str, ...]
    n_sites: int
    k_folds: int
    named_folds: str | None = None
    enrols: bool = True
    states_sites: bool = False
    remarks: tuple[str, ...] = ()


EMBEDDED = Shape(
    corpus="voices",
    adapter="auto",
    classes=("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"),
    n_sites=6,
    k_folds=4,
)


def shape_of(corpus: Corpus) -> Shape:
    """Returns sites, folds and classes that fit a corpus.

    Raises:
        CorpusError: fewer than two classes or two patients: nothing to learn, or nobody to withhold.
    """
    speakers = _speakers_by_label(corpus)
    classes = tuple(label for label in EMOTIONS if label in speakers and not _lacks(corpus, label, speakers))
    n_patients = len({item.patient for item in corpus.utterances})
    if len(classes) < 2 or n_patients < 2:
        raise CorpusError(
            f"A study expects two patients and two emotions with {MIN_CLASS_UTTERANCES} recordings of "
            f"{MIN_CLASS_SPEAKERS} speakers each; {corpus.name!r} has {n_patients} and {len(classes)}."
        )
    enrols = _most_can_enrol(corpus)
    kept = [item for item in corpus.utterances if item.label in classes]
    unused = _why_sites_are_not_used(kept)
    homes = _blocks(kept) if unused else {item.speaker: item.site or "" for item in kept}
    return Shape(
        corpus=corpus.name,
        adapter=corpus.adapter,
        classes=classes,
        n_sites=len(set(homes.values())),
        k_folds=_most_folds(homes),
        named_folds="ravdess-luna-jimenez" if corpus.adapter == "ravdess" and n_patients == 24 else None,
        enrols=enrols,
        states_sites=not unused,
        remarks=tuple(_remarks(corpus, classes, speakers, enrols, unused)),
    )


def with_sites(shape: Shape, n_sites: int | None) -> Shape:
    """Returns the shape for as many sites as a person asked for; blocks of speakers where the corpus has others."""
    if n_sites is None or n_sites == shape.n_sites:
        return shape
    remarks = tuple(remark for remark in shape.remarks if remark != STATED)
    if shape.states_sites:
        remarks += (
            f"The corpus states {shape.n_sites} sites; --sites {n_sites} deals speakers in blocks instead.",
        )
    return replace(shape, n_sites=n_sites, states_sites=False, remarks=remarks)


def _speakers_by_label(corpus: Corpus) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for item in corpus.utterances:
        found[item.label].add(item.speaker)
    return found


def _lacks(corpus: Corpus, label: str, speakers: dict[str, set[str]]) -> bool:
    count = sum(item.label == label for item in corpus.utterances)
    return count < MIN_CLASS_UTTERANCES or len(speakers[label]) < MIN_CLASS_SPEAKERS


def _most_can_enrol(corpus: Corpus) -> bool:
    """Says whether four in five speakers have recordings to be enrolled by, with as many left over."""
    plain = Counter(item.speaker for item in corpus.utterances if item.label in Enrolment().emotions)
    speakers = {item.speaker for item in corpus.utterances}
    return sum(plain[speaker] >= 2 for speaker in speakers) >= 0.8 * len(speakers)


def _why_sites_are_not_used(kept: Sequence[Utterance]) -> str:
    """Returns why stated sites cannot be the study's; "none" where none is stated, "" where they can."""
    missing = sum(item.site is None for item in kept)
    if missing == len(kept):
        return "none"
    if missing:
        return f"{missing:,} recordings state no site. Fill the column `site` for all"
    if len({item.site for item in kept}) < 2:
        return "all state the same one. A federation needs two"
    for what in ("speaker", "patient"):
        homes: dict[str, set[str | None]] = defaultdict(set)
        for item in kept:
            homes[getattr(item, what)].add(item.site)
        if n_torn := sum(len(places) > 1 for places in homes.values()):
            return f"{n_torn:,} of {len(homes):,} {what}s are at several. One id is one person, who is at one site"
    return ""


def _blocks(kept: Sequence[Utterance]) -> dict[str, str]:
    """Deals speakers as `speaker_blocks` does, two or more patients a site."""
    patients = sorted({item.patient for item in kept})
    names = site_names(max(1, min(6, len(patients) // 2)))
    blocks = np.array_split(np.asarray(patients, dtype=object), len(names))
    home = {patient: name for name, block in zip(names, blocks, strict=True) for patient in block}
    return {item.speaker: home[item.patient] for item in kept}


def _most_folds(homes: dict[str, str]) -> int:
    """Returns the largest number of folds, up to five, in which nobody is missing: each site deals its own speakers."""
    by_site: dict[str, list[str]] = defaultdict(list)
    for speaker, site in homes.items():
        by_site[site].append(speaker)
    for k in range(min(5, len(homes)), 2, -1):
        spec = SpeakerFolds(kind="by_speaker", k=k)
        dealt = {fold for site, own in by_site.items() for fold in fold_of(spec, 0, site, own).values()}
        if len(dealt) == k:
            return k
    return 2


def _remarks(
    corpus: Corpus, classes: Sequence[str], speakers: dict[str, set[str]], enrols: bool, unused: str
) -> Iterator[str]:
    counts = Counter(item.label for item in corpus.utterances)
    for label in sorted(set(counts) - set(classes)):
        yield (
            f"{label} is left out: {_count(counts[label], 'recording')} of {_count(len(speakers[label]), 'speaker')}; "
            f"a class needs {MIN_CLASS_UTTERANCES} of {MIN_CLASS_SPEAKERS}. Record more, or join it to another: "
            "merge, under [labels]."
        )
    if unused not in ("", "none"):
        yield f"The corpus's sites are not used: {unused}. Until then speakers are dealt to sites in blocks."
    if not unused:
        yield STATED
    if not enrols:
        yield (
            f"Too few speakers have two recordings in {' or '.join(Enrolment().emotions)} to be enrolled by: features "
            "are standardised by public figures. With such recordings new voices are heard better."
        )
    own: dict[str, set[str]] = defaultdict(set)
    for item in corpus.utterances:
        if item.label in classes:
            own[item.speaker].add(item.label)
    n_single = sum(len(labels) == 1 for labels in own.values())
    if 2 * n_single >= len(own):
        yield (
            f"{n_single:,} of {_count(len(own), 'speaker')} were recorded in one emotion alone: a model can learn the "
            "voice instead of the emotion. Keep away from normalisation by 'speaker' here, which takes the emotion out."
        )


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
