"""Mode `distributed` at length: the exact sampler's speed and law, and two accountants at every order."""

import math
import time
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import numpy as np
from scipy.stats import chisquare

from sottovoce.common.privacy import accountant
from sottovoce.common.privacy.discrete import discrete_gaussians
from sottovoce.common.privacy.distributed_accountant import DistributedEvent, epsilon, replace_one
from sottovoce.common.privacy.noise import standard_normals
from sottovoce.common.privacy.source import SecretSource
from sottovoce.simulations.bench import second_distributed
from sottovoce.simulations.bench.timing import Parts, Row, parts_run, report, take_turns, timed

N_DRAWS = 1_000_000
N_RUNS, N_DRAWS_OF_A_RUN = 20, 10_000_000
N_EVENTS = 50
VARIANCES = (Fraction(3, 2), Fraction(100), Fraction(2**40 + 1, 3))
GAPS = ((2.0, 1 / 16, 320), (1.0, 1 / 16, 320), (6.2, 1.0, 20), (4.0, 1 / 4, 20))  # noise, sampling, steps
LAW = Fraction(169, 4)  # of the long runs: 170 cells with something in them


def measure(**sizes: int) -> dict[str, Any]:
    """Runs all parts, or those of another size: about five minutes on one core."""
    parts: Parts = {
        "speed": (9, _speed),
        "law": (N_RUNS, _law),
        "second": (N_EVENTS, _second),
        "gaps": (len(GAPS), _gaps),
    }
    return report(parts_run(parts, **sizes))


def random_event(seed: int) -> DistributedEvent:
    """Any grid and any number of sites; one in four has shares so small that tau decides."""
    rng = np.random.default_rng([seed, 4])
    cells, n_min = int(2 ** rng.integers(2, 21)), int(rng.integers(2, 12))
    variance = int(1024 * (cells * rng.uniform(1, 5)) ** 2 / n_min)
    coarse = rng.random() < 0.25
    share = Fraction(3, 4) if coarse else Fraction(max(512, variance), 1024)
    return DistributedEvent(
        squared_norm=1 if coarse else cells**2 - int(rng.integers(3)),
        variance_numerator=share.numerator,
        variance_denominator=share.denominator,
        n_min=n_min,
        n_colluding=int(rng.integers(0, n_min)),
        n_parameters=int(10 ** rng.uniform(0, 6)),
        sampling_prob=1.0 if rng.random() < 0.2 else float(10 ** rng.uniform(-3, -0.3)),
        steps=int(10 ** rng.uniform(0, 3)),
        cap=None if rng.random() < 0.5 else 150,
        n_patients=200,
        overflow_prob=float(rng.choice([0.0, 1e-13])),
    )


def _speed(repeats: int) -> list[Row]:
    turns = {f"variance {float(v):.3g}": timed(lambda v=v: _draw(v)) for v in VARIANCES}  # type: ignore[misc]
    times = take_turns(
        {**turns, "normals": timed(lambda: standard_normals(SecretSource(), N_DRAWS))}, repeats
    )
    rows = []
    for name in turns:
        seconds = float(np.median([sample.cpu_seconds for sample in times[name].samples]))
        rows.append(
            Row(
                what=f"a million exact discrete Gaussians, {name}: seconds of one core",
                value=seconds,
                ratio=times[name].cpu_ratio(times["normals"]),
                against="rounded normals",
                bar="at most 1",
                met=seconds <= 1.0,
            )
        )
    return rows


def _draw(variance: Fraction) -> None:
    discrete_gaussians(variance, N_DRAWS, SecretSource())


def _law(n_runs: int) -> list[Row]:
    values = [_fit(N_DRAWS_OF_A_RUN) for _ in range(n_runs)]
    # an honest sampler fails once in 250 runs of this row
    good = sum(1e-4 <= value <= 1 - 1e-4 for value in values)
    return [
        Row(
            what=f"chi-square runs of {N_DRAWS_OF_A_RUN:,} exact discrete Gaussians with p in [1e-4, 1 - 1e-4]",
            value=float(good),
            unit=f"of {n_runs}",
            bar="all",
            met=good == n_runs,
        )
    ]


def _fit(n: int) -> float:
    reach = int(5 * float(LAW) ** 0.5)
    draws = np.clip(discrete_gaussians(LAW, n, SecretSource()), -reach - 1, reach + 1)
    x = np.arange(-20 * reach, 20 * reach + 1)
    mass = np.exp(-(x**2) / (2 * float(LAW)))
    mass /= mass.sum()
    inside = mass[np.abs(x) <= reach]
    tail = (1 - inside.sum()) / 2
    expected = n * np.array([tail, *inside, tail])
    return float(chisquare(np.bincount(draws + reach + 1, minlength=2 * reach + 3), expected).pvalue)


def _second(n_events: int) -> list[Row]:
    gaps, ours, theirs = list[float](), 0.0, 0.0
    for seed in range(n_events):
        event, n_sites = random_event(seed), 1 + seed % 3
        began = time.perf_counter()
        one = epsilon([event], 1e-5, n_sites=n_sites)
        ours, began = ours + time.perf_counter() - began, time.perf_counter()
        other = second_distributed.program().epsilon([asdict(event)], 1e-5, n_sites=n_sites)
        theirs += time.perf_counter() - began
        gaps.append(0.0 if one == other else abs(one - other) / max(1.0, other))
    return [
        Row(
            what=f"largest difference to the second program, {n_events} random events, every order",
            value=max(gaps),
            unit="",
            bar="at most 1e-6",
            met=max(gaps) <= 1e-6,
            note=f"{ours:.1f} s, the second {theirs:.0f} s",
        )
    ]


def _gaps(n_cases: int) -> list[Row]:
    """The table of docs/decisions/distributed.md: Renyi here, privacy loss distributions of one Gaussian there."""
    rows = []
    for noise, q, steps in GAPS[:n_cases]:
        event = DistributedEvent(
            squared_norm=2**40,
            variance_numerator=math.ceil(noise**2 * 2**40 / 6),
            variance_denominator=1,
            n_min=8,
            n_colluding=2,
            n_parameters=60_000,
            sampling_prob=q,
            steps=steps,
            cap=None,
            n_patients=1000,
        )
        local = accountant.Event(
            noise_multiplier=noise, sampling_prob=q, steps=steps, cap=None, n_patients=1000
        )
        found, colluding = epsilon([event], 1e-5), [epsilon([event], 1e-5, n_colluding=t) for t in (0, 7)]
        sites = [epsilon([event], 1e-5, n_sites=k) for k in (2, 3)]
        rows.append(
            Row(
                what=f"epsilon of a sum of shares, noise {noise:g}, sampling {q:g}, {steps} steps, delta 1e-5",
                value=found,
                unit="",
                ratio=found / accountant.epsilon([local], 1e-5),
                against="one Gaussian by PLD",
                note=f"none collude {colluding[0]:.2f}, own share alone {colluding[1]:.1f}, "
                f"patient in 2 sites {sites[0]:.2f}, in 3 {sites[1]:.2f}, "
                f"replaced {replace_one([event], 1e-5):.2f}",
            )
        )
    return rows
