"""The private rows of docs/results.md: RAVDESS at one site, patient by patient and recording by recording.

The encoder's stream is reduced by a public map to few columns: principal ones of the embedded synthetic voices, which
`server/pretrain.py` fits, signs and names by a SHA-256. Noise follows from an epsilon, the rate from the noise.

How the settings were chosen: on 60 other voices of the same generator (seed 2), 20 to train on and 40 to score, as
many recordings each as RAVDESS has. Compared were 8 to 256 principal columns, whitened or not, 300 and 16 pooled
statistics, clipping from 0.1 to 2, 20 to 120 steps, averaged iterates, and rates.
From 8 to 16 columns came out alike for patients, from 32 to 128 for recordings; the most of them were taken, since
directions of synthetic voices are not all that real ones have. A map by the voices' labels came out better there and
was not taken: it would have been judged on voices of the very generator whose labels it was fitted to.

Guarantees:
  - No figure of RAVDESS decides a setting, a reduction or a rate.
  - The epsilon that a study costs is at most the one that its row is named after.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sottovoce.common.initial import Initial
from sottovoce.common.initial import load as load_initial
from sottovoce.common.keys import SigningKey
from sottovoce.common.preparation import cache_folder
from sottovoce.common.pretrained import looking_in
from sottovoce.common.privacy import accountant, plan
from sottovoce.common.privacy.accountant import Event
from sottovoce.common.progress import show_progress
from sottovoce.common.run_files import read_run
from sottovoce.common.study import Study, load, loads
from sottovoce.common.summary import Estimate
from sottovoce.common.summary import read as read_summary
from sottovoce.server.pretrain import Plan, pretrain
from sottovoce.simulations.cells import FEDERATED
from sottovoce.simulations.pages import SCENARIOS, estimate, made, percent, points, table
from sottovoce.simulations.prepare import synthesize_into
from sottovoce.simulations.public_figures import CORPUS
from sottovoce.simulations.skew import Difference, arm, difference
from sottovoce.simulations.utility import private, with_values

Unit = Literal["patient", "utterance"]
SIGNER = "make results"
RECORD_DELTA = 1e-5


@dataclass(frozen=True, kw_only=True)
class Case:
    """A private row: what is protected, at which epsilon, and its bar: a UAR, or a largest loss, in shares."""

    unit: Unit
    epsilon: float
    bar: float

    @property
    def name(self) -> str:
        """
        >>> Case(unit="patient", epsilon=3.0, bar=0.37).name
        'private-patient-epsilon-3'
        """
        return f"private-{self.unit}-epsilon-{self.epsilon:g}"


@dataclass(frozen=True, kw_only=True)
class Way:
    """A unit's scenario, how many columns its public map has, and its learning rate times the noise multiplier."""

    scenario: str
    columns: int
    rate: float
    like: str  # the column of docs/results.md that standardises as this does


WAYS: dict[Unit, Way] = {
    "patient": Way(scenario="results-private", columns=16, rate=0.75, like="transductive"),
    "utterance": Way(scenario="results-private-utterance", columns=128, rate=4.0, like="enrolment"),
}
CASES = (
    *(
        Case(unit="patient", epsilon=epsilon, bar=bar)
        for epsilon, bar in ((8.0, 0.44), (3.0, 0.37), (1.0, 0.27))
    ),
    *(Case(unit="utterance", epsilon=epsilon, bar=bar) for epsilon, bar in ((8.0, -0.015), (3.0, -0.065))),
)


@dataclass(frozen=True, kw_only=True)
class PrivateRow:
    """A finished private study; `loss` is its UAR less that of the same study without privacy."""

    case: Case
    study: Study
    uar: Estimate
    without: Estimate
    loss: Difference
    stamp: str


def private_rows(ravdess: Path, runs: Path, n_seeds: int, workers: int) -> list[PrivateRow]:
    """Makes the private runs, and for each unit the same study without privacy."""
    rows = []
    for case in CASES:
        way, folder = WAYS[case.unit], runs / f"public-{case.unit}"
        base = (SCENARIOS / f"{way.scenario}.toml").read_text(encoding="utf-8")
        public = _public(base, way, folder, workers)
        with looking_in(folder):
            ours, theirs = (
                made(text, runs / f"{name}-{n_seeds}-seeds", data={"ravdess": ravdess}, workers=workers)
                for name, text in (
                    (case.name, study_text(case, base, public, n_seeds)),
                    (f"private-{case.unit}-none", without_privacy(case, base, public, n_seeds)),
                )
            )
        rows.append(_row(case, ours, theirs))
    return rows


def _row(case: Case, ours: Path, theirs: Path) -> PrivateRow:
    study = load(ours / "study.toml")
    uars = [read_summary(run / "metrics.json").arm(FEDERATED).uar for run in (ours, theirs)]
    return PrivateRow(
        case=case,
        study=study,
        uar=uars[0],
        without=uars[1],
        loss=difference(arm([ours], FEDERATED), arm([theirs], FEDERATED), len(study.labels.classes)),
        stamp=read_run(ours / "run.json").stamp,
    )


def _public(base: str, way: Way, folder: Path, workers: int) -> Initial:
    """Makes the signed file with the public map, or finds one of the same scenario and the same voices."""
    from sottovoce.simulations.voices.corpus import corpus_digest

    made_of = hashlib.sha256(f"{base}\n{corpus_digest(CORPUS)}\n{way.columns}".encode()).hexdigest()
    file = folder / f"voices-{way.columns}-columns-{made_of[:16]}.initial.safetensors"
    if file.exists():
        return load_initial(file)
    folder.mkdir(parents=True, exist_ok=True)
    with show_progress(quiet=False) as on_event:
        place = cache_folder() / "voices" / f"voices-{corpus_digest(CORPUS)[:16]}"
        voices = synthesize_into(CORPUS, place, workers=workers, on_event=on_event)
        return pretrain(
            loads(base),
            {"voices": voices},
            key=SigningKey.generate(),  # it signs nothing else
            out=file,
            signed_by=SIGNER,
            plan=Plan(method="statistics", columns=way.columns),
            workers=workers,
            on_event=on_event,
        )


def study_text(case: Case, base: str, public: Initial, n_seeds: int) -> str:
    """Returns the study of a row: the scenario with the public map, the noise, the rate and the seeds."""
    way = WAYS[case.unit]
    noise = noise_of(case, loads(base))
    text = with_values(
        base,
        {
            "noise_multiplier": noise,
            "learning_rate": float(f"{way.rate / noise:.3g}"),
            "seeds": list(range(n_seeds)),
            "purpose": f'"research"\ninitial_signed_by = "{public.public_key}"',
        },
    )
    mapped = f'pooling = "statistics"\nreduction = {{ sha256 = "{public.sha256}", columns = {way.columns} }}'
    return text.replace('pooling = "statistics"', mapped, 1)


def without_privacy(case: Case, base: str, public: Initial, n_seeds: int) -> str:
    """Returns the same study in mode `none`: the same columns and normalisation, trained as long as it takes."""
    text = study_text(case, base, public, n_seeds)
    first, last = text.index("[privacy]"), text.index("[evaluation]")
    plain = text[:first] + '[privacy]\nmode = "none"\n\n' + text[last:]
    return with_values(plain, {"learning_rate": 0.02, "momentum": 0.0, "rounds": 30})


def noise_of(case: Case, study: Study) -> float:
    """Returns the noise multiplier: for a patient by the study's own accounting, for a recording by a recording's."""
    spec = private(study)
    steps = spec.steps_in(study.federation.rounds)
    if case.unit == "patient":
        return accountant.noise_for(case.epsilon, spec.delta, plan.training_event(spec, steps))
    return accountant.noise_for(case.epsilon, RECORD_DELTA, record_event(study))


def record_event(study: Study) -> Event:
    """Returns all steps of a study as one recording among all sees them: it is there or not."""
    spec = private(study)
    event = plan.training_event(spec, spec.steps_in(study.federation.rounds))
    return replace(event, n_patients=spec.n_units, records_per_patient=1, cap=None)


def private_block(rows: Sequence[PrivateRow], pooled: Mapping[str, float]) -> str:
    """Returns the table and what stands with it; `pooled` is the UAR of the page's columns, by title."""
    cells = [
        (
            row.case.unit,
            f"{row.case.epsilon:g}",
            estimate(row.uar),
            percent(row.without.value),
            points(row.loss.value, row.loss.low, row.loss.high),
            _against(row, pooled),
            _bar(row, pooled),
            f"{private(row.study).noise_multiplier:.2f}",
            str(WAYS[row.case.unit].columns),
            row.stamp,
        )
        for row in rows
    ]
    head = (
        "unit",
        "epsilon",
        "UAR %",
        "without privacy",
        "less that",
        "less the pooled column",
        "bar",
        "noise",
        "columns",
        "what the patient is told",
    )
    return f"{_TEXT}\n{table(head, cells)}"


def _against(row: PrivateRow, pooled: Mapping[str, float]) -> str:
    like = WAYS[row.case.unit].like
    return f"{like} {points(row.uar.value - pooled[like], None, None)}" if like in pooled else ""


def _bar(row: PrivateRow, pooled: Mapping[str, float]) -> str:
    """Returns the verdict; a loss has to be within its bar against the same columns and against the page's best."""
    reached = row.uar.value if row.case.unit == "patient" else row.loss.value
    like = WAYS[row.case.unit].like
    if row.case.unit == "utterance" and like in pooled:
        reached = min(reached, row.uar.value - pooled[like])
    return f"{100 * row.case.bar:g}: {'met' if reached >= row.case.bar else 'missed'}"


_TEXT = """\
One site with 19 or 20 patients to train on, softmax regression on a few columns, everybody in every step. Simulated
noise: NOT PRIVATE here; epsilon is what the same study costs with secret noise. **patient**: add or remove one patient,
delta 0.03 (`small_population`, weak), standardised by each patient's own recordings. **utterance**: add or remove one
recording, delta 1e-5, standardised by four enrolment recordings that nobody trains on and that are NOT covered; a
patient's own figure is far larger, and stands in the last column. "Without privacy" is the same study on the same
columns in mode `none`; "the pooled column" is the one at the top that standardises alike, without any reduction.
A loss meets its bar where both do.
"""
