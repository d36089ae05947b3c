"""Does the empirical audit find what it is there to find, and nothing where there is nothing?

Four mistakes are put into this process, from outside, around the production functions; the audit does not know of them.
20 honest runs and some of each mistake take about five minutes on one core.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.common.privacy import noise, plan
from sottovoce.common.privacy.accountant import Event
from sottovoce.common.privacy.source import Source
from sottovoce.common.privacy.stages import ClippedPatientGradients, NoisySum, PatientGradients, QuantisedSum
from sottovoce.common.privacy_specs import LocalPrivacy
from sottovoce.common.streams import stream
from sottovoce.common.study import Study, load
from sottovoce.simulations.audit.bound import judge
from sottovoce.simulations.audit.one_run import ERROR, SHARES, OneRun, one_run
from sottovoce.simulations.bench.timing import Parts, Row, parts_run, report

STUDY = Path(__file__).parents[1] / "scenarios" / "audit.toml"
LARGEST_CLAIM = 2.5
N_CANARIES = 2000
N_HONEST, FEWEST_HONEST = 20, 19
N_EACH = 3  # audits of each mistake; all must find it
N_RANDOM, LARGEST_SHARE = 2000, 0.05


def measure(**sizes: int) -> dict[str, Any]:
    """Runs honest audits, audits of each mistake, and guesses from random scores; or parts of it."""
    study = load(STUDY)
    parts: Parts = {
        "honest": (N_HONEST, lambda n: [_honest(study, n)]),
        **{name.replace(" ", "_"): (N_EACH, functools.partial(_mistaken, study, name)) for name in MISTAKES},
        "random": (N_RANDOM, lambda n: [_random(study, n)]),
    }
    return report(parts_run(parts, **sizes))


@contextmanager
def without_noise() -> Iterator[None]:
    """Releases the exact sum."""

    def add_noise(total: QuantisedSum, noise_multiplier: float, source: Source) -> NoisySum:
        return NoisySum(
            values=total.values,
            noise_multiplier=noise_multiplier,
            grid_step=total.grid_step,
            simulated=source.simulated,
        )

    with _in_plan(add_noise=add_noise):
        yield


@contextmanager
def quarter_noise() -> Iterator[None]:
    """Adds noise of a quarter of its deviation."""
    honest = noise.add_noise

    def add_noise(total: QuantisedSum, noise_multiplier: float, source: Source) -> NoisySum:
        return replace(honest(total, noise_multiplier / 4, source), noise_multiplier=noise_multiplier)

    with _in_plan(add_noise=add_noise):
        yield


@contextmanager
def without_clipping() -> Iterator[None]:
    """Adds gradients as long as they are, and leaves the exact check out too: it would find this at once."""

    def clip(gradients: PatientGradients, bound: float) -> ClippedPatientGradients:
        whole = np.ones(len(gradients.values))
        return ClippedPatientGradients(values=gradients.values, factors=whole, clip_norm=bound)

    def quantised_sum(clipped: ClippedPatientGradients, grid_step: float) -> QuantisedSum:
        cells = np.trunc(clipped.values.astype(np.float64) / grid_step).sum(axis=0).astype(np.int64)
        return QuantisedSum(values=cells, clip_norm=clipped.clip_norm, grid_step=grid_step)

    with _in_plan(clip=clip, quantised_sum=quantised_sum):
        yield


@contextmanager
def reset_accountant() -> Iterator[None]:
    """Prints the cost of one round for all of them, as an engine that is made anew in each round does."""
    honest = plan.events

    def events(spec: LocalPrivacy, rounds: int, *, n_counts: int = 0) -> list[Event]:
        return [
            replace(event, steps=min(event.steps, spec.steps_per_round))
            for event in honest(spec, rounds, n_counts=n_counts)
        ]

    with _in_plan(
        events=events
    ):  # what is printed; the ledger counts for itself, and would stop such a study
        yield


MISTAKES: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
    "no noise": without_noise,
    "a quarter of the noise": quarter_noise,
    "no clipping": without_clipping,
    "accountant reset in each round": reset_accountant,
}


@contextmanager
def _in_plan(**changed: Callable[..., Any]) -> Iterator[None]:
    kept = {name: getattr(plan, name) for name in changed}
    try:
        for name, function in changed.items():
            setattr(plan, name, function)
        yield
    finally:
        for name, function in kept.items():
            setattr(plan, name, function)


def _honest(study: Study, n_runs: int) -> Row:
    runs = [one_run(study, n_canaries=N_CANARIES, seed=seed) for seed in range(n_runs)]
    within, claim = sum(not run.alarm for run in runs), runs[0].points[0].claim
    return Row(
        what=f"of {n_runs} honest runs, those whose bound is at most the claim of {claim:.3f}",
        value=float(within),
        unit="",
        bar=f"at least {FEWEST_HONEST} of {N_HONEST}",
        met=within * N_HONEST >= FEWEST_HONEST * n_runs and claim <= LARGEST_CLAIM,
        note=f"{_span(runs)}; all right would prove {runs[0].points[0].largest:.2f}; {N_CANARIES:,} canaries",
    )


def _mistaken(study: Study, name: str, n_runs: int) -> list[Row]:
    with MISTAKES[name]():
        runs = [one_run(study, n_canaries=N_CANARIES, seed=seed) for seed in range(n_runs)]
    found, claim = sum(run.alarm for run in runs), runs[0].points[0].claim
    row = Row(
        what=f"{name}: audits of {n_runs} that flag it, claim {claim:.3f}",
        value=float(found),
        unit="",
        bar="all",
        met=found == n_runs,
        note=_span(runs),
    )
    return [row]


def _random(study: Study, n_trials: int) -> Row:
    """Guesses from scores that know nothing must prove nothing: a bound above zero is a false alarm."""
    delta, alarms = study.privacy.delta if isinstance(study.privacy, LocalPrivacy) else 0.0, 0
    for trial in range(n_trials):
        rng = stream(trial, "audit/random scores")
        present = rng.random(N_CANARIES) < 0.5
        verdict = judge(rng.standard_normal(N_CANARIES), present, shares=SHARES, delta=delta, error=ERROR)
        alarms += verdict.lower_bound > 0
    return Row(
        what=f"of {n_trials:,} audits of random scores, those with a bound above 0",
        value=alarms / n_trials,
        unit="",
        bar=f"at most {LARGEST_SHARE:g}",
        met=alarms <= LARGEST_SHARE * n_trials,
    )


def _span(runs: list[OneRun]) -> str:
    bounds = [run.points[0].lower_bound for run in runs]
    return f"bounds from {min(bounds):.2f} to {max(bounds):.2f}"
