"""Public rows beside a site's own, where the study says so: `training.synthetic`. Mode `none` only.

Guarantees:
  - A site's own examples stay as they are, and first; made rows follow, class after class, never scored: they are
    added to what is trained on, after the split.
  - With `fill = "rarer"` no class gets more rows than it lacks against the site's commonest one.
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from sottovoce.common import pretrained
from sottovoce.common.dataset import Array, SiteData
from sottovoce.common.errors import WeightsError
from sottovoce.common.generative import synthetic
from sottovoce.common.generative.networks import Labels
from sottovoce.common.generative_specs import SyntheticRows
from sottovoce.common.study import Study

NOBODY = ""  # whose recordings these are


def with_made_rows(data: SiteData, study: Study) -> SiteData:
    """Returns the examples with the study's public rows behind them; as they are where it names none.

    Raises:
        WeightsError: the file is not on this machine, or has not the streams and widths of the study.
    """
    spec = study.training.synthetic
    if spec is None:
        return data
    made = _file(pretrained.find(spec.sha256, what="synthetic"), study.labels.classes)
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
