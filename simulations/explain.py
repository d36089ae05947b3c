"""What a run's models listen to: `sottovoce explain RUN`.

    explanation = explain(Path("runs/demo"), data={})     # also written to runs/demo/explanation.json

Three views of the models of one arm and seed, each asked only about speakers that it never heard:

| view                   | of                        | says                                                       |
|------------------------|---------------------------|------------------------------------------------------------|
| permutation importance | every arm                 | what UAR is lost without a family of features, with interval |
| integrated gradients   | networks                  | what spoke for an emotion where it was the truth, and when   |
| attention              | networks that attend      | which moments were looked at                                 |

Guarantees:
  - Of models whose UAR may be chance nothing is shown (`Explanation.is_at_chance`).
  - The same run, folders and seed give the same file.
  - Nothing is trained anew but a classical baseline, which has no checkpoint.
  - Only for simulation on public corpora: per-person figures never leave a hospital, and this reads each recording.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sottovoce.client.app import withheld
from sottovoce.common import explanation as explanations
from sottovoce.common import feature_words, metrics
from sottovoce.common import summary as summaries
from sottovoce.common.dataset import Batch, SiteData
from sottovoce.common.errors import RunError
from sottovoce.common.explanation import Curve, Evidence, Explanation, Importance
from sottovoce.common.feature_words import WORDS, Column, Family
from sottovoce.common.metrics import Counts, Floats
from sottovoce.common.models import streams_of
from sottovoce.common.predictions import leaks
from sottovoce.common.progress import OnEvent, Step, silent
from sottovoce.common.streams import stream as coins
from sottovoce.common.study import Normalisation, Study
from sottovoce.server.rounds import Cell
from sottovoce.simulations.attention import attention_of, curve
from sottovoce.simulations.attributions import integrated_gradients
from sottovoce.simulations.baselines import fitted
from sottovoce.simulations.cells import NETWORK_ARMS, POOLED
from sottovoce.simulations.importance import Heard, Inputs, alone_counts, counts_of, lost, shuffled_counts
from sottovoce.simulations.predict import network_of
from sottovoce.simulations.prepare import lay_out, prepare
from sottovoce.simulations.run_folder import read_started

REPEATS = 5
EXPLAINED = 160  # recordings of a fold that gradients are integrated for; sequences take a second for ten
PARTS = 20  # of a recording's length
BATCH = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class _Asked:
    """One fold: its withheld recordings, and for networks the model."""

    heard: Heard
    model: nn.Module | None


def explain(
    run: Path,
    *,
    data: Mapping[str, Path],
    arm: str | None = None,
    seed: int | None = None,
    repeats: int = REPEATS,
    workers: int = 1,
    on_event: OnEvent = silent,
) -> Explanation:
    """Explains one arm of a run and writes explanation.json into its folder.

    Raises:
        RunError: the run is damaged, or has no such arm.
        CorpusError: the recordings are no longer where they were; `data` names where they are.
    """
    study, _, local = read_started(run)
    figures = summaries.read(run / "metrics.json")
    arm = arm or figures.headline
    if arm not in [one.name for one in figures.arms] or leaks(arm) or arm == "local":
        raise RunError(f"{run}: expected an arm of one model for all sites; came {arm!r}.")
    seed = study.evaluation.seeds[0] if seed is None else seed
    folders = {name: Path(path) for name, path in local.data.items()} | dict(data)
    with tempfile.TemporaryDirectory() as work:
        prepared = prepare(study, folders, workers=workers, on_event=on_event).prepared
        lay_out(study, prepared, Path(work) / "sites", on_event)
        pooled = SiteData.open(Path(work) / "sites" / POOLED)
        folds = [one.fold for one in figures.arm(arm).cells if one.seed == seed]
        if not folds:
            raise RunError(f"{run}: expected a seed of {list(study.evaluation.seeds)}; came {seed}.")
        asked = [_asked(run, study, pooled, Cell(seed=seed, fold=fold, arm=arm)) for fold in folds]
        found = _explained(study, asked, arm, seed, repeats, on_event)
    explanations.write(run, found)
    return found


def _asked(run: Path, study: Study, pooled: SiteData, cell: Cell) -> _Asked:
    hidden = withheld(pooled, study, seed=cell.seed, fold=cell.fold)
    own, seen = (pooled.select(mask & (pooled.copies == 0)) for mask in (hidden, ~hidden & pooled.trains))
    model = network_of(run, study, pooled, cell).eval() if cell.arm in NETWORK_ARMS else None
    own = own.only([study.evaluation.baseline_stream or ""] if model is None else streams_of(model))
    batch = own.batch(np.arange(len(own)))
    names = {name: index for index, name in enumerate(sorted(set(pooled.speakers)))}
    heard = Heard(
        fold=cell.fold,
        inputs={name: values.numpy() for name, values in batch.inputs.items()},
        lengths={name: values.numpy() for name, values in batch.lengths.items()},
        labels=own.labels,
        speakers=np.array([names[name] for name in own.speakers], np.int64),
        answers=_classical(study, seen, cell) if model is None else _network(model, batch),
    )
    return _Asked(heard=heard, model=model)


def _classical(study: Study, seen: SiteData, cell: Cell) -> Callable[[Inputs], Counts]:
    name, n_classes = study.evaluation.baseline_stream or "", len(study.labels.classes)
    log_probs = fitted(cell.arm, seen.pooled(name), seen.labels, cell.seed, n_classes=n_classes)  # type: ignore[arg-type]
    return lambda inputs: log_probs(inputs[name]).argmax(axis=1).astype(np.int64)


def _network(model: nn.Module, batch: Batch) -> Callable[[Inputs], Counts]:
    def answers(inputs: Inputs) -> Counts:
        changed = replace(batch, inputs={name: torch.from_numpy(values) for name, values in inputs.items()})
        with torch.inference_mode():
            found = [
                model(part.inputs, part.lengths).argmax(dim=1) for part in _pieces(changed.filled(BATCH))
            ]
        return torch.cat(found).numpy()[: len(batch.labels)]

    return answers


def _explained(
    study: Study, asked: Sequence[_Asked], arm: str, seed: int, repeats: int, on_event: OnEvent
) -> Explanation:
    heard = [one.heard for one in asked]
    names = [stream for stream in study.streams if stream.name in heard[0].inputs]
    columns = {
        one.name: feature_words.columns(one, study.frames, study.audio.sample_rate_hz) for one in names
    }
    speakers = np.unique(np.concatenate([one.speakers for one in heard]))
    n_speakers, n_classes = int(speakers.max()) + 1, len(study.labels.classes)
    before = counts_of(heard, n_speakers=n_speakers, n_classes=n_classes)
    importance = [
        _importance(study, heard, family, columns, before[speakers], speakers, repeats, seed, on_event)
        for family in WORDS
        if any(column.family == family for own in columns.values() for column in own)
    ]
    gradients = _gradients(study, asked, columns, seed, on_event) if asked[0].model is not None else None
    low, high = _bounds(study, before[speakers])
    return Explanation(
        format=1,
        study_digest=study.digest(),
        arm=arm,
        seed=seed,
        n_speakers=len(speakers),
        n_utterances=int(before.sum()),
        uar=float(metrics.uars(before.sum(axis=0))),
        repeats=repeats,
        chance=1.0 / np.count_nonzero(before.sum(axis=(0, 2))),
        uar_low=low,
        uar_high=high,
        importance=tuple(sorted(importance, key=lambda one: -one.lost)),
        evidence=gradients.evidence(study.labels.classes) if gradients else (),
        statistics=gradients.statistics() if gradients else None,
        moments=gradients.curves(study.labels.classes, gradients.moments) if gradients else (),
        attention=gradients.curves(study.labels.classes, gradients.attention) if gradients else (),
        notes=tuple(_notes(study, columns)),
    )


def _bounds(study: Study, before: Floats) -> tuple[float | None, float | None]:
    """Returns the 95 % interval of the models' UAR over speakers; none of one speaker."""
    draws = metrics.resampled(
        before[None],  # type: ignore[arg-type]  # floats that count
        lambda tables: np.asarray(metrics.uars(tables)[:, 0]),
        samples=study.evaluation.bootstrap_samples,
        seed=study.evaluation.seeds[0],
    )
    bounds = metrics.interval(draws, n_speakers=len(before))
    return (None, None) if bounds is None else (float(bounds[0]), float(bounds[1]))


def _importance(
    study: Study,
    heard: Sequence[Heard],
    family: Family,
    columns: Mapping[str, Sequence[Column]],
    before: Floats,
    speakers: Counts,
    repeats: int,
    seed: int,
    on_event: OnEvent,
) -> Importance:
    on_event(
        Step(stage="shuffling", done=list(WORDS).index(family) + 1, total=len(WORDS), detail=WORDS[family])
    )
    chosen = {name: np.array([one.family == family for one in own]) for name, own in columns.items()}
    sizes: dict[str, int] = {"n_speakers": int(speakers.max()) + 1, "n_classes": len(study.labels.classes)}
    after = shuffled_counts(heard, chosen, repeats=repeats, seed=seed, **sizes)
    alone = alone_counts(heard, chosen, **sizes)
    samples = study.evaluation.bootstrap_samples
    value, low, high = lost(before, after[speakers], samples=samples, seed=study.evaluation.seeds[0])
    return Importance(
        family=family,
        words=WORDS[family],
        n_columns=int(sum(mask.sum() for mask in chosen.values())),
        alone=float(metrics.uars(alone.sum(axis=0))),
        lost=value,
        low=low,
        high=high,
    )


class _Gradients:
    """Sums over recordings, by their true emotion: attributions by family and figure, and curves over time."""

    def __init__(self, n_classes: int) -> None:
        self.n = np.zeros(n_classes, np.int64)
        self.families: dict[Family, Floats] = {}
        self.figures: dict[str, float] = {}
        self.moments: dict[int, list[Floats]] = {}
        self.attention: dict[int, list[Floats]] = {}

    def add(self, batch: Batch, found: Mapping[str, Tensor], columns: Mapping[str, Sequence[Column]]) -> None:
        """Adds the attributions of a batch."""
        labels = batch.labels.numpy()
        np.add.at(self.n, labels, 1)
        for name, values in found.items():
            array = values.numpy().astype(np.float64)
            if name in batch.lengths:
                self._add_curves(self.moments, labels, np.abs(array).sum(axis=2), batch.lengths[name].numpy())
                each, size = array.sum(axis=1), np.abs(array).sum(axis=(0, 1))
            else:
                each, size = array, np.abs(array).sum(axis=0)
            for index, column in enumerate(columns[name]):
                np.add.at(
                    self.families.setdefault(column.family, np.zeros(len(self.n))), labels, each[:, index]
                )
                self.figures[column.statistic] = self.figures.get(column.statistic, 0.0) + float(size[index])

    def add_attention(self, batch: Batch, model: nn.Module) -> None:
        """Adds where a network with attention looked."""
        found = attention_of(model, batch.inputs, batch.lengths)
        if found is not None:
            weights = found.weights.numpy().astype(np.float64)
            self._add_curves(self.attention, batch.labels.numpy(), weights, found.lengths.numpy())

    def _add_curves(
        self, curves: dict[int, list[Floats]], labels: Counts, weights: Floats, lengths: Counts
    ) -> None:
        for label, row, n_valid in zip(labels.tolist(), weights, lengths.tolist(), strict=True):
            curves.setdefault(label, []).append(curve(row, n_valid, PARTS))

    def evidence(self, classes: Sequence[str]) -> tuple[Evidence, ...]:
        """Returns the mean attribution of each family, for each emotion that occurs."""
        return tuple(
            Evidence(
                emotion=classes[label],
                n_utterances=int(self.n[label]),
                families={name: float(sums[label] / self.n[label]) for name, sums in self.families.items()},
            )
            for label in np.flatnonzero(self.n).tolist()
        )

    def statistics(self) -> dict[str, float]:
        """Returns which share of all attributions, in size, each figure of a recording has."""
        total = sum(self.figures.values())
        return {name: value / total for name, value in self.figures.items()} if total else {}

    def curves(self, classes: Sequence[str], of: Mapping[int, list[Floats]]) -> tuple[Curve, ...]:
        """Returns the mean curve of each emotion."""
        return tuple(
            Curve(emotion=classes[label], values=tuple(np.mean(rows, axis=0).round(4).tolist()))
            for label, rows in sorted(of.items())
        )


def _gradients(
    study: Study,
    asked: Sequence[_Asked],
    columns: Mapping[str, Sequence[Column]],
    seed: int,
    on_event: OnEvent,
) -> _Gradients:
    sums = _Gradients(len(study.labels.classes))
    for number, one in enumerate(asked, start=1):
        on_event(Step(stage="gradients", done=number, total=len(asked)))
        if one.model is None:
            continue
        batch = _some(one.heard, seed)
        baseline = {name: _average(values, batch.lengths.get(name)) for name, values in batch.inputs.items()}
        for part in _pieces(batch):
            sums.add(part, integrated_gradients(one.model, part, baseline), columns)
            sums.add_attention(part, one.model)
    return sums


def _some(heard: Heard, seed: int) -> Batch:
    """Returns at most EXPLAINED of a fold's recordings, drawn by public coins."""
    n = len(heard.labels)
    rows = np.sort(coins(seed, "explained", heard.fold).permutation(n)[:EXPLAINED])
    return Batch(
        inputs={name: torch.from_numpy(values[rows]) for name, values in heard.inputs.items()},
        lengths={name: torch.from_numpy(values[rows]) for name, values in heard.lengths.items()},
        labels=torch.from_numpy(heard.labels[rows]),
    )


def _pieces(batch: Batch) -> Iterator[Batch]:
    for first in range(0, len(batch.labels), BATCH):
        rows = slice(first, first + BATCH)
        yield Batch(
            inputs={name: values[rows] for name, values in batch.inputs.items()},
            lengths={name: values[rows] for name, values in batch.lengths.items()},
            labels=batch.labels[rows],
        )


def _average(values: Tensor, lengths: Tensor | None) -> Tensor:
    """Returns the average column over recordings, or over their valid frames: what says nothing of an emotion."""
    return values.mean(dim=0) if lengths is None else values.sum(dim=(0, 1)) / lengths.sum()


def _notes(study: Study, columns: Mapping[str, Sequence[Column]]) -> Iterator[str]:
    families = {column.family for own in columns.values() for column in own}
    if "mixed" in families:
        yield "The features were mixed by a public map before the model: they cannot be told apart again."
    if "learned" in families or "identity" in families:
        yield (
            "What a frozen network hears has no name that a person could check; loudness, pitch and the rest are in it "
            "too, so that their own lines say only what it lacks."
        )
    yield from _relative_to(study.normalisation)


def _relative_to(spec: Normalisation) -> Iterator[str]:
    """What a high figure is higher than."""
    public = bool(spec.mean or spec.from_initial)
    few = ", and to public figures where they are few" if public and spec.shrinkage else ""
    if spec.scheme == "speaker":
        yield f"Each feature is told relative to all of the same person's recordings{few}: high is high for them."
    elif spec.enrols is not None:
        calm = " or ".join(spec.enrols.emotions)
        yield (
            f"Each feature is told relative to up to {spec.enrols.clips} of the same person's recordings in {calm}"
            f"{few}; of a person without any, relative to public figures, where high may be no more than a high voice."
        )
    elif spec.scheme == "constants" and public:
        yield (
            "Each feature is told relative to public figures, the same for everybody: high may be no more than a high "
            "voice."
        )
