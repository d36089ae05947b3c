"""Deals the speakers of a corpus to sites, for a simulation. A real hospital has its own patients: no dealing there.

Guarantees:
  - A speaker, with all recordings, is at one site; a patient too.
  - The order of the recordings does not matter; the dealing depends on the study alone.
  - Site names sort in the order of their numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sottovoce.common.errors import CorpusError
from sottovoce.common.streams import stream
from sottovoce.common.study import CorpusSites, DirichletLabels, Federation


@dataclass(frozen=True, kw_only=True)
class Row:
    """What dealing needs to know of one recording."""

    speaker: str
    patient: str
    label: int
    site: str | None


@dataclass(frozen=True, kw_only=True)
class Dealt:
    """For each recording its site, and whether it may be trained on there (all are scored)."""

    sites: tuple[str, ...]
    trains: npt.NDArray[np.bool_]


def deal(federation: Federation, rows: Sequence[Row]) -> Dealt:
    """Deals recordings to `federation.n_sites` sites.

    Raises:
        CorpusError: too few speakers, sites the corpus does not state, or one voice at two sites.
    """
    if _takes_stated_sites(federation, rows):
        sites = _stated_sites(federation.n_sites, rows)
    else:
        sites = _speaker_blocks(federation.n_sites, rows)
    trains = np.ones(len(rows), dtype=np.bool_)
    if isinstance(federation.partition, DirichletLabels):
        trains = _keep_share(federation.partition, rows, sites)
    return Dealt(sites=sites, trains=trains)


def _takes_stated_sites(federation: Federation, rows: Sequence[Row]) -> bool:
    if not isinstance(federation.partition, CorpusSites):
        return False
    return federation.partition.otherwise == "stop" or any(row.site is not None for row in rows)


def site_names(n_sites: int) -> list[str]:
    """Returns site-1 .. site-n, padded so that they sort by number."""
    width = len(str(n_sites))
    return [f"site-{index:0{width}d}" for index in range(1, n_sites + 1)]


def _speaker_blocks(n_sites: int, rows: Sequence[Row]) -> tuple[str, ...]:
    # A patient who is there under two speaker ids must stay whole, so patients are what is dealt.
    patients = sorted({row.patient for row in rows})
    if len(patients) < n_sites:
        raise CorpusError(
            f"federation.n_sites: expected at most as many sites as the corpus has patients, {len(patients)}; "
            f"came {n_sites}. Lower n_sites, or let `sottovoce study new --data` write a study that fits."
        )
    names = site_names(n_sites)
    blocks = np.array_split(np.asarray(patients, dtype=object), n_sites)
    home = {patient: name for name, block in zip(names, blocks, strict=True) for patient in block}
    return tuple(home[row.patient] for row in rows)


def _stated_sites(n_sites: int, rows: Sequence[Row]) -> tuple[str, ...]:
    missing = sum(row.site is None for row in rows)
    if missing:
        raise CorpusError(
            f"federation.partition: 'corpus_sites' expects a site for every recording; {missing} have none. "
            "Use kind = 'speaker_blocks', or add the column `site` to the manifest."
        )
    sites = tuple(row.site or "" for row in rows)
    if len(set(sites)) != n_sites:
        raise CorpusError(
            f"federation.n_sites: the corpus states {len(set(sites))} sites; the study says {n_sites}. Make them equal."
        )
    for what in ("speaker", "patient"):
        homes: dict[str, str] = {}
        for row, site in zip(rows, sites, strict=True):
            if homes.setdefault(getattr(row, what), site) != site:
                raise CorpusError(
                    f"federation.partition: a {what} is at two sites ({homes[getattr(row, what)]}, {site}). "
                    "Give the two people different ids, or put all of one person's recordings at one site."
                )
    return sites


def _keep_share(skew: DirichletLabels, rows: Sequence[Row], sites: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Each site keeps a Dirichlet(alpha) share of each class for training and drops the rest.

    The shares of a class add up to one over the sites (Hsu, Qi and Brown 2019), so on average a site keeps one
    n-th of what it has. At least one recording of a class stays at the site with the largest share.
    """
    names = sorted(set(sites))
    labels = np.asarray([row.label for row in rows])
    where = np.asarray([names.index(site) for site in sites])
    keeps = np.zeros(len(rows), dtype=np.bool_)
    for label in sorted(set(labels.tolist())):
        random = stream(skew.seed, "dirichlet labels", int(label))
        shares = random.dirichlet([skew.alpha] * len(names))
        for index in range(len(names)):
            mine = np.flatnonzero((labels == label) & (where == index))
            count = round(shares[index] * len(mine))
            if index == int(shares.argmax()) and len(mine):
                count = max(count, 1)
            keeps[random.permutation(mine)[:count]] = True
    return keeps
