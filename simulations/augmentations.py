"""Does making rows help a hospital that hardly has an emotion? Figures, not pictures.

    python -m sottovoce.simulations.augmentations --ravdess DIR [--quick] [--out runs/augmentations]

Five published folds of RAVDESS, speakers withheld, 5 seeds. In each, every site of six loses 90 % of one emotion, each
another one, by public draws. Then each method of `augmentation_methods.py` is tried on the same rows:

- **local**: the site's own head, trained on its own rows and on what the method adds. Recall of the emotion that the
  site lost, on the fold's withheld speakers.
- **federated**: one head for all, every site counts alike (the optimum that rounds of one local step lead to). Recall
  of the six lost emotions on the same speakers, and UAR.
- **generators** alone: a head trained on made rows only, tested on withheld speakers; distance by class; copies;
  membership.

Guarantees:
  - Withheld speakers touch no method, no generator and no choice; all sizes and rates are constants of these two files.
  - Methods are compared on the same rows and the same withheld speakers; the interval is Student's, over seeds.
  - A method that does not help is in the table as one that does not.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.common.dataset import SiteData
from sottovoce.common.folds import fold_of, n_folds
from sottovoce.common.generative import quality
from sottovoce.common.generative.networks import each_class
from sottovoce.common.model_specs import streams_read
from sottovoce.common.progress import show_progress
from sottovoce.common.streams import stream
from sottovoce.common.study import Study, load
from sottovoce.simulations.augmentation_methods import (
    ADJUSTED,
    COPIES,
    FEDERATIONS,
    METHODS,
    Part,
    Setting,
    Weighed,
    augmented,
)
from sottovoce.simulations.augmentation_private import COLUMNS as PRIVATE_COLUMNS
from sottovoce.simulations.augmentation_private import DELTA, EPSILON
from sottovoce.simulations.cells import POOLED
from sottovoce.simulations.made_head import DECAY
from sottovoce.simulations.pages import SCENARIOS, commit
from sottovoce.simulations.prepare import lay_out, prepare
from sottovoce.simulations.run_folder import write_text
from sottovoce.simulations.softmax import Head, adjusted, fit_head
from sottovoce.simulations.without_pooling import STUDENT

KEPT = 0.1  # of the emotion that a site lost
PER_CLASS = 100  # made rows, for a head that sees nothing else
BAR = 5.0  # points of recall above `none`


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """A study's recordings and their copies as one matrix, with who, where, and what."""

    study: Study
    rows: Part
    copies: npt.NDArray[np.int64]
    keys: npt.NDArray[np.int64]
    speakers: tuple[str, ...]
    sites: tuple[str, ...]


def read_table(study_file: Path, ravdess: Path, *, workers: int = 1) -> Table:
    """Prepares a study as a simulation does, and reads the one pooled stream of its model."""
    study = load(study_file)
    (name,) = [spec.name for spec in study.corpora]
    (pooled,) = streams_read(study.model)
    with show_progress(quiet=False) as on_event, tempfile.TemporaryDirectory() as work:
        prepared = prepare(study, {name: ravdess}, workers=workers, on_event=on_event).prepared
        lay_out(study, prepared, Path(work), on_event)
        data = SiteData.open(Path(work) / POOLED)
        usable = data.select(data.trains)
        rows = np.array(usable.pooled(pooled))
    speakers, sites = tuple(sorted(set(usable.speakers))), tuple(sorted(set(usable.homes)))
    people = np.array([speakers.index(one) for one in usable.speakers], np.int64)
    names = sorted(set(usable.keys))
    return Table(
        study=study,
        rows=Part(
            rows=rows,
            labels=usable.labels,
            patients=people,
            sites=np.array([sites.index(one) for one in usable.homes], np.int64),
        ),
        copies=usable.copies,
        keys=np.searchsorted(names, usable.keys).astype(np.int64),
        speakers=speakers,
        sites=sites,
    )


def settings(table: Table, *, seed: int) -> Iterator[tuple[Setting, Part, tuple[int, ...]]]:
    """Yields each fold after the loss: what is trained on, who is withheld, and the emotion that each site lost."""
    n_classes = len(table.study.labels.classes)
    folds = table.study.evaluation.folds
    of_speaker = {
        speaker: fold
        for site in range(len(table.sites))
        for speaker, fold in fold_of(folds, seed, table.sites[site], _speakers_at(table, site)).items()
    }
    fold_numbers = np.array([of_speaker[name] for name in table.speakers])
    for fold in range(n_folds(folds)):
        hidden = fold_numbers[table.rows.patients] == fold
        random = stream(seed, "lost emotions", fold)
        lost = tuple(int(one) for one in random.permutation(n_classes)[: len(table.sites)])
        gone = _lost(table, hidden, lost, random)
        trained = ~hidden & ~np.isin(table.keys, gone)
        yield (
            Setting(
                seed=seed,
                fold=fold,
                study=table.study,
                training=table.rows.where(trained & (table.copies == 0)),
                copies=table.rows.where(trained & (table.copies > 0)),
            ),
            table.rows.where(hidden & (table.copies == 0)),
            lost,
        )


def measure(setting: Setting, withheld: Part, lost: Sequence[int], methods: Sequence[str]) -> dict[str, Any]:
    """Returns every figure of one fold."""
    found: dict[str, Any] = {"seed": setting.seed, "fold": setting.fold, "lost": list(lost), "methods": {}}
    for method in methods:
        parts = [augmented(method, setting, site) for site in range(len(lost))]
        heads = [_head(part, setting.n_classes, method) for part in parts]
        everybody = _head(_joined(parts), setting.n_classes, method)
        found["methods"][method] = {
            "local": [_recall(head, withheld, emotion) for head, emotion in zip(heads, lost, strict=True)],
            "local_uar": [_uar(head, withheld, setting.n_classes) for head in heads],
            "federated": [_recall(everybody, withheld, emotion) for emotion in lost],
            "federated_uar": _uar(everybody, withheld, setting.n_classes),
        }
    found["generators"] = {name: judged(setting, withheld, name) for name in FEDERATIONS if name in methods}
    real = setting.training
    found["real"] = {
        "uar": _uar(_head(_alike(real), setting.n_classes), withheld, setting.n_classes),
        "frechet": _frechet(setting, real, withheld),
    }
    return found


def judged(setting: Setting, withheld: Part, name: str) -> dict[str, float]:
    """Returns the figures of a federation's generator by itself."""
    labels = each_class(setting.n_classes, PER_CLASS)
    rows = setting.maker(name)(labels, setting.key("judged", name))
    made = Part(rows=rows, labels=labels, patients=labels, sites=labels)
    training, held_out = setting.training.rows, withheld.rows
    return {
        "uar": _uar(_head(_alike(made), setting.n_classes), withheld, setting.n_classes),
        "frechet": _frechet(setting, made, withheld),
        "copies": quality.copies(rows, training, held_out, random=stream(setting.key("copies"), "sides")),
        "membership": quality.membership_auc(rows, training, held_out),
    }


def _head(part: Weighed, n_classes: int, method: str = "none") -> Head:
    head = fit_head(part.rows, part.labels, n_classes=n_classes, decay=DECAY, weights=part.weights)
    return adjusted(head, part.labels, part.weights) if method == ADJUSTED else head


def _joined(parts: Sequence[Weighed]) -> Weighed:
    return Weighed(
        rows=np.concatenate([part.rows for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
    )


def _alike(part: Part) -> Weighed:
    return Weighed(rows=part.rows, labels=part.labels, weights=np.ones(len(part)))


def _speakers_at(table: Table, site: int) -> list[str]:
    return [table.speakers[one] for one in table.rows.patients[table.rows.sites == site]]


def _lost(
    table: Table, hidden: npt.NDArray[np.bool_], lost: Sequence[int], random: np.random.Generator
) -> npt.NDArray[np.int64]:
    gone = []
    for site, emotion in enumerate(lost):
        own = (table.rows.sites == site) & (table.rows.labels == emotion) & ~hidden
        keys = np.unique(table.keys[own])
        n_kept = max(1, round(KEPT * len(keys)))
        gone.append(random.permutation(keys)[n_kept:])
    return np.concatenate(gone)


def _recall(head: Head, withheld: Part, emotion: int) -> float:
    theirs = withheld.where(withheld.labels == emotion)
    return float((head.predict(theirs.rows) == emotion).mean()) if len(theirs) else math.nan


def _uar(head: Head, withheld: Part, n_classes: int) -> float:
    return float(np.nanmean([_recall(head, withheld, emotion) for emotion in range(n_classes)]))


def _frechet(setting: Setting, made: Part, withheld: Part) -> float:
    return quality.mean_distance(
        made.rows,
        made.labels,
        withheld.rows,
        withheld.labels,
        axes_of=setting.training.rows,
        n_classes=setting.n_classes,
    )


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method's recall of lost emotions: by seed, in percent, at the site and in the federation; and its UARs."""

    method: str
    local: tuple[float, ...]
    federated: tuple[float, ...]
    local_uar: float
    federated_uar: float


def rows_of(found: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Returns each method's figures, a mean over folds and sites for each seed."""
    seeds = sorted({one["seed"] for one in found})

    def means(method: str, what: str) -> tuple[float, ...]:
        return tuple(
            100 * float(np.nanmean([one["methods"][method][what] for one in found if one["seed"] == seed]))
            for seed in seeds
        )

    return [
        Row(
            method=method,
            local=means(method, "local"),
            federated=means(method, "federated"),
            local_uar=float(np.mean(means(method, "local_uar"))),
            federated_uar=float(np.mean(means(method, "federated_uar"))),
        )
        for method in found[0]["methods"]
    ]


def gain(values: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Returns the mean paired difference over seeds and its 95 % interval (Student's); NaN ends for one seed.

    >>> gain([3.0, 5.0, 4.0], [1.0, 3.0, 2.0])
    (2.0, 2.0, 2.0)
    """
    gaps = np.subtract(values, base)
    if len(gaps) not in STUDENT:
        return float(gaps.mean()), math.nan, math.nan
    half = STUDENT[len(gaps)] * float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
    return float(gaps.mean()), float(gaps.mean()) - half, float(gaps.mean()) + half


def block(document: Mapping[str, Any]) -> str:
    """Returns the part of docs/results.md."""
    found = document["folds"]
    rows = rows_of(found)
    none = rows[0]
    named = {key: document[key] for key in ("commit", "study", "seeds", "command")}
    lines = [_HEAD.format(**named, epsilon=EPSILON, delta=DELTA, columns=PRIVATE_COLUMNS)]
    lines += [
        "| method | recall at the site % | gain | recall in the federation % | gain | UAR at the site % "
        "| UAR in the federation % |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            row.method,
            f"{np.mean(row.local):.1f}",
            _gain(row.local, none.local),
            f"{np.mean(row.federated):.1f}",
            _gain(row.federated, none.federated),
            f"{row.local_uar:.1f}",
            f"{row.federated_uar:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *verdicts(rows), "", *_generators(found)]
    return "\n".join(lines) + "\n"


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Returns, for the site and for the federation, which methods reach the bar, or that none does.

    Rows of pure noise under a rare label raise its recall to chance, at the cost of the others. So a method counts as
    helpful only if the mean over all emotions does not fall, and what only moves answers about is named apart.
    """
    said = []
    for where, values in (("at the site", "local"), ("in the federation", "federated")):
        base, uar = getattr(rows[0], values), f"{values}_uar"
        gains = {row.method: gain(getattr(row, values), base) for row in rows[1:]}
        up = [row for row in rows[1:] if gains[row.method][0] >= BAR and not gains[row.method][1] <= 0]
        reached = [row.method for row in up if getattr(row, uar) >= getattr(rows[0], uar)]
        moved = [row.method for row in up if row.method not in reached]
        best = max(rows[1:], key=lambda row: gains[row.method][0])
        said.append(
            f"- {where.capitalize()}: the bar is {BAR:g} points of recall above `none`, an interval above 0, "
            f"and no lower UAR: {'met by ' + ', '.join(reached) if reached else '**missed** by all'}. "
            + (f"More recall at a lower UAR, which is no help: {', '.join(moved)}. " if moved else "")
            + f"Most recall: {best.method}, {_gain(getattr(best, values), base)}."
        )
    return said


def _generators(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| made rows | UAR % of a head on them | distance by class | nearer to a training row % | membership AUC |"
    yield "|---|---|---|---|---|"
    real = [one["real"] for one in found]
    yield (
        f"| none: the training rows | {100 * np.mean([one['uar'] for one in real]):.1f} | "
        f"{np.mean([one['frechet'] for one in real]):.1f} | | |"
    )
    for name in found[0]["generators"]:
        made = [one["generators"][name] for one in found]
        mean = {key: float(np.mean([one[key] for one in made])) for key in made[0]}
        yield (
            f"| {name} | {100 * mean['uar']:.1f} | {mean['frechet']:.1f} | {100 * mean['copies']:.0f} | "
            f"{mean['membership']:.2f} |"
        )


def _gain(values: Sequence[float], base: Sequence[float]) -> str:
    mean, low, high = gain(values, base)
    return f"{mean:+.1f}" if math.isnan(low) else f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


_HEAD = """\
## A site that lost 90 % of one emotion

Made by `{command}` at commit {commit}; study `{study}`, seeds {seeds}.
Every site of six keeps one recording in ten of one emotion, each of another one. Recall is that of those emotions on
withheld speakers, a mean over sites and folds; brackets hold the 95 % interval of the paired difference from `none`
over seeds. "At the site": a head trained on that site's rows and what the method adds; "in the federation": one for
all sites. "Private" rows cost every patient epsilon {epsilon:g} at delta {delta:g} with secret noise (here it is
simulated: NOT PRIVATE); they come of one noise for all sites, in {columns} columns of a random map.
"""


def document_of(
    study_file: Path, ravdess: Path, out: Path, *, seeds: Sequence[int], quick: bool, methods: Sequence[str]
) -> dict[str, Any]:
    """Measures, or finds what was measured of the same study by the same seeds and methods in `out`.

    `quick` takes the first fold alone. Writes augmentations.json and augmentations.md.
    """
    place, study = out / "augmentations.json", load(study_file)
    wanted = {
        "study": study.digest()[:16],
        "seeds": ", ".join(map(str, seeds)),
        "methods": list(methods),
        "quick": quick,
    }
    if place.exists():
        found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        if {key: found.get(key) for key in wanted} == wanted:
            return found
    table = read_table(study_file, ravdess)
    tried = [one for one in methods if one != COPIES or (table.copies > 0).any()]
    folds = []
    for seed in seeds:
        for setting, withheld, lost in settings(table, seed=seed):
            folds.append(measure(setting, withheld, lost, tried))
            print(f"seed {seed}, fold {setting.fold}", flush=True)
            if quick:
                break
    command = "python -m sottovoce.simulations.augmentations --ravdess DIR" + " --quick" * quick
    document = wanted | {"commit": commit(), "command": command, "folds": folds}
    out.mkdir(parents=True, exist_ok=True)
    write_text(place, json.dumps(document, indent=1))
    write_text(out / "augmentations.md", block(document))
    return document


def main() -> None:
    """Measures and writes augmentations.json and augmentations.md."""
    parser = argparse.ArgumentParser(description="Compare ways to make up for a lost emotion.")
    parser.add_argument("--ravdess", type=Path, required=True, help="folder of the RAVDESS speech corpus")
    parser.add_argument("--study", type=Path, default=SCENARIOS / "augmentations.toml")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one seed, one fold")
    parser.add_argument("--out", type=Path, default=Path("runs/augmentations"))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    document = document_of(
        arguments.study,
        arguments.ravdess,
        arguments.out,
        seeds=[0] if arguments.quick else list(range(arguments.seeds)),
        quick=arguments.quick,
        methods=arguments.methods,
    )
    print(block(document))


if __name__ == "__main__":
    main()
