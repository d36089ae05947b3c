"""The long proofs of the privacy parts: adversarial patients, random ledgers, draws of noise, and their speed.

Random ledgers choose from a pool of mechanisms and step counts, whose distributions are remembered; composing them,
and finding epsilon, is done anew for every ledger.
"""

import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from scipy.stats import kstest

from sottovoce.common.privacy import accountant
from sottovoce.common.privacy.accountant import Event, epsilon, rdp_epsilon
from sottovoce.common.privacy.clip import clip, quantised_sum
from sottovoce.common.privacy.noise import standard_normals
from sottovoce.common.privacy.prv import bracket
from sottovoce.common.privacy.source import SecretSource
from sottovoce.common.privacy.stages import PatientGradients
from sottovoce.simulations.bench import second_accountant
from sottovoce.simulations.bench.remembered import remember_mechanisms
from sottovoce.simulations.bench.timing import Parts, Row, parts_run, processes, report, take_turns, timed

N_PATIENTS = 100_000
N_LEDGERS = 1000
N_MECHANISMS = 60  # that random ledgers choose from
STEPS = (1, 3, 10, 30, 100)
N_AGAINST_FFT = 50
N_NOISE_RUNS, N_DRAWS = 20, 10_000_000
N_SOURCES = 1_000_000
SLACK_BELOW = 1e-6  # of the hand-written accountant, which rounds losses to the nearest cell


def measure(**sizes: int) -> dict[str, Any]:
    """Runs all parts, or those of another size: about half an hour on one core, most of it ledgers."""
    parts: Parts = {
        "patients": (N_PATIENTS, _adversarial_patients),
        "ledgers": (N_LEDGERS, _ledgers),
        "orders": (N_LEDGERS, _orders),
        "fft": (N_AGAINST_FFT, _against_fft),
        "noise": (N_NOISE_RUNS, _noise),
        "sources": (N_SOURCES, _collisions),
        "speed": (9, _speed),
    }
    return report(parts_run(parts, **sizes))


def hostile_rows(rng: np.random.Generator, n_rows: int, width: int, bound: float) -> np.ndarray:
    """Rows of every size that float32 has, sparse and dense, alternating, and at the bound give or take an ulp."""
    rows = rng.standard_normal((n_rows, width)) * (rng.random((n_rows, width)) < rng.random((n_rows, 1)))
    rows[rng.random(n_rows) < 0.2] = np.where(np.arange(width) % 2, 1.0, -1.0)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    at_bound = bound * (1 + rng.integers(-4, 5, (n_rows, 1)) * 2.0**-24)
    anywhere = 10.0 ** rng.uniform(-45, 37, (n_rows, 1))
    lengths = np.where(rng.random((n_rows, 1)) < 0.5, at_bound, anywhere)
    scaled: np.ndarray = np.divide(rows, norms, out=np.full_like(rows, -0.0), where=norms > 0) * lengths
    return scaled.astype(np.float32)


def random_ledger(seed: int) -> tuple[list[Event], float]:
    """One to ten groups of distinct mechanisms of the pool, any number of steps each, and a delta."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(N_MECHANISMS)[: rng.integers(1, 11)]
    events = [replace(_mechanism(int(k)), steps=int(rng.choice(STEPS))) for k in chosen]
    return events, float(10 ** rng.uniform(-7, -4))


def _mechanism(number: int) -> Event:
    if number == 0:  # the library drops some of its RDP orders
        return Event(
            noise_multiplier=1.03496938612, sampling_prob=0.0721553497, steps=1, cap=None, n_patients=1000
        )
    rng = np.random.default_rng([number, 2])
    sampled = rng.random() < 0.9
    return Event(
        noise_multiplier=float(rng.uniform(0.8, 10.0)) if sampled else float(rng.uniform(4.0, 40.0)),
        sampling_prob=float(10 ** rng.uniform(-3, -0.5)) if sampled else 1.0,
        steps=1,
        cap=None,
        n_patients=1000,
    )


def _adversarial_patients(n_patients: int) -> list[Row]:
    rng, above = np.random.default_rng(0), 0
    for start in range(0, n_patients, 1000):
        bound, grid = float(10 ** rng.uniform(-3, 3)), float(2.0 ** -rng.integers(8, 27))
        grid *= bound if rng.random() < 0.5 else bound * rng.uniform(1.0, 1.9)
        limit = math.floor((Fraction(bound) / Fraction(grid)) ** 2)
        rows = hostile_rows(rng, min(1000, n_patients - start), int(rng.integers(1, 60)), bound)
        above += sum(_exact_square(rows[i : i + 1], bound, grid) > limit for i in range(len(rows)))
    row = Row(
        what=f"of {n_patients:,} adversarial patients, those above the clipping norm in integers",
        value=float(above),
        unit="",
        bar="0",
        met=above == 0,
    )
    return [row]


def _exact_square(row: np.ndarray, bound: float, grid: float) -> int:
    """One patient's squared norm in Python integers, through the functions that a release takes."""
    total = quantised_sum(clip(PatientGradients(values=row), bound), grid)
    return sum(int(value) ** 2 for value in total.values)


def _opinions(seed: int) -> tuple[float, float, tuple[float, float] | None]:
    remember_mechanisms(N_MECHANISMS)
    events, delta = random_ledger(seed)
    return epsilon(events, delta), rdp_epsilon(events, delta).epsilon, bracket(events, delta)


@functools.cache
def _dropped_orders(event: Event) -> frozenset[str]:
    """Asks dp-accounting itself, and returns what it logs that it gave up."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    said = set[str]()

    def listen(record: logging.LogRecord) -> bool:
        said.add(record.getMessage())
        return False

    logger = logging.getLogger("absl")
    logger.addFilter(listen)
    try:
        gaussian = GaussianDpEvent(event.noise_multiplier)
        RdpAccountant(accountant._rdp_orders()).compose(PoissonSampledDpEvent(event.sampling_prob, gaussian))
    finally:
        logger.removeFilter(listen)
    return frozenset(message.rpartition("alpha=")[2] for message in said if "failed to converge" in message)


def _orders(n_ledgers: int) -> list[Row]:
    silent = with_dropped = 0
    for seed in range(n_ledgers):
        events, delta = random_ledger(seed)
        dropped = set[str]().union(*(_dropped_orders(replace(event, steps=1)) for event in events))
        silent += len(rdp_epsilon(events, delta).dropped_orders) < len(dropped)
        with_dropped += bool(dropped)
    row = Row(
        what=f"of {n_ledgers:,} random ledgers, those with an RDP order that the library dropped and we did not record",
        value=float(silent),
        unit="",
        bar="0",
        met=silent == 0 < with_dropped,
        note=f"{with_dropped} had dropped orders",
    )
    return [row]


def _ledgers(n_ledgers: int) -> list[Row]:
    with processes() as pool:
        opinions = list(pool.map(_opinions, range(n_ledgers), chunksize=4))
    answered = [(ours, prv) for ours, _, prv in opinions if prv is not None]
    outside = sum(not prv[0] <= ours <= prv[1] for ours, prv in answered)
    above_rdp = sum(ours > rdp for ours, rdp, _ in opinions)
    return [
        Row(
            what=f"of {n_ledgers:,} random ledgers, PLD outside Opacus' PRV bracket",
            value=float(outside),
            unit="",
            bar="0",
            met=outside == 0,
            note=f"no PRV answer for {n_ledgers - len(answered)}",
        ),
        Row(what="of the same, PLD above RDP", value=float(above_rdp), unit="", bar="0", met=above_rdp == 0),
    ]


def _gap_to_fft(seed: int) -> float:
    rng = np.random.default_rng([seed, 1])
    groups = [
        (float(rng.uniform(1.5, 10.0)), float(10 ** rng.uniform(-2.5, -0.5)), int(10 ** rng.uniform(0, 2.5)))
        for _ in range(rng.integers(1, 6))
    ]
    delta = float(10 ** rng.uniform(-7, -4))
    events = [
        Event(noise_multiplier=s, sampling_prob=q, steps=steps, cap=None, n_patients=1000)
        for s, q, steps in groups
    ]
    return epsilon(events, delta) - second_accountant.epsilon(groups, delta)


def _against_fft(n_cases: int) -> list[Row]:
    gaps: Sequence[float] = [_gap_to_fft(seed) for seed in range(n_cases)]
    return [
        Row(
            what=f"largest epsilon above the hand-written FFT, {n_cases} ledgers",
            value=max(gaps),
            unit="",
            bar="at most 1e-3",
            met=max(gaps) <= 1e-3,
        ),
        Row(
            what="largest epsilon below it",
            value=max(0.0, -min(gaps)),
            unit="",
            bar=f"at most {SLACK_BELOW:g}",
            met=-min(gaps) <= SLACK_BELOW,
        ),
    ]


def _noise(n_runs: int) -> list[Row]:
    values = [float(kstest(standard_normals(SecretSource(), N_DRAWS), "norm").pvalue) for _ in range(n_runs)]
    # 40 tails of 1e-4 each: an honest source fails once in 250 runs of this row.
    good = sum(1e-4 <= value <= 1 - 1e-4 for value in values)
    row = Row(
        what=f"Kolmogorov-Smirnov runs of {N_DRAWS:,} normals with p in [1e-4, 1 - 1e-4]",
        value=float(good),
        unit=f"of {n_runs}",
        bar="all",
        met=good == n_runs,
    )
    return [row]


def _collisions(n_sources: int) -> list[Row]:
    words = np.array([SecretSource().words(1)[0] for _ in range(n_sources)])
    twice = n_sources - len(np.unique(words))
    row = Row(
        what=f"of {n_sources:,} releases, those that share their first word with another",
        value=float(twice),
        unit="",
        bar="0",
        met=twice == 0,
    )
    return [row]


def _speed(repeats: int) -> list[Row]:
    n, rows, width = 1_000_000, 64, 60_000
    torch.set_num_threads(1)
    gradients = PatientGradients(
        values=np.random.default_rng(0).standard_normal((rows, width)).astype(np.float32)
    )
    times = take_turns(
        {
            "torch": timed(lambda: torch.normal(0.0, 1.0, (n,))),
            "noise": timed(lambda: standard_normals(SecretSource(), n)),
            "clip": timed(lambda: quantised_sum(clip(gradients, 1.0), 2.0**-20)),
        },
        repeats=repeats,
    )
    ratio = times["noise"].median / times["torch"].median
    cells = rows * width
    return [
        Row(
            what="a million secret normals",
            value=times["noise"].median,
            ratio=ratio,
            against="torch.normal",
            bar="at most 5",
            met=ratio <= 5,
        ),
        Row(
            what=f"clip, round and check {rows} patients of {width:,} parameters",
            value=times["clip"].median,
            note=f"{times['clip'].median / cells * 1e9:.1f} ns a number",
        ),
    ]
