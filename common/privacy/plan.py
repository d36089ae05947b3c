"""The one place where clip, noise, sampling and accountant meet; it states what they promise together.

    units drawn by secret coins (`draw`) -> one gradient for each (`client/private`) -> `release`:
    clip -> integer grid -> sum -> integer noise -> divided by a public constant

Guarantees, for a site that makes `steps_per_round` releases in each of `rounds` rounds by `draw` and `release`:
  - Whoever sees all releases, the study, and everything of every other site, gains at most (epsilon, delta) on
    whether any one patient took part at all: add or remove the patient with all recordings.
  - epsilon is `cost(spec, rounds).epsilon`, an upper bound, for every number of patients up to `n_patients_public`.
  - The releases and the accounting take the same constants from the same frozen spec; none is derived from data.

It does not cover: a patient under two ids, other voices in a recording, features that were normalised by other
patients' recordings, what was published elsewhere, nor how long training took.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sottovoce.common.errors import PrivacyError
from sottovoce.common.privacy import accountant, prv
from sottovoce.common.privacy.accountant import Event
from sottovoce.common.privacy.clip import clip, quantised_sum
from sottovoce.common.privacy.noise import add_noise
from sottovoce.common.privacy.sampling import Indices, choose_recordings, draw_units, first_recordings
from sottovoce.common.privacy.source import Source
from sottovoce.common.privacy.stages import SIMULATED, NoisySum, PatientGradients, PrivateUpdate
from sottovoce.common.privacy_specs import (
    COUNT_CELLS,
    NOT_PRIVATE,
    USUAL_DELTA,
    LocalPrivacy,
    NoPrivacy,
    Private,
    counts_norm,
    rounded_up,
    weaknesses,
)


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """What is promised, to whom, against whom: the words that stand beside every figure."""

    unit: Literal["patient", "utterance"]
    adjacency: str = "add or remove one patient, with all recordings"
    adversary_view: str = (
        "every release of the site, the whole study file, and everything that other sites hold; "
        "not the site's coins, noise, or gradients before noise"
    )
    mechanism: str = "Poisson-sampled Gaussian on an integer grid, draws capped"
    accountant: str = "PLD (dp-accounting), pessimistic; RDP and PRV beside it"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a study costs each patient: one guarantee, and the same seen from other sides.

    `epsilon` is the patient's in every unit. `record_epsilon` is one recording's (replaced by another), in unit
    `utterance` only: a smaller figure about a smaller thing. `by_sites[k - 1]` is for a patient who is in k sites.
    """

    epsilon: float
    delta: float
    replace_one: float
    rdp: accountant.Rdp
    prv: tuple[float, float] | None
    by_sites: tuple[float, ...]
    record_epsilon: float | None
    epsilon_at_usual_delta: float
    weak: tuple[str, ...]
    simulated: bool
    guarantee: Guarantee
    events: tuple[Event, ...]

    def sentence(self) -> str:
        """Returns the figure as one line, with what belongs beside it."""
        usual = self.epsilon_at_usual_delta
        return _sentence(self.epsilon, self.delta, usual, weak=self.weak, simulated=self.simulated)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One step's draw: which recordings, and to which row of the gradient matrix each belongs. Private."""

    recordings: Indices
    rows: Indices
    n_rows: int

    def __repr__(self) -> str:
        return "Draw(...)"  # who was drawn is the secret that amplification rests on


def draw(
    spec: Private, owners: Indices, n_patients: int, source: Source, *, withdrawn: Collection[int] = ()
) -> Draw:
    """Draws one step's units by the secret coins; the same in both private modes.

    `owners[i]` is the patient (0 to n_patients - 1) of recording i.

    Raises:
        PrivacyError: the site has more patients than the study allows for.
    """
    _check_source(spec, source)
    if n_patients > spec.n_patients_public:
        raise PrivacyError(
            f"Expected at most n_patients_public={spec.n_patients_public} patients; this site has more. "
            "It cannot take part in this study."
        )
    if isinstance(spec, LocalPrivacy) and spec.unit == "utterance":
        return _draw_recordings(spec, owners, source, withdrawn)
    patients = draw_units(
        n_patients, sampling_prob=spec.sampling_prob, cap=spec.draw_cap, source=source, withdrawn=withdrawn
    )
    recordings = choose_recordings(owners, patients, n_most=spec.utterances_per_patient, source=source)
    present, rows = np.unique(owners[recordings], return_inverse=True)
    return Draw(recordings=recordings, rows=rows.astype(np.int64), n_rows=len(present))


def release(gradients: PatientGradients, spec: LocalPrivacy, source: Source) -> PrivateUpdate:
    """Makes one step's gradients private: the only way from `PatientGradients` to `PrivateUpdate`.

    Raises:
        PrivacyError: more rows than the cap, a gradient that is not finite, or a source that is not the spec's.
    """
    _check_source(spec, source)
    if len(gradients.values) > spec.draw_cap:
        raise PrivacyError(f"Expected at most cap={spec.draw_cap} rows of gradients; draw them with `draw`.")
    total = quantised_sum(clip(gradients, spec.clip_norm), spec.grid_step)
    return _decoded(add_noise(total, spec.noise_multiplier, source), spec.expected_patients)


def after_steps(values: np.ndarray, steps: Sequence[PrivateUpdate]) -> PrivateUpdate:
    """Marks what was computed from `steps` and public numbers alone (a round's change of weights) as private.

    This is post-processing: it costs nothing. The caller promises that no other private number is in `values`.
    """
    return PrivateUpdate(
        values=np.asarray(values, dtype=np.float32),
        steps=sum(step.steps for step in steps),
        simulated=any(step.simulated for step in steps),
    )


def events(spec: LocalPrivacy, rounds: int, *, n_counts: int = 0) -> list[Event]:
    """Returns what the ledger records for so many rounds and releases of evaluation counts.

    Spare rounds are among them. Counts and updates are added up: the budget is of all patients and of all runs, and
    where groups' weights move (`group_weights.py`) who is trained on is counted too.
    """
    return [training_event(spec, spec.steps_in(rounds)), *counts_events(spec, n_counts)]


def training_event(spec: LocalPrivacy, steps: int) -> Event:
    """Returns so many private steps as the accountant's event."""
    return Event(
        noise_multiplier=spec.noise_multiplier,
        sampling_prob=spec.sampling_prob,
        steps=steps,
        cap=spec.draw_cap,
        n_patients=spec.n_patients_public,
        records_per_patient=spec.records_per_patient,
    )


def counts_events(spec: LocalPrivacy, n_counts: int) -> list[Event]:
    """Returns so many releases of evaluation counts as an event; none where the study pays for none."""
    if spec.counts_noise_multiplier is None or n_counts == 0:
        return []
    return [
        Event(
            noise_multiplier=spec.counts_noise_multiplier,
            sampling_prob=1.0,
            steps=n_counts,
            cap=None,
            n_patients=spec.n_patients_public,
        )
    ]


def release_counts(
    contributions: PatientGradients, spec: LocalPrivacy, source: Source, *, n_tables: int
) -> Indices:
    """Makes evaluation counts private: one row of contributions for each withheld patient, in whole recordings.

    A recording is in at most `n_tables` tables; all of them together are one release with one sensitivity. A patient's
    row is clipped to it (`counts_norm`): `counts_utterances` recordings in one cell of each table, the worst case.
    Returns noisy counts, rounded to whole recordings, as int64: they may be negative.

    Raises:
        PrivacyError: the study pays for no counts, or the source is not the spec's.
    """
    _check_source(spec, source)
    if spec.counts_noise_multiplier is None:
        raise PrivacyError(
            "This study pays for no evaluation counts: privacy.counts_noise_multiplier is missing."
        )
    bound = counts_norm(spec.counts_utterances, n_tables)
    total = quantised_sum(clip(contributions, bound), 1 / COUNT_CELLS)
    noisy = add_noise(total, spec.counts_noise_multiplier, source)
    counts: Indices = np.rint(noisy.values * noisy.grid_step).astype(np.int64)
    return counts


def cost(spec: LocalPrivacy, rounds: int, *, n_counts: int = 0) -> Cost:
    """Returns what the study costs each patient, with everything that is printed beside the figure."""
    all_events, delta = events(spec, rounds, n_counts=n_counts), spec.delta
    by_sites = tuple(
        accountant.epsilon(accountant.in_sites(all_events, k), delta)
        for k in range(1, spec.max_sites_per_patient + 1)
    )
    one_record = accountant.per_record(all_events)
    return Cost(
        epsilon=by_sites[0],
        delta=delta,
        replace_one=accountant.epsilon(all_events, delta, adjacency="replace_one"),
        rdp=accountant.rdp_epsilon(all_events, delta),
        prv=prv.bracket(all_events, delta),
        by_sites=by_sites,
        record_epsilon=accountant.epsilon(one_record, delta, adjacency="replace_one")
        if spec.unit == "utterance"
        else None,
        epsilon_at_usual_delta=accountant.epsilon(all_events, min(delta, USUAL_DELTA)),
        weak=weaknesses(spec),
        simulated=spec.seeded_noise,
        guarantee=Guarantee(unit=spec.unit),
        events=tuple(all_events),
    )


def stamp(spec: NoPrivacy | LocalPrivacy, rounds: int, *, n_counts: int = 0) -> str:
    """Returns what every artefact of a study says of its privacy, in one line.

    Raises:
        PrivacyError: the study has no finite epsilon: it promises nothing.
    """
    if isinstance(spec, NoPrivacy):
        return NOT_PRIVATE
    charged, delta = events(spec, rounds, n_counts=n_counts), spec.delta
    usual = accountant.epsilon(charged, min(delta, USUAL_DELTA))
    figure = accountant.epsilon(charged, delta)
    if not math.isfinite(figure):
        raise PrivacyError(
            f"privacy: this study has no finite epsilon at delta {delta:g}; expected more noise, fewer steps, or a "
            "larger cap on the draw. Ask `sottovoce privacy plan`."
        )
    said = _sentence(figure, delta, usual, weak=weaknesses(spec), simulated=spec.seeded_noise)
    if spec.max_sites_per_patient == 1:
        return said
    several = accountant.epsilon(accountant.in_sites(charged, spec.max_sites_per_patient), delta)
    return f"{said}; epsilon {rounded_up(several)} for a patient in {spec.max_sites_per_patient} hospitals"


def _sentence(
    epsilon: float, delta: float, at_usual_delta: float, *, weak: Sequence[str], simulated: bool
) -> str:
    said = f"epsilon {rounded_up(epsilon)} at delta {delta:g} for each patient"
    if delta > USUAL_DELTA:
        said += f" (epsilon {rounded_up(at_usual_delta)} at {USUAL_DELTA:g})"
    if weak:
        said += f"; weak: {'; '.join(weak)}"
    return f"{SIMULATED}; this study would cost {said}" if simulated else said


def _check_source(spec: Private, source: Source) -> None:
    if source.simulated and not spec.seeded_noise:
        raise PrivacyError(
            "Expected a secret source; came a seeded one, and the study does not say seeded_noise = true."
        )


def _draw_recordings(spec: LocalPrivacy, owners: Indices, source: Source, withdrawn: Collection[int]) -> Draw:
    # Which recordings of a patient with too many take part is a fixed rule. One more recording may push another
    # out, for good: the recording's own figure is therefore for replacing one, not for adding one.
    eligible = first_recordings(owners, n_most=spec.utterances_per_patient)
    gone = np.flatnonzero(np.isin(owners[eligible], list(withdrawn)))
    units = draw_units(
        len(eligible), sampling_prob=spec.sampling_prob, cap=spec.draw_cap, source=source, withdrawn=gone
    )
    return Draw(recordings=eligible[units], rows=np.arange(len(units)), n_rows=len(units))


def _decoded(noisy: NoisySum, expected_units: float) -> PrivateUpdate:
    values = noisy.values * (noisy.grid_step / expected_units)
    return PrivateUpdate(values=values.astype(np.float32), steps=1, simulated=noisy.simulated)
