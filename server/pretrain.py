"""From a public corpus to a signed initial file: figures, a reduction of features, weights to start from.

    made = pretrain(study, {"voices": folder}, key=key, out=Path("voices.initial.safetensors"), plan=Plan())

The study is the one that will use the file: its streams, its normalisation, its model, its training. What it takes from
an initial file already is left aside; corpora are those that `sources` gives folders for.

Guarantees:
  - Only recordings of the public corpora are read, all speakers of them.
  - Figures are of features as they are computed, before any normalisation. A reduction is fitted on features that are
    standardised as the study does it, by these figures where the study has none of its own. Weights are trained on
    features that are standardised and reduced.
  - The same recordings, study, plan and seed give the same tensors, to the bit (one machine, one thread).
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from sottovoce.common import initial as initials
from sottovoce.common import reduction
from sottovoce.common.corpus import Corpus
from sottovoce.common.dataset import SiteData, figures_of, normalise
from sottovoce.common.errors import CorpusError, RunError
from sottovoce.common.initial import Initial, PublicCorpus, Statement
from sottovoce.common.keys import SigningKey
from sottovoce.common.model_specs import streams_read
from sottovoce.common.preparation import (
    Recording,
    cache_folder,
    compute_features,
    open_corpus,
    recordings_of,
    write_as_computed,
)
from sottovoce.common.progress import OnEvent, silent
from sottovoce.common.provenance import now, versions
from sottovoce.common.study import Augmentation, CorpusSpec, Normalisation, Study
from sottovoce.common.transfer import feature_digests
from sottovoce.server.pretraining import NO_SEQUENCE, masked_frames, supervised

SITE = "public"

Method = Literal["statistics", "supervised", "masked_frames"]
Figures = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to make. `columns` is how many a reduction keeps of each stream that the model reads; None: no reduction.

    `n_epochs` is how long to train: as long as the study's rounds and local epochs together, where nothing is said.
    """

    method: Method = "supervised"
    columns: int | None = None
    reduction_by: reduction.By = "pca"
    n_epochs: int | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a public corpus taught; arrays by stream, weights by tensor."""

    mean: Mapping[str, Figures]
    deviation: Mapping[str, Figures]
    reduction: Mapping[str, Figures]
    weights: Mapping[str, npt.NDArray[np.float32]]
    n_epochs: int


def pretrain(
    study: Study,
    sources: Mapping[str, Path],
    *,
    key: SigningKey,
    out: Path,
    signed_by: str,
    plan: Plan,
    workers: int = 1,
    device: str = "cpu",
    on_event: OnEvent = silent,
) -> Initial:
    """Learns from public recordings and writes the signed file.

    Raises:
        CorpusError, AudioError: a folder is no corpus, or leaves nothing to learn.
        RunError: the study's model cannot be trained in this way.
        WeightsError: the file cannot be written.
    """
    plain = bare(study)
    _check_teachable(study, plan)
    corpora = [open_corpus(_spec(plain, name), folder, on_event) for name, folder in sorted(sources.items())]
    many = replace(plain, corpora=tuple(_spec(plain, name) for name in sorted(sources)))
    recordings = [item for corpus in corpora for item in recordings_of(many, corpus, on_event)]
    with tempfile.TemporaryDirectory(prefix="sottovoce-pretrain-") as folder:
        raw = _raw(many, recordings, Path(folder), workers, on_event)
        learned = learn(study, raw, Path(folder), plan, device=device, on_event=on_event)
    statement = Statement(
        signed_by=signed_by,
        corpora=tuple(_facts(corpus) for corpus in corpora),
        study=plain.digest(),
        study_name=plain.name,
        features=feature_digests(plain),
        normalisation=plain.normalisation.scheme,
        classes=plain.labels.classes,
        method=plan.method,
        reduction_by=plan.reduction_by if plan.columns else "none",
        n_epochs=learned.n_epochs,
        seed=plan.seed,
        made=now(),
        versions=versions(),
    )
    return initials.save(
        out,
        statement,
        key,
        weights=learned.weights,
        mean=learned.mean,
        deviation=learned.deviation,
        reduction=learned.reduction,
    )


def named_sources(said: Sequence[str]) -> dict[str, Path]:
    """Returns folders by corpus name, from NAME=DIR, or from DIR alone, which gives its own name.

    The name is what hospitals will read. A corpus of the study is read by the study's adapter; of any other it is
    recognised.

    Raises:
        CorpusError: a folder has no name, or a name is there twice.
    """
    found: dict[str, Path] = {}
    for text in said:
        name, equals, folder = text.partition("=")
        if not equals or "/" in name:  # a path may hold the sign
            name, folder = Path(text).resolve().name, text
        if not name.isprintable() or not 1 <= len(name) <= 60 or name in found:
            raise CorpusError(
                f"--data: expected NAME=DIR, each name once and of at most 60 characters; came {text!r}."
            )
        found[name] = Path(folder)
    return found


def lines_for_study(made: Initial, study: Study) -> str:
    """Returns what a study file says to use the result: all of it; each part may be left out."""
    lines = [f'initial_signed_by = "{made.public_key}" # above the first table']
    if study.normalisation.scheme != "utterance":
        lines += ["[normalisation] # instead of mean and deviation", f'from_initial = "{made.sha256}"']
    for stream, public_map in made.reduction.items():
        columns = public_map.shape[1]
        lines += [
            f"[[streams]] # {stream}",
            f'reduction = {{ sha256 = "{made.sha256}", columns = {columns} }}',
        ]
    if made.weights:
        lines += [
            "[transfer]",
            'kind = "model" # or "feature", "parameter"',
            f'initial_sha256 = "{made.sha256}"',
        ]
    return "\n".join(lines)


def bare(study: Study) -> Study:
    """Returns the study without what it takes from an initial file."""
    return replace(
        study,
        streams=tuple(replace(stream, reduction=None) for stream in study.streams),
        normalisation=replace(study.normalisation, from_initial=None),
        transfer=None,
        initial_signed_by=None,
    )


def learn(
    study: Study, raw: SiteData, work: Path, plan: Plan, *, device: str = "cpu", on_event: OnEvent = silent
) -> Learned:
    """Learns from features as they were computed; `work` is a folder for what lies in between.

    Raises:
        CorpusError: the recordings do not span so many directions, or there are none of a class to learn from.
    """
    figures = {name: figures_of(raw, name) for name in raw.shapes}
    mean, deviation = ({name: both[i] for name, both in figures.items()} for i in (0, 1))
    spec = _with_figures(study.normalisation, mean, deviation)
    even = normalise(raw, spec, work / "normalised")
    maps = {
        name: reduction.fit(even, name, by=plan.reduction_by, columns=plan.columns)
        for name in sorted(streams_read(study.model))
        if plan.columns
    }
    data = normalise(raw, spec, work / "reduced", maps=maps) if maps else even
    n_epochs = plan.n_epochs or study.federation.rounds * study.training.local_epochs
    match plan.method:
        case "statistics":
            weights, n_epochs = {}, 0
        case "supervised":
            weights = supervised(study, data, n_epochs=n_epochs, seed=plan.seed, device=device, tell=on_event)
        case "masked_frames":
            weights = masked_frames(
                study, data, n_epochs=n_epochs, seed=plan.seed, device=device, tell=on_event
            )
    return Learned(mean=mean, deviation=deviation, reduction=maps, weights=weights, n_epochs=n_epochs)


def _check_teachable(study: Study, plan: Plan) -> None:
    """Before a recording is read: what is refused for the study alone need not wait for features."""
    if plan.method == "statistics":
        return
    if study.model.kind in ("discriminator", "moments"):
        raise RunError(
            f"--method {plan.method}: expected a model that classifies; {study.model.kind!r} is one that makes rows."
        )
    read = streams_read(study.model)
    if plan.method == "masked_frames" and not any(
        stream.name in read and stream.pooling == "none" for stream in study.streams
    ):
        raise RunError(NO_SEQUENCE.format(kind=study.model.kind))


def _with_figures(
    spec: Normalisation, mean: Mapping[str, Figures], deviation: Mapping[str, Figures]
) -> Normalisation:
    """Returns the study's normalisation, with these figures where it has none: as the study will standardise.

    By speaker it has use for them only where it says `from_initial`.
    """
    if spec.mean or spec.deviation or spec.scheme == "utterance":
        return spec
    if spec.scheme == "speaker" and spec.from_initial is None:
        return spec
    plain = {name: tuple(values.tolist()) for name, values in mean.items()}
    widths = {name: tuple(values.tolist()) for name, values in deviation.items()}
    return replace(spec, from_initial=None, mean=plain, deviation=widths)


def _raw(study: Study, recordings: list[Recording], work: Path, workers: int, on_event: OnEvent) -> SiteData:
    """Writes features as they are computed. Those that enrol their speaker are among them, and marked."""
    as_they_are = replace(
        study,
        normalisation=Normalisation(scheme="constants"),
        training=replace(study.training, augmentation=Augmentation()),
    )
    cache = cache_folder() / "features"
    prepared = compute_features(as_they_are, recordings, cache, workers, on_event)
    if not prepared.recordings:
        raise CorpusError("--data: expected recordings of at least one class of the study; came none.")
    return write_as_computed(as_they_are, prepared, SITE, work / "raw", cache)


def _spec(study: Study, name: str) -> CorpusSpec:
    found = next((spec for spec in study.corpora if spec.name == name), None)
    # A public corpus need not be one of the study's: then its adapter is recognised, and it has no pinned digest.
    return replace(found, manifest_sha256=None) if found else CorpusSpec(name=name)


def _facts(corpus: Corpus) -> PublicCorpus:
    return PublicCorpus(
        name=corpus.name,
        adapter=corpus.adapter,
        manifest_sha256=corpus.manifest_digest(),
        n_recordings=len(corpus.utterances),
        n_speakers=len({item.speaker for item in corpus.utterances}),
    )
