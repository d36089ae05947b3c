"""From a folder of recordings to one site's examples: scan, label, decode, extract, normalise.

    corpus = open_corpus(spec, folder, on_event)
    prepared = compute_features(study, list(recordings_of(study, corpus, on_event)), cache, workers, on_event)
    data = write_site(study, prepared, "site-1", where, cache)

The simulation does this for all sites of a study, and a hospital for itself alone (`client/features.py`).

Guarantees:
  - A site that is prepared alone, from its own recordings under the same relative paths, gets the same files, to
    the byte, as the simulation writes for it.
  - What was left out is counted and named: labels without a class, recordings that cannot be decoded.
  - A study that says `on_bad_recording = "stop"` stops at the first such recording, with its name.
  - Utterance and speaker ids are unique over all corpora of a study.
  - In a private mode nobody's recordings standardise another patient's, not even such as only enrol.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sottovoce.common.audio import printable
from sottovoce.common.corpus import Corpus, Utterance, scan
from sottovoce.common.dataset import Example, SiteData, normalise, stream_shapes
from sottovoce.common.errors import AudioError, CorpusError, PrivacyError
from sottovoce.common.feature_cache import Features, stream_features
from sottovoce.common.privacy_specs import NoPrivacy
from sottovoce.common.progress import Note, OnEvent, Step
from sottovoce.common.run_files import Skipped
from sottovoce.common.study import CorpusSpec, Enrolment, Study
from sottovoce.common.transfer import public_figures

NO_CLASS = -1
MAX_NOTES = 5  # so many skipped recordings are named on the terminal


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One utterance of the study: unique ids, and the index of its class; NO_CLASS where it only enrols its speaker."""

    key: str
    speaker: str
    patient: str
    label: int
    utterance: Utterance

    @property
    def enrols(self) -> bool:
        """Whether features are standardised by it; it is then neither trained on nor scored."""
        return self.label == NO_CLASS


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Recordings that can be learned from. Their features are in the cache, not here.

    `widths` are the columns of each stream, `n_bytes` what all recordings have of it.
    """

    recordings: tuple[Recording, ...]
    widths: Mapping[str, int]
    n_bytes: Mapping[str, int]
    skipped: tuple[Skipped, ...]

    def part(self, indices: Iterable[int]) -> "Prepared":
        """Returns some of the recordings, in the order of `indices`."""
        chosen = tuple(self.recordings[index] for index in indices)
        return Prepared(recordings=chosen, widths=self.widths, n_bytes=self.n_bytes, skipped=self.skipped)


def cache_folder() -> Path:
    """Returns where features of public corpora are kept: $SOTTOVOCE_CACHE, or the user's cache folder."""
    base = os.environ.get("SOTTOVOCE_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sottovoce"


def open_corpus(spec: CorpusSpec, folder: Path, on_event: OnEvent) -> Corpus:
    """Scans a folder and tells of its problems. Raises: CorpusError where it is no corpus."""
    corpus = scan(folder, name=spec.name, adapter=spec.adapter)
    for problem in corpus.problems[:MAX_NOTES]:
        on_event(Note(text=f"{spec.name}: {problem}"))
    if len(corpus.problems) > MAX_NOTES:
        more = len(corpus.problems) - MAX_NOTES
        on_event(Note(text=f"{spec.name}: and {more} more; see `sottovoce corpus scan {folder}`"))
    return corpus


def check_pinned(spec: CorpusSpec, corpus: Corpus) -> None:
    """Holds a whole corpus against the digest that the study pins. Raises: CorpusError where it is another."""
    if spec.manifest_sha256 and corpus.manifest_digest() != spec.manifest_sha256:
        raise CorpusError(
            f"corpora.{spec.name}: expected the corpus with manifest_sha256 = {spec.manifest_sha256[:16]}…; the "
            f"folder holds {corpus.manifest_digest()[:16]}…: files are missing, added or renamed. "
            "Use the corpus that the study was written for."
        )


def recordings_of(study: Study, corpus: Corpus, on_event: OnEvent) -> Iterator[Recording]:
    """Yields the recordings whose label is, or becomes, a class of the study; tells how many are left out.

    Raises:
        PrivacyError: two patients share a speaker id, where speakers are standardised and patients are protected.
    """
    _check_people(study, corpus)
    prefix = f"{corpus.name}:" if len(study.corpora) > 1 else ""
    left_out: Counter[str] = Counter()
    enrolling = _enrolling(study, corpus)
    for item in corpus.utterances:
        name = study.labels.merge.get(item.label, item.label)
        if name in study.labels.classes or item.key in enrolling:
            yield Recording(
                key=prefix + item.key,
                speaker=prefix + item.speaker,
                patient=prefix + item.patient,
                label=NO_CLASS if item.key in enrolling else study.labels.classes.index(name),
                utterance=item,
            )
        else:
            left_out[item.label] += 1
    if study.normalisation.enrols is not None:
        on_event(Note(text=_enrolled(study.normalisation.enrols, corpus, enrolling)))
    if left_out:
        counts = ", ".join(f"{label} {count:,}" for label, count in sorted(left_out.items()))
        on_event(Note(text=f"{corpus.name}: left out, no class in this study: {counts}"))


def _check_people(study: Study, corpus: Corpus) -> None:
    """Here, of everything in the folder: a patient whose recordings only enrol is not among a site's examples later."""
    if isinstance(study.privacy, NoPrivacy) or not study.normalisation.by_person:
        return
    people = {(item.speaker, item.patient) for item in corpus.utterances}
    if len(people) > len({speaker for speaker, _ in people}):
        raise PrivacyError(
            f"{corpus.name}: expected each speaker to be one patient, because features are standardised by speaker; "
            "two patients share a speaker id. Mend the manifest, or take another normalisation."
        )


def _enrolling(study: Study, corpus: Corpus) -> frozenset[str]:
    """Returns the keys that enrol their speakers. The rule looks at one speaker alone: who else is there is nothing."""
    rule = study.normalisation.enrols
    if rule is None:
        return frozenset()
    keys: dict[tuple[str, str], list[str]] = {}
    for item in corpus.utterances:  # sorted by key
        keys.setdefault((item.speaker, item.label), []).append(item.key)
    chosen: set[str] = set()
    for speaker in {item.speaker for item in corpus.utterances}:
        mine: list[str] = []
        for emotion in rule.emotions:
            own = keys.get((speaker, emotion), [])
            taught = study.labels.merge.get(emotion, emotion) in study.labels.classes
            mine += own[: len(own) // 2] if taught else own
        chosen.update(mine[: rule.clips])
    return frozenset(chosen)


def _enrolled(rule: Enrolment, corpus: Corpus, enrolling: frozenset[str]) -> str:
    count = Counter(item.speaker for item in corpus.utterances if item.key in enrolling)
    speakers = {item.speaker for item in corpus.utterances}
    text = f"{corpus.name}: {len(enrolling):,} recordings enrol {len(count):,} of {len(speakers):,} speakers"
    fewer = sum(count[speaker] < rule.clips for speaker in speakers)
    if not fewer:
        return text
    wanted = f"{rule.clips} in {' or '.join(rule.emotions)}"
    if not count:
        return (
            f"{corpus.name}: no speaker has recordings in {' or '.join(rule.emotions)} to be enrolled by: all are "
            "standardised by the study's public figures. Name other emotions in normalisation.enrolment, or take the "
            "scheme 'constants'"
        )
    return f"{text}; {fewer:,} have fewer than {wanted}: public figures count for more"


def compute_features(
    study: Study, recordings: Sequence[Recording], cache: Path, workers: int, on_event: OnEvent
) -> Prepared:
    """Fills the cache, and finds out which recordings are good.

    Raises:
        AudioError: a recording cannot be decoded and the study says to stop.
    """
    kept: list[Recording] = []
    skipped: list[Skipped] = []
    widths: dict[str, int] = {}
    n_bytes: Counter[str] = Counter()
    for number, (item, found) in enumerate(_stream(study, recordings, cache, workers), start=1):
        on_event(Step(stage="features", done=number, total=len(recordings)))
        if isinstance(found, AudioError):
            if study.audio.on_bad_recording == "stop":
                raise found
            skipped.append(_skipped(item, found))
        else:
            kept.append(item)
            widths = {name: int(array.shape[-1]) for name, array in found.items()}
            n_bytes.update({name: array.nbytes for name, array in found.items()})
    for copy in range(1, study.training.augmentation.copies + 1):
        for number, _ in enumerate(_stream(study, kept, cache, workers, copy), start=1):
            on_event(Step(stage=f"copy {copy}", done=number, total=len(kept)))
    for entry in skipped[:MAX_NOTES]:
        on_event(Note(text=f"skipped: {entry.recording}: {entry.reason}"))
    if len(skipped) > MAX_NOTES:
        on_event(Note(text=f"skipped: {len(skipped)} recordings in all"))
    return Prepared(recordings=tuple(kept), widths=widths, n_bytes=n_bytes, skipped=tuple(skipped))


def write_site(
    study: Study,
    prepared: Prepared,
    site: str,
    folder: Path,
    cache: Path,
    *,
    trains: Sequence[bool] | None = None,
) -> SiteData:
    """Writes one site's recordings, normalised, to a new folder; `trains` is what a simulated skew leaves.

    Raises:
        AudioError: a recording that was good a moment ago no longer is.
        WeightsError: the study takes figures from an initial file that is not here, or that does not fit.
    """
    figures, maps = public_figures(study)
    raw = folder.with_name(folder.name + ".raw")
    shutil.rmtree(raw, ignore_errors=True)  # of an attempt that was killed
    data = normalise(
        write_as_computed(study, prepared, site, raw, cache, trains=trains), figures, folder, maps=maps
    )
    shutil.rmtree(raw)
    return data


def write_as_computed(
    study: Study,
    prepared: Prepared,
    site: str,
    folder: Path,
    cache: Path,
    *,
    trains: Sequence[bool] | None = None,
) -> SiteData:
    """Writes one site's recordings as they are before normalisation, those that enrol a speaker among them.

    Raises:
        AudioError: a recording that was good a moment ago no longer is.
    """
    shapes = stream_shapes(study.streams, prepared.widths, study.audio, study.frames)
    marks = [True] * len(prepared.recordings) if trains is None else trains
    examples = (
        _example(item, features, copy, trains=bool(mark))
        for copy in range(study.training.augmentation.copies + 1)
        for mark, (item, features) in zip(marks, _good(study, prepared, cache, copy), strict=True)
    )
    return SiteData.write(folder, site=site, shapes=shapes, examples=examples)


def _stream(
    study: Study, recordings: Sequence[Recording], cache: Path, workers: int, copy: int = 0
) -> Iterator[tuple[Recording, Features | AudioError]]:
    utterances = [item.utterance for item in recordings]
    found = stream_features(utterances, study, cache, workers=workers, copy=copy)
    return zip(recordings, found, strict=True)


def _skipped(item: Recording, error: AudioError) -> Skipped:
    place = f"{printable(item.utterance.path)}: "  # where files lie here is nobody's business elsewhere
    return Skipped(recording=item.key, reason=str(error).removeprefix(place))


def _good(study: Study, prepared: Prepared, cache: Path, copy: int) -> Iterator[tuple[Recording, Features]]:
    """Yields features from the cache. A recording that was good and no longer is has changed under us."""
    for item, features in _stream(study, prepared.recordings, cache, 1, copy):
        if isinstance(features, AudioError):
            raise features
        yield item, features


def _example(item: Recording, features: Features, copy: int, *, trains: bool) -> Example:
    return Example(
        key=item.key,
        label=item.label,
        speaker=item.speaker,
        patient=item.patient,
        groups=item.utterance.groups,
        features=features,
        copy=copy,
        trains=trains and not item.enrols,
        enrols=item.enrols,
    )
