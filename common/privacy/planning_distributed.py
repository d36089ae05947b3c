"""What a study of mode `distributed` costs its patients, and what else could be had: the tables of `privacy plan`.

| table      | says                                                                                       |
|------------|--------------------------------------------------------------------------------------------|
| `study`    | the cost, seen from every side: other numbers of colluding hospitals above all             |
| `promise`  | the words of the guarantee: what is protected, against whom, what it does not cover        |
| `noise`    | the noise multiplier for a target epsilon (the one asked for, or 1, 3 and 8)               |
| `deltas`   | epsilon at other deltas                                                                    |
| `patients` | epsilon if more or fewer took part, the mean draw the same, delta as their number calls for |
| `sums`     | other `n_min` and `n_colluding`: the noise to be added, and what today's would be worth     |

Keys that mode `local` has too mean what they mean there (`planning_local.py`).

Guarantees:
  - Every figure is an upper bound.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from sottovoce.common.errors import PrivacyError
from sottovoce.common.privacy import distributed_plan
from sottovoce.common.privacy.distributed import DistributedCost, cost
from sottovoce.common.privacy.distributed_accountant import DistributedEvent, epsilon
from sottovoce.common.privacy.of_study import distributed_events
from sottovoce.common.privacy.planning import (
    FACTORS,
    NOT_COVERED,
    TARGETS,
    Numbers,
    delta_for,
    deltas_for,
)
from sottovoce.common.privacy_specs import USUAL_DELTA, DistributedPrivacy, weaknesses
from sottovoce.common.study import Study


def tables(
    study: Study, spec: DistributedPrivacy, *, target_epsilon: float | None = None
) -> Iterator[tuple[str, Any]]:
    """Yields (name, table), each as soon as it is known."""
    charged, n_sites = distributed_events(study, spec), study.federation.n_sites
    yield "study", _study(study, spec, charged)
    yield "promise", _promise(spec, n_sites)
    targets = TARGETS if target_epsilon is None else (target_epsilon,)
    yield "noise", [_noise(study, spec, target) for target in targets]
    deltas = deltas_for(spec.delta, spec.n_patients_public * n_sites)
    yield "deltas", [{"delta": delta, "epsilon": epsilon(charged, delta)} for delta in deltas]
    yield "patients", [_with_patients(study, spec, factor) for factor in FACTORS]
    yield "sums", [_sum(spec, n_sites, charged, *other) for other in _federations(spec, n_sites)]


def colluders_withstood(n_sites: int, n_min: int) -> int:
    """Returns with how many colluding sites a coordinator that breaks the protocol still unmasks nobody.

    A secure sum of n needs the word of ceil(2n/3) sites on who survived. With c sites of its own a coordinator gets it
    for two sets of survivors only if 2 ceil(2n/3) <= n + c (docs/protocol.md), and where all n must survive there is
    one set. It chooses whom it invites, from n_min sites to all of them: the smallest counts.

    >>> [colluders_withstood(n, quorum(n, 1)) for n in (4, 6, 10, 50)], colluders_withstood(6, 6)
    ([1, 1, 2, 11], 5)
    """
    invited = range(max(3, n_min), n_sites + 1)
    return min(n - 1 if quorum(n, n_min) == n else 2 * _threshold(n) - n - 1 for n in invited)


def quorum(n_sites: int, n_min: int) -> int:
    """Returns how many sites must survive: two thirds always, whatever less a study asks for."""
    return max(_threshold(n_sites), 3, n_min)


def _threshold(n_sites: int) -> int:
    return -(-2 * n_sites // 3)  # of secagg/session.py, which this package may not import


def _study(study: Study, spec: DistributedPrivacy, charged: list[DistributedEvent]) -> dict[str, Any]:
    n_sites, rounds = study.federation.n_sites, study.federation.rounds
    found: DistributedCost = cost(charged, spec.delta, max_sites_per_patient=spec.max_sites_per_patient)
    return {
        "sentence": distributed_plan.sentence(spec, charged, n_sites=n_sites),
        "mode": spec.mode,
        "unit": "patient",
        "rounds": rounds,
        "spare_rounds": spec.spare_rounds,
        "steps": spec.steps_in(rounds),
        "evaluation_counts": [
            {**asdict(event), "noise_multiplier": event.noise_multiplier()} for event in charged[1:]
        ],
        "noise_multiplier": spec.noise_multiplier,
        "noise_added": _noise_added(spec, n_sites, spec.n_min, spec.n_colluding),
        "sampling_prob": spec.sampling_prob,
        "draw_cap": spec.draw_cap,
        "n_parameters": spec.n_parameters,
        "n_sites": n_sites,
        "n_min": spec.n_min,
        "n_colluding": spec.n_colluding,
        "quorum": quorum(n_sites, spec.n_min),
        "colluders_withstood": colluders_withstood(n_sites, spec.n_min),
        "delta": spec.delta,
        "epsilon": found.epsilon,
        "if_all_others_collude": found.if_all_others_collude,
        "by_colluding": list(found.by_colluding),
        "replace_one": found.replace_one,
        "by_sites": list(found.by_sites),
        "epsilon_at_usual_delta": epsilon(charged, min(spec.delta, USUAL_DELTA)),
        "simulated": spec.seeded_noise,
        "weak": list(weaknesses(spec, n_sites=n_sites)),
    }


def _promise(spec: DistributedPrivacy, n_sites: int) -> Mapping[str, str]:
    withstood = colluders_withstood(n_sites, spec.n_min)
    return {
        "unit": "patient",
        "adjacency": "add or remove one patient, with all recordings",
        "adversary_view": (
            f"the coordinator and up to {spec.n_colluding} of the hospitals, working together: every sum, of at least "
            f"{quorum(n_sites, spec.n_min)} hospitals, the whole study file, and everything that these hospitals hold; "
            "not another hospital's own part of a sum, its coins or its noise. A coordinator that breaks the protocol "
            f"sees no more while at most {withstood} of them collude; beyond, the figure is the one if all others do"
        ),
        "mechanism": (
            "Poisson-sampled, clipped sums on an integer grid, a discrete Gaussian from each hospital, draws capped, "
            "added up under masks"
        ),
        "accountant": (
            "RDP at integer orders, an upper bound; no PLD of such a sum is known (docs/decisions/distributed.md)"
        ),
        "not_covered": (
            f"{NOT_COVERED}; a hospital that leaves its noise out, beyond the {spec.n_colluding} that may collude; "
            "what the sums themselves tell of all hospitals together"
        ),
    }


def _noise(study: Study, spec: DistributedPrivacy, target: float) -> Numbers:
    try:
        noise = distributed_plan.noise_for(
            spec,
            target,
            rounds=study.federation.rounds,
            n_sites=study.federation.n_sites,
            n_counts=study.n_evaluations,
            tables=study.tables,
        )
    except PrivacyError:
        # No noise reaches it: an answer, printed as such.
        return {"epsilon": target, "noise_multiplier": None}
    return {"epsilon": target, "noise_multiplier": noise}


def _with_patients(study: Study, spec: DistributedPrivacy, factor: float) -> Numbers:
    n_patients = max(2, round(spec.n_patients_public * factor))
    n_everywhere = n_patients * study.federation.n_sites
    delta = delta_for(spec.delta, n_everywhere)
    prob = min(1.0, spec.sampling_prob * spec.n_patients_public / n_patients)
    cap, grid = (spec.cap, spec.grid) if factor == 1.0 else (None, None)
    other = replace(spec, n_patients_public=n_patients, sampling_prob=prob, cap=cap, grid=grid, delta=delta)
    row = {
        "n_patients": n_patients,
        "n_patients_everywhere": n_everywhere,
        "sampling_prob": prob,
        "delta": delta,
    }
    try:
        return {**row, "epsilon": epsilon(distributed_events(study, other), delta)}
    except PrivacyError:
        return {**row, "epsilon": None}  # so many patients do not fit into 32 bits


def _federations(spec: DistributedPrivacy, n_sites: int) -> list[tuple[int, int]]:
    """Returns the study's own (n_min, n_colluding) and others that could be had, in order."""
    least = {spec.n_min, quorum(n_sites, 1), n_sites}
    colluding = {spec.n_colluding, 1, 2 * spec.n_colluding, colluders_withstood(n_sites, spec.n_min)}
    return sorted((n_min, t) for n_min in least for t in colluding if 1 <= t < n_min)


def _sum(
    spec: DistributedPrivacy, n_sites: int, charged: Sequence[DistributedEvent], n_min: int, n_colluding: int
) -> Mapping[str, Any]:
    as_now = [replace(event, n_min=n_min, n_colluding=n_colluding) for event in charged]
    return {
        "n_min": n_min,
        "n_colluding": n_colluding,
        "this_study": (n_min, n_colluding) == (spec.n_min, spec.n_colluding),
        "noise_added": _noise_added(spec, n_sites, n_min, n_colluding),
        "epsilon_as_it_is": epsilon(as_now, spec.delta),
    }


def _noise_added(spec: DistributedPrivacy, n_sites: int, n_min: int, n_colluding: int) -> float:
    """The deviation that all sites together add, in clipping norms, for the study's own noise to be left."""
    return spec.noise_multiplier * math.sqrt(n_sites / (n_min - n_colluding))
