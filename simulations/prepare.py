"""A simulation's recordings and sites: corpora found or made, features computed once, speakers dealt, sites written.

What a hospital does for itself too is in `common/preparation.py`.

Guarantees:
  - The digest of a corpus that a study pins is held against the whole of it, before anything is dealt.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.common.corpus import Corpus
from sottovoce.common.dataset import SiteData, pool
from sottovoce.common.errors import CorpusError
from sottovoce.common.generative.added import check_rows_apart
from sottovoce.common.groups import unnamed
from sottovoce.common.preparation import (
    Prepared,
    cache_folder,
    check_pinned,
    compute_features,
    open_corpus,
    recordings_of,
    write_site,
)
from sottovoce.common.progress import Note, OnEvent, Step
from sottovoce.common.run_files import CorpusFacts, SiteFacts
from sottovoce.common.study import CorpusSpec, Study, Synthetic
from sottovoce.common.transfer import check_apart
from sottovoce.simulations.cells import POOLED
from sottovoce.simulations.partition import Row, deal


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """A study's recordings, before they are dealt to sites, and what corpora they are of."""

    prepared: Prepared
    corpora: tuple[CorpusFacts, ...]


def prepare(study: Study, data: Mapping[str, Path], *, workers: int, on_event: OnEvent) -> Simulated:
    """Scans the corpora of a study and computes its features, from the cache where they are there.

    Raises:
        CorpusError: a folder is missing, is no corpus, or leaves nothing to learn.
        AudioError: a recording cannot be decoded and the study says to stop.
    """
    corpora = [_open(spec, data, study, workers, on_event) for spec in study.corpora]
    _check_data_names(study, data)
    check_apart(study, corpora)
    check_rows_apart(study, corpora)
    recordings = [item for corpus in corpora for item in recordings_of(study, corpus, on_event)]
    if study.evaluation.groups:
        for line in unnamed(
            study.evaluation.groups, (item.utterance.groups for item in recordings if not item.enrols)
        ):
            on_event(Note(text=f"evaluation.groups: {line}"))
    facts = tuple(
        _corpus_facts(corpus, synthetic=_folder(spec, study, data) is None)
        for spec, corpus in zip(study.corpora, corpora, strict=True)
    )
    prepared = compute_features(study, recordings, cache_folder() / "features", workers, on_event)
    _check_enough(prepared)
    return Simulated(prepared=prepared, corpora=facts)


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
        trains = [bool(dealt.trains[index]) for index in mine]
        cache = cache_folder() / "features"
        sites.append(write_site(study, prepared.part(mine), name, place, cache, trains=trains))
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
    corpus = open_corpus(spec, folder, on_event)
    check_pinned(spec, corpus)
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


def _check_enough(prepared: Prepared) -> None:
    present = {item.label for item in prepared.recordings if not item.enrols}
    speakers = {item.speaker for item in prepared.recordings}
    if len(present) < 2 or len(speakers) < 2:
        raise CorpusError(
            f"Expected recordings of at least two classes and two speakers; came {len(present)} and "
            f"{len(speakers)}. Look at the folder with `sottovoce corpus scan`, and at labels.classes."
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
