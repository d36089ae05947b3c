"""What a study of mode `local` costs its patients, and what else could be had: the tables of `privacy plan`.

| table      | says                                                                                       |
|------------|--------------------------------------------------------------------------------------------|
| `study`    | the cost, seen from every side, and what is weak                                           |
| `promise`  | the words of the guarantee: what is protected, against whom, what it does not cover        |
| `noise`    | the noise multiplier for a target epsilon (the one asked for, or 1, 3 and 8)               |
| `deltas`   | epsilon at other deltas                                                                    |
| `patients` | epsilon if more or fewer took part, the mean draw the same, delta as their number calls for |

Guarantees:
  - Every figure is an upper bound; those of other studies are on a coarser grid, and so never too low.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from sottovoce.common.errors import PrivacyError
from sottovoce.common.privacy import accountant
from sottovoce.common.privacy.accountant import GRID
from sottovoce.common.privacy.plan import Cost, cost, counts_events, events, training_event
from sottovoce.common.privacy.planning import (
    FACTORS,
    NOT_COVERED,
    TARGETS,
    Numbers,
    delta_for,
    deltas_for,
)
from sottovoce.common.privacy_specs import LocalPrivacy


def tables(
    spec: LocalPrivacy, rounds: int, *, n_counts: int = 0, target_epsilon: float | None = None
) -> Iterator[tuple[str, Any]]:
    """Yields (name, table), each as soon as it is known."""
    found = cost(spec, rounds, n_counts=n_counts)
    yield "study", _study(spec, rounds, found)
    yield "promise", {**asdict(found.guarantee), "not_covered": NOT_COVERED}
    targets = TARGETS if target_epsilon is None else (target_epsilon,)
    yield "noise", [_noise(spec, rounds, n_counts, target) for target in targets]
    curve = accountant.curve(found.events, deltas_for(spec.delta, spec.n_patients_public))
    yield "deltas", [{"delta": delta, "epsilon": epsilon} for delta, epsilon in curve]
    yield "patients", [_with_patients(spec, rounds, n_counts, factor) for factor in FACTORS]


def _study(spec: LocalPrivacy, rounds: int, found: Cost) -> dict[str, Any]:
    return {
        "sentence": found.sentence(),
        "mode": spec.mode,
        "unit": spec.unit,
        "rounds": rounds,
        "spare_rounds": spec.spare_rounds,
        "steps": spec.steps_in(rounds),
        "evaluation_counts": [asdict(event) for event in found.events[1:]],
        "noise_multiplier": spec.noise_multiplier,
        "sampling_prob": spec.sampling_prob,
        "draw_cap": spec.draw_cap,
        "delta": found.delta,
        "epsilon": found.epsilon,
        "replace_one": found.replace_one,
        "rdp": found.rdp.epsilon,
        "rdp_dropped_orders": list(found.rdp.dropped_orders),
        "prv": None if found.prv is None else list(found.prv),
        "by_sites": list(found.by_sites),
        "record_epsilon": found.record_epsilon,
        "epsilon_at_usual_delta": found.epsilon_at_usual_delta,
        "simulated": found.simulated,
        "weak": list(found.weak),
    }


def _noise(spec: LocalPrivacy, rounds: int, n_counts: int, target: float) -> Numbers:
    event, counts = training_event(spec, spec.steps_in(rounds)), counts_events(spec, n_counts)
    try:
        noise = accountant.noise_for(target, spec.delta, event, spent=counts)
    except PrivacyError:
        # No noise reaches it: an answer, printed as such.
        return {"epsilon": target, "noise_multiplier": None}
    return {"epsilon": target, "noise_multiplier": noise}


def _with_patients(spec: LocalPrivacy, rounds: int, n_counts: int, factor: float) -> Numbers:
    n_patients = max(2, round(spec.n_patients_public * factor))
    delta = delta_for(spec.delta, n_patients)
    prob = min(1.0, spec.sampling_prob * spec.n_patients_public / n_patients)
    cap = spec.cap if factor == 1.0 else None
    other = replace(spec, n_patients_public=n_patients, sampling_prob=prob, cap=cap, delta=delta)
    grid = GRID if factor == 1.0 else 5 * GRID
    figure = accountant.epsilon(events(other, rounds, n_counts=n_counts), delta, grid=grid)
    return {"n_patients": n_patients, "sampling_prob": prob, "delta": delta, "epsilon": figure}
