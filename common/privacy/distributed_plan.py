"""What a study of mode `distributed` promises: its constants as mechanisms, as events, and as one sentence.

    mechanism = update_mechanism(study.privacy, n_sites=10)      # of each round's sum
    found = cost(events(study.privacy, rounds=30, n_sites=10, n_counts=1, tables=study.tables), study.privacy.delta)

The joint guarantee is `distributed.py`'s; here it gets the study's numbers, and nothing else decides them.

Guarantees:
  - Sites, coordinator, accountant and ledger take their constants from these functions, from the same frozen spec.
  - Evaluation counts go through a sum of the same kind, as one release of all patients and of all tables.
"""

import math
from dataclasses import replace
from functools import lru_cache

from sottovoce.common.errors import PrivacyError
from sottovoce.common.groups import Tables
from sottovoce.common.privacy.distributed import DistributedMechanism, finest_grid, least_noise
from sottovoce.common.privacy.distributed_accountant import DistributedEvent, epsilon
from sottovoce.common.privacy.stages import SIMULATED
from sottovoce.common.privacy_specs import (
    USUAL_DELTA,
    DistributedPrivacy,
    counts_norm,
    rounded_up,
    weaknesses,
)


@lru_cache(maxsize=64)
def update_mechanism(spec: DistributedPrivacy, *, n_sites: int) -> DistributedMechanism:
    """Returns what each round's sum goes through.

    Raises:
        PrivacyError: the ring of the secure sum cannot carry these constants.
    """
    return _mechanism(
        spec,
        n_sites,
        clip_norm=spec.clip_norm,
        noise_multiplier=spec.noise_multiplier,
        cap=spec.draw_cap,
        n_parameters=spec.n_parameters,
        grid=spec.grid,
    )


def counts_mechanism(spec: DistributedPrivacy, *, n_sites: int, tables: Tables) -> DistributedMechanism:
    """Returns what evaluation counts go through: all withheld patients, each with at most `counts_utterances`.

    All tables are one vector with one sensitivity (`counts_norm`). A recording is a whole number of grid steps.

    Raises:
        PrivacyError: the study pays for no counts, or the ring cannot carry them.
    """
    if spec.counts_noise_multiplier is None:
        raise PrivacyError(
            "This study pays for no evaluation counts: privacy.counts_noise_multiplier is missing."
        )
    norm = counts_norm(spec.counts_utterances, tables.per_recording)
    return _counts_mechanism(
        spec, n_sites, norm=norm, noise_multiplier=spec.counts_noise_multiplier, n_cells=tables.n_cells
    )


@lru_cache(maxsize=64)
def _counts_mechanism(
    spec: DistributedPrivacy, n_sites: int, *, norm: float, noise_multiplier: float, n_cells: int
) -> DistributedMechanism:
    finest = finest_grid(
        clip_norm=norm,
        noise_multiplier=noise_multiplier,
        n_sites=n_sites,
        n_min=spec.n_min,
        n_colluding=spec.n_colluding,
        cap=spec.n_patients_public,
        n_parameters=n_cells,
    )
    grid = 2.0 ** math.ceil(math.log2(finest))  # the next power of two that is no finer
    if grid > 1.0:  # a recording would be rounded to nothing, and the sum be noise alone
        raise PrivacyError(
            "No grid that tells single recordings fits into 32 bits: expected fewer groups, a smaller "
            "counts_utterances or a smaller n_patients_public."
        )
    return _mechanism(
        spec,
        n_sites,
        clip_norm=norm,
        noise_multiplier=noise_multiplier,
        cap=spec.n_patients_public,
        n_parameters=n_cells,
        grid=grid,
    )


def for_survivors(
    mechanism: DistributedMechanism, spec: DistributedPrivacy, n_summed: int
) -> DistributedMechanism:
    """Returns the mechanism with the public divisor of so many sites: a mean stays a mean when some were lost."""
    return replace(mechanism, expected_patients=spec.expected_patients * n_summed)


def events(
    spec: DistributedPrivacy, *, rounds: int, n_sites: int, n_counts: int, tables: Tables
) -> list[DistributedEvent]:
    """Returns what ledgers record for so many rounds (spare attempts too) and releases of evaluation counts."""
    charged = [training_event(spec, spec.steps_in(rounds), n_sites=n_sites)]
    if spec.counts_noise_multiplier is not None and n_counts:
        counts = counts_mechanism(spec, n_sites=n_sites, tables=tables)
        # Spare attempts here too: an attempt at a sum that was lost after its vectors were sent is spent.
        steps = n_counts + spec.spare_rounds
        charged.append(counts.event(sampling_prob=1.0, steps=steps, n_patients=spec.n_patients_public))
    return charged


def training_event(spec: DistributedPrivacy, steps: int, *, n_sites: int) -> DistributedEvent:
    """Returns so many sums of clipped gradients as the accountant's event."""
    mechanism = update_mechanism(spec, n_sites=n_sites)
    return mechanism.event(sampling_prob=spec.sampling_prob, steps=steps, n_patients=spec.n_patients_public)


def noise_for(
    spec: DistributedPrivacy,
    target_epsilon: float,
    *,
    rounds: int,
    n_sites: int,
    n_counts: int,
    tables: Tables,
) -> float:
    """Returns the smallest noise multiplier (to 0.1 %, rounded up) with which a study stays in target.

    What evaluation counts cost is spent beforehand: their noise is as the study says. Where the study states no grid,
    the finest one follows the noise.

    Raises:
        PrivacyError: no noise does.
    """
    counts = events(spec, rounds=rounds, n_sites=n_sites, n_counts=n_counts, tables=tables)[1:]
    if epsilon(counts, spec.delta) > target_epsilon:
        raise PrivacyError(
            f"Expected evaluation counts that cost less than epsilon {target_epsilon:g}; they cost "
            f"{rounded_up(epsilon(counts, spec.delta))} alone. Take more noise for them, or fewer."
        )

    def within(noise_multiplier: float) -> bool:
        noisier = replace(spec, noise_multiplier=noise_multiplier)
        steps = training_event(noisier, spec.steps_in(rounds), n_sites=n_sites)
        return epsilon([steps, *counts], spec.delta) <= target_epsilon

    return least_noise(within, spec.noise_multiplier)


def sentence(spec: DistributedPrivacy, charged: list[DistributedEvent], *, n_sites: int) -> str:
    """Returns the figure as one line, with what it rests on."""
    figure = epsilon(charged, spec.delta)
    said = f"epsilon {rounded_up(figure)} at delta {spec.delta:g} for each patient"
    if spec.delta > USUAL_DELTA:
        said += f" (epsilon {rounded_up(epsilon(charged, USUAL_DELTA))} at {USUAL_DELTA:g})"
    others = rounded_up(epsilon(charged, spec.delta, n_colluding=spec.n_min - 1))
    said += (
        f", as long as at most {spec.n_colluding} of the hospitals in a sum (of {spec.n_min} or more) "
        f"work{'s' if spec.n_colluding == 1 else ''} with the coordinator (epsilon {others} if all others do)"
    )
    if spec.max_sites_per_patient > 1:
        several = rounded_up(epsilon(charged, spec.delta, n_sites=spec.max_sites_per_patient))
        said += f"; epsilon {several} for a patient in {spec.max_sites_per_patient} hospitals"
    if weak := weaknesses(spec, n_sites=n_sites):
        said += f"; weak: {'; '.join(weak)}"
    return f"{SIMULATED}; this study would cost {said}" if spec.seeded_noise else said


def _mechanism(
    spec: DistributedPrivacy,
    n_sites: int,
    *,
    clip_norm: float,
    noise_multiplier: float,
    cap: int,
    n_parameters: int,
    grid: float | None,
) -> DistributedMechanism:
    grid_step = grid or finest_grid(
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
        n_sites=n_sites,
        n_min=spec.n_min,
        n_colluding=spec.n_colluding,
        cap=cap,
        n_parameters=n_parameters,
    )
    return DistributedMechanism(
        clip_norm=clip_norm,
        grid_step=grid_step,
        noise_multiplier=noise_multiplier,
        n_sites=n_sites,
        n_min=spec.n_min,
        n_colluding=spec.n_colluding,
        cap=cap,
        n_parameters=n_parameters,
        expected_patients=spec.expected_patients * n_sites,
        seeded_noise=spec.seeded_noise,
    )
