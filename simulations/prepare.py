"""From folders of recordings to the sites of a simulation: scan, label, decode, extract, deal, normalise.

Guarantees:
  - What was left out is counted and named: labels without a class, recordings that cannot be decoded.
  - A study that says `on_bad_recording = "stop"` stops at the first such recording, with its name.
  - Utterance and speaker ids are unique over all corpora of a study.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.common.audio import printable
from sottovoce.common.corpus import Corpus, Utterance, scan
from sottovoce.common.dataset import Example, SiteData, clip_frames, normalise, pool, stream_shapes
from sottovoce.common.errors import AudioError, CorpusError
from sottovoce.common.feature_cache import Features, stream_features
from sottovoce.common.progress import Note, OnEvent, Step
from sottovoce.common.run_files import CorpusFacts, SiteFacts, Skipped
from sottovoce.common.study import CorpusSpec, Study, Synthetic
from sottovoce.simulations.cells import POOLED
from sottovoce.simulations.partition import Row, deal

MAX_NOTES = 5  # so many skipped recordings are named on the terminal; run.json names all


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One utterance of the study: unique ids, and the index of its class."""

    key: str
    speaker: str
    patient: str
    label: int
    utterance: Utterance


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A study's recordings, before they are dealt to sites. Their features are in the cache, not here.

    `widths` are the columns of each stream, `n_bytes` what all recordings have of it.
    """

    recordings: tuple[Recording, ...]
    widths: Mapping[str, int]
    n_bytes: Mapping[str, int]
    corpora: tuple[CorpusFacts, ...]
    skipped: tuple[Skipped, ...]


def cache_folder() -> Path:
    """Returns where features and synthetic corpora are kept: $SOTTOVOCE_CACHE, or the user's cache folder."""
    base = os.environ.get("SOTTOVOCE_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sottovoce"


def prepare(study: Study, data: Mapping[str, Path], *, workers: int, on_event: OnEvent) -> Prepared:
    """Scans the corpora of a study and computes its features, from the cache where they are there.

    Raises:
        CorpusError: a folder is missing, is no corpus, or leaves nothing to learn.
        AudioError: a recording cannot be decoded and the study says to stop.
    """
    corpora = [_open(spec, data, study, workers, on_event) for spec in study.corpora]
    _check_data_names(study, data)
    recordings = [item for corpus in corpora for item in _recordings(study, corpus, on_event)]
    facts = tuple(
        _corpus_facts(corpus, synthetic=_folder(spec, study, data) is None)
        for spec, corpus in zip(study.corpora, corpora, strict=True)
    )
    prepared = _compute_features(study, recordings, facts, workers, on_event)
    _check_enough(study, prepared)
    return prepared


def lay_out(study: Study, prepared: Prepared, folder: Path, on_event: OnEvent) -> tuple[SiteFacts, ...]:
    """Deals recordings to sites, normalises at each, and writes `folder`/sites/NUMBER and `folder`/pooled."""
    rows = [
        Row(speaker=item.speaker, patient=item.patient, label=item.label, site=item.utterance.site)
        for item in prepared.recordings
    ]
    dealt = deal(study.federation, rows)
    shutil.rmtree(folder, ignore_errors=True)
    names = sorted(set(dealt.sites))
    sites = []
    for number, name in enumerate(names, start=1):
        on_event(Step(stage="sites", done=number, total=len(names)))
        mine = [index for index, site in enumerate(dealt.sites) if site == name]
        # Folders are numbered: a site's name comes from a manifest, and may be no name for a file.
        place = folder / "sites" / f"{number:05d}"
        sites.append(_write_site(study, prepared, name, mine, dealt.trains, place))
    pool(folder / POOLED, site=POOLED, parts=sites)
    return tuple(_site_facts(study, part) for part in sites)


def synthesize_into(spec: Synthetic, out: Path, *, workers: int, on_event: OnEvent) -> Path:
    """Makes the embedded corpus in `out`, or finds it there."""
    from sottovoce.simulations.voices import synthesize

    def tell(done: int, total: int) -> None:
        on_event(Step(stage="voices", done=done, total=total))

    return synthesize(spec, out, workers=workers, progress=tell)


def describe_features(study: Study, prepared: Prepared) -> dict[str, Any]:
    """Returns what `sottovoce features` prints."""
    streams = [
        {
            "stream": stream.name,
            "parts": [part.kind for part in stream.parts],
            "pooling": stream.pooling,
            "columns": prepared.widths[stream.name],
            "mebibytes": prepared.n_bytes[stream.name] / 2**20,
        }
        for stream in study.streams
    ]
    return {
        "study": study.name,
        "recordings": len(prepared.recordings),
        "skipped": len(prepared.skipped),
        "cache": str(cache_folder() / "features"),
        "streams": streams,
    }


def _open(
    spec: CorpusSpec, data: Mapping[str, Path], study: Study, workers: int, on_event: OnEvent
) -> Corpus:
    folder = _folder(spec, study, data)
    if folder is None and spec.synthetic is not None:
        from sottovoce.simulations.voices.corpus import corpus_digest

        # The generator's own digest: a later version of it makes its corpus beside this one.
        key = f"voices-{corpus_digest(spec.synthetic)[:16]}"
        folder = synthesize_into(
            spec.synthetic, cache_folder() / "voices" / key, workers=workers, on_event=on_event
        )
    if folder is None:
        raise CorpusError(f"corpora: expected a folder for {spec.name!r}. Give it: --data {spec.name}=DIR")
    corpus = scan(folder, name=spec.name, adapter=spec.adapter)
    for problem in corpus.problems[:MAX_NOTES]:
        on_event(Note(text=f"{spec.name}: {problem}"))
    if len(corpus.problems) > MAX_NOTES:
        more = len(corpus.problems) - MAX_NOTES
        on_event(Note(text=f"{spec.name}: and {more} more; see `sottovoce corpus scan {folder}`"))
    if spec.manifest_sha256 and corpus.manifest_digest() != spec.manifest_sha256:
        raise CorpusError(
            f"corpora.{spec.name}: expected the corpus with manifest_sha256 = {spec.manifest_sha256[:16]}…; the "
            f"folder holds {corpus.manifest_digest()[:16]}…: files are missing, added or renamed. "
            "Use the corpus that the study was written for."
        )
    return corpus


def _folder(spec: CorpusSpec, study: Study, data: Mapping[str, Path]) -> Path | None:
    return data.get(spec.name) or (data.get("") if len(study.corpora) == 1 else None)


def _check_data_names(study: Study, data: Mapping[str, Path]) -> None:
    names = {spec.name for spec in study.corpora}
    unknown = sorted(set(data) - names - ({""} if len(names) == 1 else set()))
    if unknown:
        shown = ", ".join(name or "a folder without a name" for name in unknown)
        raise CorpusError(
            f"--data: expected NAME=DIR with NAME one of {', '.join(sorted(names))}; came {shown}."
        )


def _recordings(study: Study, corpus: Corpus, on_event: OnEvent) -> Iterator[Recording]:
    prefix = f"{corpus.name}:" if len(study.corpora) > 1 else ""
    left_out: Counter[str] = Counter()
    for item in corpus.utterances:
        name = study.labels.merge.get(item.label, item.label)
        if name in study.labels.classes:
            yield Recording(
                key=prefix + item.key,
                speaker=prefix + item.speaker,
                patient=prefix + item.patient,
                label=study.labels.classes.index(name),
                utterance=item,
            )
        else:
            left_out[item.label] += 1
    if left_out:
        counts = ", ".join(f"{label} {count:,}" for label, count in sorted(left_out.items()))
        on_event(Note(text=f"{corpus.name}: left out, no class in this study: {counts}"))


def _compute_features(
    study: Study,
    recordings: Sequence[Recording],
    corpora: tuple[CorpusFacts, ...],
    workers: int,
    on_event: OnEvent,
) -> Prepared:
    """Fills the cache, and finds out which recordings are good."""
    kept: list[Recording] = []
    skipped: list[Skipped] = []
    widths: dict[str, int] = {}
    n_bytes: Counter[str] = Counter()
    for number, (item, found) in enumerate(_stream(study, recordings, workers), start=1):
        on_event(Step(stage="features", done=number, total=len(recordings)))
        if isinstance(found, AudioError):
            if study.audio.on_bad_recording == "stop":
                raise found
            place = (
                f"{printable(item.utterance.path)}: "  # where files lie here is nobody's business elsewhere
            )
            skipped.append(Skipped(recording=item.key, reason=str(found).removeprefix(place)))
        else:
            kept.append(item)
            widths = {name: int(array.shape[-1]) for name, array in found.items()}
            n_bytes.update({name: array.nbytes for name, array in found.items()})
    for copy in range(1, study.training.augmentation.copies + 1):
        for number, _ in enumerate(_stream(study, kept, workers, copy), start=1):
            on_event(Step(stage=f"copy {copy}", done=number, total=len(kept)))
    for entry in skipped[:MAX_NOTES]:
        on_event(Note(text=f"skipped: {entry.recording}: {entry.reason}"))
    if len(skipped) > MAX_NOTES:
        on_event(Note(text=f"skipped: {len(skipped)} recordings in all; run.json names them"))
    return Prepared(
        recordings=tuple(kept), widths=widths, n_bytes=n_bytes, corpora=corpora, skipped=tuple(skipped)
    )


def _stream(
    study: Study, recordings: Sequence[Recording], workers: int, copy: int = 0
) -> Iterator[tuple[Recording, Features | AudioError]]:
    utterances = [item.utterance for item in recordings]
    found = stream_features(utterances, study, cache_folder() / "features", workers=workers, copy=copy)
    return zip(recordings, found, strict=True)


def _check_enough(study: Study, prepared: Prepared) -> None:
    present = {item.label for item in prepared.recordings}
    speakers = {item.speaker for item in prepared.recordings}
    if len(present) < 2 or len(speakers) < 2:
        raise CorpusError(
            f"Expected recordings of at least two classes and two speakers; came {len(present)} and "
            f"{len(speakers)}. Look at the folder with `sottovoce corpus scan`, and at labels.classes."
        )


def _write_site(
    study: Study,
    prepared: Prepared,
    name: str,
    mine: Sequence[int],
    trains: npt.NDArray[np.bool_],
    place: Path,
) -> SiteData:
    shapes = stream_shapes(study.streams, prepared.widths, clip_frames(study.audio, study.frames))
    examples = (
        _example(prepared.recordings[index], found, copy, trains=bool(trains[index]))
        for copy in range(study.training.augmentation.copies + 1)
        for index, found in _good(study, [(index, prepared.recordings[index]) for index in mine], copy)
    )
    raw = place.parent.parent / "raw"
    data = normalise(
        SiteData.write(raw, site=name, shapes=shapes, examples=examples), study.normalisation, place
    )
    shutil.rmtree(raw)
    return data


def _good(
    study: Study, numbered: Sequence[tuple[int, Recording]], copy: int
) -> Iterator[tuple[int, Features]]:
    """Yields features from the cache. A recording that was good and no longer is has changed under us."""
    found = _stream(study, [item for _, item in numbered], 1, copy)
    for (index, _), (_, features) in zip(numbered, found, strict=True):
        if isinstance(features, AudioError):
            raise features
        yield index, features


def _example(item: Recording, features: Features, copy: int, *, trains: bool) -> Example:
    return Example(
        key=item.key,
        label=item.label,
        speaker=item.speaker,
        patient=item.patient,
        groups=item.utterance.groups,
        features=features,
        copy=copy,
        trains=trains,
    )


def _corpus_facts(corpus: Corpus, *, synthetic: bool) -> CorpusFacts:
    return CorpusFacts(
        name=corpus.name,
        adapter=corpus.adapter,
        n_utterances=len(corpus.utterances),
        n_speakers=len({item.speaker for item in corpus.utterances}),
        manifest_sha256=corpus.manifest_digest(),
        losses=corpus.losses,
        synthetic=synthetic,
    )


def _site_facts(study: Study, data: SiteData) -> SiteFacts:
    originals = data.originals()
    counts = np.bincount(originals.labels, minlength=len(study.labels.classes)).tolist()
    return SiteFacts(
        site=data.site,
        n_speakers=len(set(originals.speakers)),
        n_utterances=len(originals),
        labels=dict(zip(study.labels.classes, counts, strict=True)),
    )
