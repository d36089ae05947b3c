"""A hospital's own features for a study, computed from its own recordings, beside nobody.

    folder = prepare_site(hospital, study, workers=2, on_event=silent)

A digest that a study pins (`manifest_sha256`) is of a whole public corpus. A hospital holds its own part of it, or
patients who are in no public corpus at all, so it is held against the folder only where the study has one site.

Guarantees:
  - The files are those that the simulation writes for this site from the same recordings, to the byte.
  - Recordings of another site are refused before one of them is decoded; where a manifest states no site, all are
    this hospital's.
  - Features are put in place whole, in one step; a crash leaves the old ones, the new ones, or none.
  - Only a study that lies in the hospital's folder under its own digest is prepared.
  - No copy of a feature is left anywhere else; with a key, none is ever on the disk but sealed.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sottovoce.client.features_at_rest import features_key, forget_opened, seal, working_memory
from sottovoce.client.home import Hospital
from sottovoce.common.corpus import Corpus
from sottovoce.common.errors import CorpusError, DeploymentError, PrivacyError
from sottovoce.common.files import lock_file, synchronise
from sottovoce.common.preparation import (
    Prepared,
    Recording,
    check_pinned,
    compute_features,
    open_corpus,
    recordings_of,
    write_site,
)
from sottovoce.common.pretrained import looking_in
from sottovoce.common.privacy_specs import NoPrivacy
from sottovoce.common.progress import Note, OnEvent, silent
from sottovoce.common.study import CorpusSpec, DirichletLabels, Study, load


def prepare_site(hospital: Hospital, study: Study, *, workers: int = 1, on_event: OnEvent = silent) -> Path:
    """Computes the features of this hospital's recordings for a study; returns where they lie.

    Raises:
        DeploymentError: the study is not one that was offered here, or no folder is set for its corpora.
        CorpusError: a folder is no corpus, holds recordings of another site, or leaves nothing to learn.
        PrivacyError: there are more patients than the study's public bound.
        AudioError: a recording cannot be decoded and the study says to stop.
        WeightsError: weights that the study names are not on this machine.
    """
    _check_offered(hospital, study)
    key = features_key(hospital)
    in_memory = key is not None
    with (
        looking_in(hospital.weights),
        _alone(hospital, study),
        _workplace(hospital, study, in_memory=in_memory) as work,
    ):
        recordings = [item for spec in study.corpora for item in _of(hospital, study, spec, on_event)]
        prepared = compute_features(study, recordings, work / "cache", workers, on_event)
        _check_enough(study, prepared)
        write_site(study, prepared, hospital.site, work / "features", work / "cache")
        shutil.rmtree(work / "cache")
        return _put_in_place(hospital, study, work / "features", key)


def _check_offered(hospital: Hospital, study: Study) -> None:
    digest, file = study.digest(), hospital.study_file(study.digest())
    if not file.exists():
        raise DeploymentError(
            f"Expected a study that was offered to this hospital; {digest[:16]}… is not in {hospital.studies}. "
            "See `sottovoce client offers`."
        )
    if load(file).digest() != digest:
        raise DeploymentError(
            f"{file}: expected the study with the digest that its folder is named by; its text has another. "
            "Remove the folder, and fetch the offer again with `sottovoce client offers`."
        )
    if isinstance(study.federation.partition, DirichletLabels):
        raise DeploymentError(
            "federation.partition: 'dirichlet_labels' drops recordings to simulate unlike sites; hospitals have what "
            "they have. Use 'speaker_blocks' or 'corpus_sites'."
        )


def _of(hospital: Hospital, study: Study, spec: CorpusSpec, on_event: OnEvent) -> Iterator[Recording]:
    folder = hospital.settings.data.get(spec.name)
    if folder is None:
        names = ", ".join(one.name for one in study.corpora)
        if not {one.name for one in study.corpora} & set(hospital.settings.data):
            raise DeploymentError(
                f"hospital.toml: expected [data] with a folder for {names}; it has "
                f'{", ".join(hospital.settings.data) or "none"}. Add: {spec.name} = "DIR"'
            )
        on_event(Note(text=f"{spec.name}: no folder in hospital.toml; this hospital takes part without it"))
        return
    corpus = open_corpus(spec, Path(folder), on_event)
    if study.federation.n_sites == 1:
        check_pinned(spec, corpus)
    _check_site(hospital, corpus)
    yield from recordings_of(study, corpus, on_event)


def _check_site(hospital: Hospital, corpus: Corpus) -> None:
    foreign = [item for item in corpus.utterances if item.site != hospital.site]
    if not foreign or all(item.site is None for item in corpus.utterances):
        return
    without = sum(item.site is None for item in foreign)
    raise CorpusError(
        f"{corpus.name}: expected recordings of {hospital.site!r} alone; of {len(corpus.utterances)}, "
        f"{len(foreign) - without} state another site and {without} none. Nothing was read. "
        f"Give the folder of this hospital's own recordings, or mend the column `site`."
    )


def _check_enough(study: Study, prepared: Prepared) -> None:
    if all(item.enrols for item in prepared.recordings):
        raise CorpusError(
            "Expected recordings of at least one class of the study; came none. "
            "Look at the folder with `sottovoce corpus scan`, and at labels.classes."
        )
    if isinstance(study.privacy, NoPrivacy):
        return
    n_patients = len({item.patient for item in prepared.recordings})
    if n_patients > study.privacy.n_patients_public:
        raise PrivacyError(
            f"privacy.n_patients_public: expected at most {study.privacy.n_patients_public} patients at a site; this "
            "hospital has more. Do not take part, or ask for a study with a larger bound."
        )


@contextmanager
def _alone(hospital: Hospital, study: Study) -> Iterator[None]:
    try:
        with lock_file(hospital.study_folder(study.digest()) / "prepare.lock"):
            yield
    except BlockingIOError:
        raise DeploymentError(
            "Another process prepares this study here. Wait for it, or end it first."
        ) from None


@contextmanager
def _workplace(hospital: Hospital, study: Study, *, in_memory: bool) -> Iterator[Path]:
    """Yields an empty folder, on the disk or in memory, and removes it however this ends."""
    name, disk = f"preparing-{study.digest()[:16]}", hospital.study_folder(study.digest())
    folder = working_memory(hospital, name) if in_memory else disk / name
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise DeploymentError(f"{folder}: cannot be made ({error.strerror}).") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(hospital: Hospital, study: Study, fresh: Path, key: bytes | None) -> Path:
    place = hospital.features(study.digest())
    beside, old = place.with_name("features.new"), place.with_name("features.old")
    for leftover in (beside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    if key is None:
        fresh.rename(beside)
    else:
        seal(fresh, beside, key, site=hospital.site, study=study.digest())
    _synchronise(beside)
    if place.exists():
        place.rename(old)
    beside.rename(place)
    _synchronise(place.parent)
    shutil.rmtree(old, ignore_errors=True)
    forget_opened(hospital, study.digest())
    return place


def _synchronise(folder: Path) -> None:
    """Returns once a folder, and the files that are right in it, are on the disk."""
    for path in (*(item for item in folder.iterdir() if item.is_file()), folder):
        synchronise(path)
