"""What a study promises its patients: public constants, and the formulas that follow from them.

Nothing here is taken from private data: who writes a study writes these numbers, and a hospital whose patients
do not fit (`n_patients_public`) does not take part.

Guarantees:
  - delta is below 1 / N^1.1, and at most 1e-5 unless the study says `small_population = true`.
  - Whatever makes a figure weak is named (`weaknesses`).
  - The default cap and the default grid are formulas of the constants: every reader gets the same numbers.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from sottovoce.common.config import Interval

NOT_PRIVATE = "NOT PRIVATE"  # the stamp of mode `none`
USUAL_DELTA = 1e-5
FEW_PATIENTS = 1000  # below, the word "strong" is never earned
GRID_CELLS = 2**20  # a clipping norm in grid steps, by default
FEWEST_CELLS, MOST_CELLS = 2**8, 2**26  # at most 2^26: a patient's squared norm stays an exact float64
COUNT_CELLS = 2**10  # a counted recording, in grid steps: noise on counts is finer than the counts are
MAX_STEPS = 10_000_000
MOST_SITES = 50  # of a secure sum: everybody deals shares to everybody
CAP_LOG_PROB = -math.log(1e-15)  # a draw beyond the default cap has at most this probability, 1e-15


@dataclass(frozen=True, kw_only=True)
class NoPrivacy:
    """Research only; every artefact says NOT PRIVATE."""

    mode: Literal["none"]


@dataclass(frozen=True, kw_only=True)
class LocalPrivacy:
    """DP-SGD inside the site: whatever leaves is private already, and nobody outside needs to be trusted.

    Each step draws every patient with `sampling_prob` (at most `cap` of them), takes at most
    `utterances_per_patient` recordings of each, clips the mean of their gradients to `clip_norm`, adds Gaussian
    noise of deviation `noise_multiplier * clip_norm` to the sum and divides by `expected_patients`.

    | unit        | drawn and clipped         | the ledger's figure                                           |
    |-------------|---------------------------|---------------------------------------------------------------|
    | `patient`   | a patient                 | the patient's                                                 |
    | `utterance` | one recording             | the patient's too, from at most `utterances_per_patient`      |
    |             |                           | recordings each drawn by itself; the recording's is beside it |

    `n_patients_public` is an upper bound for every site; `expected_patients` counts units (patients or
    recordings). `max_sites_per_patient` is a promise about enrolment: figures for 1 to so many sites are printed.
    `seeded_noise` is for simulation: reproducible, and NOT PRIVATE.

    A site that crashes in mid-round burns what it had reserved; `spare_rounds` more are reserved and priced, so that
    it can go on. Evaluation counts leave a site only with `counts_noise_multiplier`: of each withheld patient at most
    `counts_utterances` recordings are counted, in one release of all tables (`counts_norm`).

    Noise goes to every trained parameter. `head` trains the last layers alone; `low_rank` trains them and adapters of
    rank `rank` (Hu et al. 2021). Dropout is off in private steps: its coins would be public.
    """

    mode: Literal["local"]
    clip_norm: Annotated[float, Interval(1e-6, 1e6)]
    noise_multiplier: Annotated[float, Interval(0.05, 1e5)]
    sampling_prob: Annotated[float, Interval(1e-6, 1.0)]
    n_patients_public: Annotated[int, Interval(2, 1_000_000)]
    expected_patients: Annotated[float, Interval(1e-3, 1e7)]
    steps_per_round: Annotated[int, Interval(1, 100_000)]
    delta: Annotated[float, Interval(1e-10, 0.5)]
    unit: Literal["patient", "utterance"] = "patient"
    utterances_per_patient: Annotated[int, Interval(1, 128)] = 8
    cap: Annotated[int, Interval(1, 10_000_000)] | None = None
    grid: Annotated[float, Interval(1e-15, 1e4)] | None = None
    small_population: bool = False
    max_sites_per_patient: Annotated[int, Interval(1, 50)] = 1
    seeded_noise: bool = False
    spare_rounds: Annotated[int, Interval(0, 1000)] = 1
    counts_noise_multiplier: Annotated[float, Interval(0.05, 1e5)] | None = None
    counts_utterances: Annotated[int, Interval(1, 128)] = 8
    trained: Literal["all", "head", "low_rank"] = "all"
    rank: Annotated[int, Interval(1, 256)] = 4

    def steps_in(self, rounds: int) -> int:
        """How many private steps a study of so many rounds reserves: the spare rounds too."""
        return (rounds + self.spare_rounds) * self.steps_per_round

    @property
    def n_units(self) -> int:
        """The largest number of units a site can have: patients, or recordings."""
        return self.n_patients_public * self.records_per_patient

    @property
    def records_per_patient(self) -> int:
        """How many units of a draw one patient can be."""
        return 1 if self.unit == "patient" else self.utterances_per_patient

    @property
    def draw_cap(self) -> int:
        """The largest draw: the study's, or where Bernstein's inequality leaves a larger one 1e-15.

        >>> LocalPrivacy(
        ...     mode="local", clip_norm=1.0, noise_multiplier=1.0, sampling_prob=0.064, n_patients_public=1000,
        ...     expected_patients=64, steps_per_round=10, delta=1e-5,
        ... ).draw_cap
        141
        """
        return self.cap or default_cap(self.n_units, self.sampling_prob)

    @property
    def grid_step(self) -> float:
        """The step that gradients are rounded to: the study's, or a clipping norm in 2^20 parts."""
        return self.clip_norm / GRID_CELLS if self.grid is None else self.grid


@dataclass(frozen=True, kw_only=True)
class DistributedPrivacy:
    """One noisy sum over all sites in each round, and nobody sees a site's own part of it.

    Each round is one step of DP-SGD as if the recordings were in one place: every patient of every site is drawn with
    `sampling_prob`, clipped as in mode `local`, and each site adds a share of the noise under masks. With `n_min`
    sites in the sum, `n_colluding` of which work against the patient, what is left of the noise has a deviation of
    at least `noise_multiplier * clip_norm`. The model moves by `training.learning_rate` times the decoded sum, by the
    study's strategy: there is no optimiser at the sites.

    `n_patients_public`, `cap` and `expected_patients` are of each site, and the same for all. `n_parameters` is how
    many numbers the model has: the accountant needs it, and it is checked before anything is drawn. Every attempt at a
    round that reached its masked sum is spent; `spare_rounds` attempts more than rounds are reserved and priced.
    """

    mode: Literal["distributed"]
    clip_norm: Annotated[float, Interval(1e-6, 1e6)]
    noise_multiplier: Annotated[float, Interval(0.05, 1e5)]
    sampling_prob: Annotated[float, Interval(1e-6, 1.0)]
    n_patients_public: Annotated[int, Interval(2, 1_000_000)]
    expected_patients: Annotated[float, Interval(1e-3, 1e7)]
    n_parameters: Annotated[int, Interval(1, 100_000_000)]
    n_min: Annotated[int, Interval(3, 50)]
    n_colluding: Annotated[int, Interval(1, 49)]
    delta: Annotated[float, Interval(1e-10, 0.5)]
    utterances_per_patient: Annotated[int, Interval(1, 128)] = 8
    cap: Annotated[int, Interval(1, 10_000_000)] | None = None
    grid: Annotated[float, Interval(1e-15, 1e4)] | None = None
    small_population: bool = False
    max_sites_per_patient: Annotated[int, Interval(1, 50)] = 1
    seeded_noise: bool = False
    spare_rounds: Annotated[int, Interval(0, 1000)] = 1
    counts_noise_multiplier: Annotated[float, Interval(0.05, 1e5)] | None = None
    counts_utterances: Annotated[int, Interval(1, 128)] = 8

    def steps_in(self, rounds: int) -> int:
        """How many sums a study of so many rounds reserves: the spare attempts too."""
        return rounds + self.spare_rounds

    @property
    def draw_cap(self) -> int:
        """The largest draw of a site: the study's, or where Bernstein's inequality leaves a larger one 1e-15."""
        return self.cap or default_cap(self.n_patients_public, self.sampling_prob)


PrivacySpec = NoPrivacy | LocalPrivacy | DistributedPrivacy
Private = LocalPrivacy | DistributedPrivacy


def default_cap(n_units: int, sampling_prob: float) -> int:
    """Returns a cap on draws of so many units that binds with probability 1e-15, by Bernstein's inequality."""
    mean, third = n_units * sampling_prob, CAP_LOG_PROB / 3
    beyond = third + math.sqrt(third**2 + 2 * CAP_LOG_PROB * mean * (1 - sampling_prob))
    return min(n_units, math.ceil(mean + beyond))


def counts_norm(n_recordings: int, n_tables: int) -> float:
    """Returns how far one patient moves a release of counts, at most, in the L2 norm: the sensitivity.

    A recording adds 1 to one cell of each of the `n_tables` tables that it is in, a vector of norm sqrt(n_tables); of
    a patient at most `n_recordings` count, and where they agree in truth, answer and groups their vectors point the
    same way. So it is n_recordings * sqrt(n_tables), and no less. Rounded up to a whole part of 1/1024, exactly.

    >>> counts_norm(8, 1), counts_norm(8, 4), counts_norm(8, 2)
    (8.0, 16.0, 11.314453125)
    """
    squared = (n_recordings * COUNT_CELLS) ** 2 * n_tables
    return (math.isqrt(squared - 1) + 1) / COUNT_CELLS


def largest_delta(n_patients: int) -> float:
    """Returns the delta that a study of so many patients must stay below.

    >>> round(largest_delta(24), 4), largest_delta(100_000) < 1e-5
    (0.0303, True)
    """
    return float(n_patients**-1.1)


def problems(spec: PrivacySpec, *, rounds: int, n_sites: int) -> list[str]:
    """Returns what is wrong between constants that are right one by one, each with its key."""
    match spec:
        case NoPrivacy():
            return []
        case LocalPrivacy():
            return [
                *_delta_problems(spec, spec.n_patients_public),
                *_draw_problems(spec, spec.n_units),
                *_size_problems(spec, rounds, n_sites),
            ]
        case DistributedPrivacy():
            return [
                *_delta_problems(spec, spec.n_patients_public * n_sites),
                *_draw_problems(spec, spec.n_patients_public),
                *_site_problems(spec, n_sites),
            ]


def rounded_up(epsilon: float) -> str:
    """Returns a figure with two digits: an upper bound that was rounded to the nearest would be none."""
    return f"{math.ceil(100 * epsilon) / 100:.2f}" if math.isfinite(epsilon) else "inf"


def weaknesses(spec: Private, *, n_sites: int = 1) -> tuple[str, ...]:
    """Returns why figures of this study are printed with the word `weak`; empty if nothing is.

    In mode `distributed` a patient hides among those of all `n_sites` sites; in mode `local` among the site's own.
    """
    reasons = []
    n_patients = spec.n_patients_public * (n_sites if isinstance(spec, DistributedPrivacy) else 1)
    if n_patients < FEW_PATIENTS:
        reasons.append(f"{n_patients} patients at most, fewer than {FEW_PATIENTS:,}")
    if spec.small_population:
        reasons.append(
            f"delta {spec.delta:g} (small_population), with the epsilon at {USUAL_DELTA:g} beside it"
        )
    if isinstance(spec, LocalPrivacy) and spec.unit == "utterance":
        reasons.append("recordings are drawn and clipped one by one, not patients")
    return tuple(reasons)


def _delta_problems(spec: Private, n_patients: int) -> list[str]:
    found, largest = [], largest_delta(n_patients)
    if spec.delta >= largest:
        of_all = "n_patients_public" if n_patients == spec.n_patients_public else "(all sites' patients)"
        found.append(f"privacy.delta: expected less than {of_all}^-1.1 = {largest:.3g}; came {spec.delta:g}.")
    if spec.delta > USUAL_DELTA and not spec.small_population:
        found.append(
            f"privacy.delta: expected at most {USUAL_DELTA:g}; came {spec.delta:g}. A study of few patients may "
            "set small_population = true; its figures are then printed as weak."
        )
    return found


def _draw_problems(spec: Private, n_units: int) -> list[str]:
    found, mean = [], n_units * spec.sampling_prob
    if spec.cap is not None and not mean <= spec.cap <= n_units:
        found.append(
            f"privacy.cap: expected between the mean draw {mean:g} and all {n_units}; came {spec.cap}. "
            "Leave it out for a cap that practically never binds."
        )
    if spec.expected_patients > n_units:
        found.append(
            f"privacy.expected_patients: expected at most {n_units}; came {spec.expected_patients:g}."
        )
    return found


def _size_problems(spec: LocalPrivacy, rounds: int, n_sites: int) -> list[str]:
    found, cells = [], spec.clip_norm / spec.grid_step
    if not FEWEST_CELLS <= cells <= MOST_CELLS:
        found.append(
            f"privacy.grid: expected clip_norm / grid in [2^8, 2^26]; came {cells:g}. Leave it out for 2^20."
        )
    if spec.steps_in(rounds) > MAX_STEPS:
        found.append(f"privacy.steps_per_round: expected at most {MAX_STEPS:,} steps in all rounds together.")
    return found + _enrolment_problems(spec, n_sites)


def _site_problems(spec: DistributedPrivacy, n_sites: int) -> list[str]:
    found = _enrolment_problems(spec, n_sites)
    if not 1 <= spec.n_colluding < spec.n_min <= n_sites:
        found.append(
            f"privacy.n_min, n_colluding: expected 1 <= n_colluding < n_min <= n_sites={n_sites}; came n_colluding="
            f"{spec.n_colluding}, n_min={spec.n_min}."
        )
    if n_sites > MOST_SITES:
        found.append(f"federation.n_sites: expected at most {MOST_SITES} for secure sums; came {n_sites}.")
    return found


def _enrolment_problems(spec: Private, n_sites: int) -> list[str]:
    if spec.max_sites_per_patient <= n_sites:
        return []
    return [
        f"privacy.max_sites_per_patient: expected at most n_sites={n_sites}; came {spec.max_sites_per_patient}."
    ]
