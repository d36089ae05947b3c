"""Public rows beside a site's own, where the study says so: `training.synthetic`. Mode `none` only.

Guarantees:
  - Rows that were made of other features, or standardised in another way, are refused: they would teach what no
    recording looks like.
  - A site's own examples stay as they are, and first; made rows follow, class after class, never scored: they are
    added to what is trained on, after the split.
  - With `fill = "rarer"` no class gets more rows than it lacks against the site's commonest one.
"""

import hashlib
from collections.abc import Collection
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from sottovoce.common import pretrained
from sottovoce.common.config import canonical
from sottovoce.common.corpus import Corpus
from sottovoce.common.dataset import Array, SiteData
from sottovoce.common.errors import CorpusError, WeightsError
from sottovoce.common.generative import synthetic
from sottovoce.common.generative.networks import Labels
from sottovoce.common.generative_specs import SyntheticRows
from sottovoce.common.model_specs import streams_read
from sottovoce.common.run_files import AddedRows
from sottovoce.common.study import Study
from sottovoce.common.transfer import feature_digests

NOBODY = ""  # whose recordings these are
SEEN, MANIFESTS = (
    "seen",
    "manifests",
)  # facts of a file: how rows look to a model, and of whom they were learned


def seen_by_models(study: Study, name: str) -> str:
    """Returns a digest of all that decides how a model sees a stream: features, normalisation, reduction."""
    reduction = next(stream.reduction for stream in study.streams if stream.name == name)
    said = canonical([feature_digests(study)[name], study.normalisation, reduction])
    return hashlib.sha256(b"sottovoce/seen/1\n" + said.encode()).hexdigest()


def rows_of(study: Study) -> synthetic.SyntheticRows | None:
    """Returns the rows of the file that a study names; None where it names none.

    Raises:
        WeightsError: the file is not on this machine, is damaged, or was not made for such a study.
    """
    spec = study.training.synthetic
    if spec is None:
        return None
    made = _file(pretrained.find(spec.sha256, what="synthetic"), study.labels.classes)
    for name in sorted(streams_read(study.model)):
        if name in made.streams and made.facts.get(SEEN) != seen_by_models(study, name):
            raise WeightsError(
                f"training.synthetic: expected rows of {name!r} as this study computes and standardises it; the file's "
                "are of other features, or of another normalisation. Make them for it: `sottovoce server augment`."
            )
    return made


def check_rows_apart(study: Study, corpora: Collection[Corpus]) -> None:
    """Refuses to score speakers by a model that rows taught which were learned from them.

    It knows a corpus by its manifest's digest: a part of one under another manifest is not noticed.

    Raises:
        CorpusError: the study's rows were made of one of these corpora.
        WeightsError: see `rows_of`.
    """
    made = rows_of(study)
    heard = made.facts.get(MANIFESTS, "").split() if made else []
    for corpus in corpora:
        if corpus.manifest_digest() in heard:
            raise CorpusError(
                f"corpora.{corpus.name}: expected other recordings than training.synthetic was made of; these are the "
                "same, and speakers would be scored whom the rows are drawn from. Make rows of another corpus."
            )


def added_by(study: Study) -> AddedRows | None:
    """Returns what a run records of the rows that it adds; None where the study names none. Raises: see `rows_of`."""
    spec, made = study.training.synthetic, rows_of(study)
    if spec is None or made is None:
        return None
    return AddedRows(sha256=spec.sha256, per_class=spec.per_class, fill=spec.fill, facts=dict(made.facts))


def in_words(facts: AddedRows) -> str:
    """Returns in a sentence what was added, and of whom it was made."""
    which = "each class" if facts.fill == "all" else "each class that a site lacks"
    source = facts.facts.get("corpora")
    heard = f"made by {facts.facts.get('method', 'a generator')} that heard {source} alone"
    if source is None:
        heard = "made by a federation: whoever it was trained on must not be scored here"
    return f"rows that nobody said, at most {facts.per_class:,} of {which} at each site: {facts.sha256[:16]}…, {heard}"


def with_made_rows(data: SiteData, study: Study) -> SiteData:
    """Returns the examples with the study's public rows behind them; as they are where it names none.

    Raises:
        WeightsError: the file is not on this machine, or has not the streams and widths of the study.
    """
    spec, made = study.training.synthetic, rows_of(study)
    if spec is None or made is None:
        return data
    chosen = chosen_rows(data.labels, made, spec)
    arrays, lengths = {}, {}
    for name, shape in data.shapes.items():
        rows = _fitting(made, name, shape.row)[chosen]
        arrays[name] = np.concatenate([data.arrays[name][data.rows], _padded(rows, shape.row)])
        if shape.n_frames is not None:
            own = data.stored_lengths[name][data.rows]
            lengths[name] = np.concatenate([own, np.full(len(chosen), rows.shape[1], np.int64)])
    n = len(chosen)
    return replace(
        data,
        keys=(*data.keys, *(f"{NOBODY}#{number}" for number in chosen)),
        labels=np.concatenate([data.labels, made.labels[chosen]]),
        speakers=(*data.speakers, *(NOBODY,) * n),
        patients=(*data.patients, *(NOBODY,) * n),
        groups=(*data.groups, *({},) * n),
        copies=np.concatenate([data.copies, np.ones(n, np.int64)]),
        trains=np.concatenate([data.trains, np.ones(n, np.bool_)]),
        enrols=np.concatenate([data.enrols, np.zeros(n, np.bool_)]),
        homes=(*data.homes, *(data.site,) * n),
        rows=np.arange(len(data) + n, dtype=np.int64),
        arrays=arrays,
        stored_lengths=lengths,
    )


def chosen_rows(labels: Labels, made: synthetic.SyntheticRows, spec: SyntheticRows) -> Labels:
    """Returns the numbers of the rows that a site with these labels adds."""
    counts = np.bincount(labels, minlength=len(made.classes))
    lacks = counts.max() - counts if spec.fill == "rarer" else np.full(len(counts), spec.per_class)
    return np.concatenate(
        [made.of_class(label, min(spec.per_class, int(n))) for label, n in enumerate(lacks)]
    )


@lru_cache(maxsize=2)
def _file(path: Path, classes: tuple[str, ...]) -> synthetic.SyntheticRows:
    return synthetic.load(path, classes=classes)


def _fitting(made: synthetic.SyntheticRows, name: str, row: tuple[int, ...]) -> Array:
    rows = made.streams.get(name)
    fits = rows is not None and rows.ndim == 1 + len(row) and rows.shape[-1] == row[-1]
    if rows is None or not fits or (len(row) == 2 and rows.shape[1] > row[0]):
        came = "no such stream" if rows is None else f"rows of shape {rows.shape[1:]}"
        raise WeightsError(
            f"training.synthetic: expected made rows of stream {name!r} that fit into {row}; came {came}. "
            "Make them for this study: `sottovoce server augment`."
        )
    return rows


def _padded(rows: Array, row: tuple[int, ...]) -> Array:
    if len(row) == 1:
        return rows
    return np.pad(rows, ((0, 0), (0, row[0] - rows.shape[1]), (0, 0)))
