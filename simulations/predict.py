"""What a run's model says of new recordings: an emotion with a probability that means something, or none.

    found = predict(Path("runs/demo"), [Path("visit-1.wav")], enrol=[Path("calm-1.wav")])

The model is that of one fold of the run (the first, unless another is named), so that its temperature and its sets
are those that the report shows figures of: fitted on the speakers of the other folds (`common/calibrated.py`).

Guarantees:
  - Silence, noise and music get no emotion, and neither does an answer less sure than the study's own least sure ones.
  - Features, normalisation and model are the study's own; a recording's result depends on no other recording but the
    person's own, where the study's normalisation needs them, and then the result says so.
  - A recording that cannot be read is one line in its place; the others are not affected.
  - Nothing of a recording stays on disk.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import nn

from sottovoce.client.evaluate import log_probabilities
from sottovoce.common import calibration, conformal, models, predictions
from sottovoce.common import summary as summaries
from sottovoce.common.audio import Decoder, printable
from sottovoce.common.calibrated import Calibrated, answers_of, calibrate
from sottovoce.common.conformal import LEVEL
from sottovoce.common.corpus import Utterance
from sottovoce.common.dataset import SiteData
from sottovoce.common.errors import AudioError, RunError, SottovoceError
from sottovoce.common.preparation import NO_CLASS, Recording, compute_features, write_site
from sottovoce.common.privacy_specs import NOT_PRIVATE
from sottovoce.common.progress import silent
from sottovoce.common.speech_activity import AUDIO, WORDS, why_no_speech
from sottovoce.common.study import Study
from sottovoce.common.summary import Summary
from sottovoce.common.weights import Layout, from_state_dict, to_state_dict
from sottovoce.server import checkpoint
from sottovoce.server.rounds import Cell
from sottovoce.simulations.cells import NETWORK_ARMS, checkpoint_of
from sottovoce.simulations.run_folder import read_started

if TYPE_CHECKING:
    from rich.console import Group

Floats = calibration.Floats
Outcome = Literal["emotion", "not sure", "no speech", "unreadable"]

ANSWERED = 0.7  # of recordings like the run's: the share that the report's accuracy at 70 % coverage is of
MAX_FILES = 10_000
_PERSON = "the person"


@dataclass(frozen=True, kw_only=True)
class Said:
    """What is said of one recording. `emotions` is the set that should hold the right one nine times in ten."""

    recording: str
    outcome: Outcome
    emotion: str | None = None
    probability: float | None = None
    emotions: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Everything that was said, and what a reader must know beside it."""

    run: str
    cell: str
    privacy: str
    said: tuple[Said, ...]
    temperature: float
    least_probability: float
    level: float
    notes: tuple[str, ...]

    @property
    def all_read(self) -> bool:
        """Whether every recording could be read."""
        return all(one.outcome != "unreadable" for one in self.said)


@dataclass(frozen=True, eq=False)
class _Fitted:
    """What was fitted on the speakers of the other folds: a public constant from here on."""

    cell: Cell
    temperature: float
    threshold: float
    least_probability: float
    answered: float


def predict(
    run: Path,
    files: Sequence[Path],
    *,
    enrol: Sequence[Path] = (),
    arm: str | None = None,
    seed: int | None = None,
    fold: int | None = None,
    answered: float = ANSWERED,
) -> Predicted:
    """Says of each recording what the run's model hears.

    `answered` is the share of recordings like the run's own that get an emotion; the others are "not sure".

    Raises:
        RunError: the run is damaged, not ended, or has no such model.
        SottovoceError: too many files, or clips to enrol by where the study's normalisation takes none.
        AudioError: a clip to enrol by cannot be read, or nobody speaks in it.
    """
    if not 1 <= len(files) <= MAX_FILES or not 0.0 < answered <= 1.0:
        raise SottovoceError(f"Expected 1 to {MAX_FILES:,} recordings and a share in (0, 1] to be answered.")
    study, _, _ = read_started(run)
    figures = summaries.read(run / "metrics.json")
    notes = _notes_of_normalisation(study, len(enrol), len(files))
    fitted = _fit(run, study, figures, arm, seed, fold, answered)
    for refused in filter(None, _heard(enrol)):
        raise AudioError(f"{refused.recording}: expected a voice to enrol by; {refused.reason}")
    said = _heard(files)
    speaking = [path for path, one in zip(files, said, strict=True) if one is None]
    if speaking:
        answers = iter(_answers(run, study, fitted, speaking, enrol))
        said = [next(answers) if one is None else one for one in said]
    return Predicted(
        run=run.resolve().name,
        cell=fitted.cell.name,
        privacy=figures.privacy,
        said=tuple(one for one in said if one is not None),
        temperature=fitted.temperature,
        least_probability=fitted.least_probability,
        level=LEVEL,
        notes=(*notes, *_notes_of_run(figures, fitted.cell)),
    )


def _fit(
    run: Path,
    study: Study,
    figures: Summary,
    arm: str | None,
    seed: int | None,
    fold: int | None,
    answered: float,
) -> _Fitted:
    arm = arm or figures.headline
    rows = predictions.read(run / "predictions.jsonl", n_classes=len(study.labels.classes))
    by_seed = answers_of([row for row in rows if row.arm == arm])
    if not by_seed or predictions.leaks(arm):
        names = ", ".join(one.name for one in figures.arms)
        raise RunError(f"{run}: expected the name of an arm with withheld speakers ({names}); came {arm!r}.")
    seed = min(by_seed) if seed is None else seed
    if seed not in by_seed or len(np.unique(by_seed[seed].fold)) < 2:
        raise RunError(
            f"{run}: expected a seed of the run with two folds or more, since how sure an answer is and "
            f"what set it gets are fitted on other folds' speakers; {seed} has none or one. Name another seed, or run "
            "the study in two folds (evaluation.only_folds)."
        )
    found = calibrate(by_seed[seed])
    fold = min(found.temperatures) if fold is None else fold
    if fold not in found.temperatures:
        raise RunError(f"{run}: expected a fold of {sorted(found.temperatures)}; came {fold}.")
    return _fitted(found, Cell(seed=seed, fold=fold, arm=arm), answered)


def _fitted(found: Calibrated, cell: Cell, answered: float) -> _Fitted:
    own, temperature = found.answers, found.temperatures[cell.fold]
    others = own.fold != cell.fold
    at_own = calibration.tempered(own.log_probs[others], temperature)
    scores = conformal.class_scores(at_own, "least_ambiguous")[
        np.arange(int(others.sum())), own.truth[others]
    ]
    return _Fitted(
        cell=cell,
        temperature=temperature,
        threshold=conformal.threshold_of(scores, own.speaker[others]),
        least_probability=float(np.quantile(calibration.confidences(at_own), 1.0 - answered)),
        answered=answered,
    )


def _heard(files: Sequence[Path]) -> list[Said | None]:
    """Returns for each recording why it gets no emotion, or None where somebody speaks."""
    found: list[Said | None] = []
    with Decoder(AUDIO) as decoder:
        for path in files:
            try:
                reason = why_no_speech(decoder.load(path))
            except AudioError as error:
                found.append(_unreadable(path, str(error).removeprefix(f"{printable(path)}: ")))
            else:
                found.append(None if reason is None else _silent(path, WORDS[reason]))
    return found


def _answers(
    run: Path, study: Study, fitted: _Fitted, files: Sequence[Path], enrol: Sequence[Path]
) -> Iterator[Said]:
    """Yields what is said of each recording in which somebody speaks."""
    tolerant = replace(study, audio=replace(study.audio, on_bad_recording="skip"))
    recordings = [
        *(_recording(number, path, NO_CLASS) for number, path in enumerate(enrol)),
        *(_recording(number, path, 0) for number, path in enumerate(files, start=len(enrol))),
    ]
    with tempfile.TemporaryDirectory() as folder:  # the user's own, and gone afterwards
        cache = Path(folder) / "cache"
        prepared = compute_features(tolerant, recordings, cache, 1, silent)
        skipped = {int(one.recording): one.reason for one in prepared.skipped}
        for number in sorted(set(skipped) & set(range(len(enrol)))):
            raise AudioError(f"{printable(enrol[number])}: {skipped[number]}")
        rows = {}
        if len(skipped) < len(files):
            data = write_site(study, prepared, "predict", Path(folder) / "site", cache).originals()
            log_probs = log_probabilities(network_of(run, study, data, fitted.cell), data)
            rows = dict(zip(map(int, data.keys), log_probs.astype(np.float64), strict=True))
    for number, path in enumerate(files, start=len(enrol)):
        if number in skipped:
            yield _unreadable(path, skipped[number])
        else:
            yield _said(path, rows[number], fitted, study.labels.classes)


def network_of(run: Path, study: Study, data: SiteData, cell: Cell) -> nn.Module:
    """Returns the model of a cell, from its checkpoint."""
    name, digest = checkpoint_of(study, cell)
    path = run / "checkpoints" / f"{name}.safetensors"
    if not path.is_file():
        remedy = (
            "It was removed, or the run has not ended: put it back, or run the study again."
            if cell.arm in NETWORK_ARMS and cell.arm != "local"
            else f"Name an arm, seed and fold of a network that all sites share; {cell.arm!r} is none."
        )
        raise RunError(f"{run}: expected {path.name} among its checkpoints; there is none. {remedy}")
    model = models.build(study.model, data.widths, len(study.labels.classes), cell.seed)
    layout = Layout.of(from_state_dict(model.state_dict()))
    identity = checkpoint.Identity(study_digest=digest, cell=name)
    weights = checkpoint.load(path, layout, identity).state.weights
    model.load_state_dict(to_state_dict(layout.unflatten(weights)))
    return model


def _silent(path: Path, reason: str) -> Said:
    return Said(recording=printable(path), outcome="no speech", reason=reason)


def _unreadable(path: Path, reason: str) -> Said:
    return Said(recording=printable(path), outcome="unreadable", reason=reason)


def _recording(number: int, path: Path, label: int) -> Recording:
    key = f"{number:06d}"
    utterance = Utterance(
        key=key, path=path, label="", corpus_label="", speaker=_PERSON, patient=_PERSON, groups={}, site=None
    )
    return Recording(key=key, speaker=_PERSON, patient=_PERSON, label=label, utterance=utterance)


def _said(path: Path, log_probs: Floats, fitted: _Fitted, classes: Sequence[str]) -> Said:
    at_own = calibration.tempered(log_probs[None], fitted.temperature)
    inside = conformal.sets_of(at_own, fitted.threshold, "least_ambiguous")[0]
    answer, probs = int(at_own[0].argmax()), np.exp(at_own[0])
    ranked = sorted(np.flatnonzero(inside).tolist(), key=lambda index: -float(probs[index]))
    sure, share = bool(probs[answer] >= fitted.least_probability), 100 * fitted.answered
    return Said(
        recording=printable(path),
        outcome="emotion" if sure else "not sure",
        emotion=classes[answer] if sure else None,
        probability=float(probs[answer]) if sure else None,
        emotions=tuple(classes[index] for index in ranked),
        reason=None
        if sure
        else f"the answer is less sure than the surest {share:.0f} in 100 of the run's own tests",
    )


def _notes_of_normalisation(study: Study, n_enrol: int, n_files: int) -> list[str]:
    scheme = study.normalisation.scheme
    if scheme == "speaker" and n_enrol + n_files < 2:
        raise SottovoceError(
            "Expected two recordings of the person or more: this study compares each with the person's others. Add "
            "clips with --enrol."
        )
    if n_enrol and not study.normalisation.by_person:
        raise SottovoceError(
            f"--enrol: expected none; this study standardises by {scheme!r} and takes nothing of a speaker."
        )
    if scheme == "speaker":
        return [
            "All recordings are taken to be one person's: each is compared with that person's others"
            + (
                f" and with {_clips(n_enrol)} to enrol by."
                if n_enrol
                else ", so that more recordings give better answers."
            )
        ]
    if scheme == "enrolment":
        return [
            f"All recordings are taken to be one person's, enrolled by {_clips(n_enrol)}."
            if n_enrol
            else "No clips to enrol by were given (--enrol): the person is compared with the study's public figures, "
            "and answers are worse."
        ]
    return []


def _clips(n: int) -> str:
    return "1 clip" if n == 1 else f"{n} clips"


def _notes_of_run(figures: Summary, cell: Cell) -> list[str]:
    arm = figures.arm(cell.arm)
    notes = []
    if arm.calibration is not None:
        sets = next(one for one in arm.calibration.sets if one.units == "speakers")
        span = (
            ""
            if sets.coverage.low is None
            else f" ({100 * sets.coverage.low:.0f} to {100 * (sets.coverage.high or 1):.0f})"
        )
        notes.append(
            f"The set should hold the right emotion {100 * sets.level:.0f} times in 100, for people like the "
            f"{arm.n_speakers} of the run; on them it did {100 * sets.coverage.value:.0f} times{span}."
        )
    if not figures.privacy.startswith(NOT_PRIVATE):
        notes.append(
            "The privacy figure is of the model's weights. The temperature, the sets and what counts as not sure were "
            "fitted on the run's exact answers, which no figure covers: hand them on where the recordings are public."
        )
    return [*notes, *WHAT_IT_CANNOT_TELL]


WHAT_IT_CANNOT_TELL = (
    "It names the emotion that a listener would call acted speech like this. It cannot tell what somebody feels, "
    "whether somebody is ill, or who speaks; act on no single recording.",
    "People, languages, rooms and microphones unlike the run's are heard worse, and then probabilities are too high.",
)


def as_plain(found: Predicted) -> Mapping[str, object]:
    """Returns everything as plain tables, for JSON."""
    from sottovoce.common.config import as_plain as plain

    table: Mapping[str, object] = plain(found)
    return table


def terminal(found: Predicted) -> "Group":
    """Returns a table with a line for each recording, and what must be known beside it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table("Recording", "heard", box=None, pad_edge=False)
    table.add_column("probability", justify="right")
    table.add_column(f"the right one is among these, {100 * found.level:.0f} times in 100")
    for one in found.said:
        heard = Text(one.emotion or one.outcome, style="bold" if one.emotion else "yellow")
        sure = "" if one.probability is None else f"{100 * one.probability:.0f} %"
        table.add_row(
            Text(Path(one.recording).name), heard, sure, Text(", ".join(one.emotions) or one.reason or "")
        )
    lines = [Text(note, style="dim") for note in found.notes]
    return Group(table, Text(f"{found.privacy}. Model {found.cell} of {found.run}.", style="dim"), *lines)
