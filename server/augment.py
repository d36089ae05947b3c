"""Rows that nobody said, from a public corpus: `sottovoce server augment`.

    path, digest = augment(study, {"voices": folder}, out=Path("weights"), plan=Plan())

The study is the one that will use the rows: its streams, its normalisation, its classes. Its model has to read one
stream: a pooled one gets rows of a GAN or of Gaussians, a sequence (log-mel) gets patches.

Guarantees:
  - Only recordings of the public corpora are read. The same recordings, study and plan give the same bytes (one
    machine, one thread).
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from sottovoce.common.dataset import SiteData
from sottovoce.common.errors import CorpusError, RunError
from sottovoce.common.generative import synthetic
from sottovoce.common.generative.added import MANIFESTS, SEEN, seen_by_models
from sottovoce.common.generative.gan import GanSpec, train_gan
from sottovoce.common.generative.gaussians import fit_gaussians
from sottovoce.common.generative.networks import Labels, Rows, each_class, sample
from sottovoce.common.generative.patches import cut, train_patches
from sottovoce.common.model_specs import streams_read
from sottovoce.common.preparation import (
    cache_folder,
    compute_features,
    open_corpus,
    recordings_of,
    write_site,
)
from sottovoce.common.progress import OnEvent, silent
from sottovoce.common.study import Augmentation, CorpusSpec, Study

Method = Literal["gan", "gaussians"]
SITE = "public"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to make of it: so many rows of each class, by this method."""

    method: Method = "gan"
    per_class: int = 200
    gan: GanSpec = field(default_factory=GanSpec)
    seed: int = 0


def augment(
    study: Study,
    sources: Mapping[str, Path],
    *,
    out: Path,
    plan: Plan,
    workers: int = 1,
    on_event: OnEvent = silent,
) -> tuple[Path, str]:
    """Makes rows from public recordings; returns the file in `out` and its SHA-256.

    Raises:
        CorpusError, AudioError: a folder is no corpus, or leaves nothing to learn.
        RunError: the study's model reads more than one stream.
    """
    stream, digests = _stream_of(study), []
    specs = tuple(_spec(study, name) for name in sorted(sources))
    plain = replace(study, corpora=specs, training=replace(study.training, augmentation=Augmentation()))
    recordings = []
    for spec in specs:
        corpus = open_corpus(spec, sources[spec.name], on_event)
        digests.append((spec.name, corpus.manifest_digest()))
        recordings += list(recordings_of(plain, corpus, on_event))
    cache = cache_folder() / "features"
    prepared = compute_features(plain, recordings, cache, workers, on_event)
    if not prepared.recordings:
        raise CorpusError("--data: expected recordings of at least one class of the study; came none.")
    with tempfile.TemporaryDirectory(prefix="sottovoce-augment-") as folder:
        data = write_site(plain, prepared, SITE, Path(folder) / SITE, cache)
        facts = {
            "corpora": "; ".join(f"{name} (manifest {digest[:16]}…)" for name, digest in digests),
            MANIFESTS: " ".join(digest for _, digest in digests),
            "method": plan.method,
            SEEN: seen_by_models(study, stream),
            "seed": str(plan.seed),
        }
        return synthetic.write(out, rows_from(plain, data, plan, facts))


def rows_from(study: Study, data: SiteData, plan: Plan, facts: Mapping[str, str]) -> synthetic.SyntheticRows:
    """Makes rows from public examples.

    Raises:
        RunError: the study's model reads several streams, or the method has no rows for its stream.
        CorpusError: a class has no examples.
    """
    name, n_classes = _stream_of(study), len(study.labels.classes)
    labels = each_class(n_classes, plan.per_class)
    return synthetic.SyntheticRows(
        streams={name: _made(data, name, labels, plan, n_classes)},
        labels=labels,
        classes=study.labels.classes,
        facts=facts,
    )


def _stream_of(study: Study) -> str:
    names = sorted(streams_read(study.model))
    if len(names) != 1:
        raise RunError(
            f"Expected a model that reads one stream; {study.model.kind!r} reads {', '.join(names)}, and rows of "
            "several would not belong together. Take a model of one."
        )
    return names[0]


def _made(data: SiteData, name: str, labels: Labels, plan: Plan, n_classes: int) -> Rows:
    if data.shapes[name].n_frames is None:
        rows, truth = data.pooled(name), data.labels
    else:
        rows, truth = cut(data, name, seed=plan.seed)
    absent = set(range(n_classes)) - set(truth.tolist())
    if absent:
        raise CorpusError(
            f"--data: expected recordings of every class; of {len(absent)} of {n_classes} there are none."
        )
    if data.shapes[name].n_frames is not None:
        if plan.method != "gan":
            raise RunError(
                f"Expected a pooled stream for {plan.method!r}; {name!r} is a sequence. Take 'gan'."
            )
        patches = train_patches(rows, truth, plan.gan, n_classes=n_classes, seed=plan.seed)
        return sample(patches, labels, seed=plan.seed)
    if plan.method == "gaussians":
        return fit_gaussians(rows, truth, n_classes=n_classes).sample(labels, seed=plan.seed)
    generator = train_gan(rows, truth, plan.gan, n_classes=n_classes, seed=plan.seed)
    return sample(generator, labels, seed=plan.seed)


def _spec(study: Study, name: str) -> CorpusSpec:
    found = next((spec for spec in study.corpora if spec.name == name), None)
    # A public corpus need not be one of the study's: then its adapter is recognised, and it has no pinned digest.
    return replace(found, manifest_sha256=None) if found else CorpusSpec(name=name)
