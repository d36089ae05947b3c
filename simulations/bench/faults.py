"""Runs under faults: `python -m sottovoce.simulations.bench faults`, from a checkout.

`envelopes` sends altered and replayed ones to both ends of sealed messages. `schedules` plays seeded schedules of
kills, full disks and a network that loses, doubles, delays, reorders, alters, swaps and replays, over the production
coordinator and hospitals in one process; what must hold after each is in `tests/fakes/fault_claims.py`. `processes`
kills agents, workers, coordinators and SuperLinks of a real federation in the middle of runs, with SIGKILL, and holds
each run against the simulation. Seeds begin at 0: 50 schedules are the first quarter of 200.
The fakes are not in the wheel, so this runs in a checkout.
"""

import logging
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from sottovoce.simulations.bench.ledger import _fake
from sottovoce.simulations.bench.timing import Parts, Row, parts_run, processes, report

N_SCHEDULES = 200
N_ENVELOPES = 10_000
N_RUNS, N_SITES = 20, 5
CHUNK = 5


def measure(**sizes: int) -> dict[str, Any]:
    """Runs all parts, or those of another size."""
    parts: Parts = {
        "envelopes": (N_ENVELOPES, _envelopes),
        "schedules": (N_SCHEDULES, _schedules),
        "processes": (N_RUNS, _processes),
    }
    return report(parts_run(parts, **sizes))


def _envelopes(n: int) -> list[Row]:
    attacks, sites = _fake("envelope_attacks"), _fake("sites")
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="sottovoce-faults-") as folder:
        study = sites.write_study(Path(folder) / "study.toml", n_sites=1, rounds=1)
        told = attacks.attack(Path(folder) / "here", study, n=n, seed=0)
    logging.disable(logging.NOTSET)
    row = Row(
        what=f"of {n:,} altered and replayed envelopes, sent to a hospital and to the coordinator: acted upon",
        value=float(told.n_executed),
        unit="",
        bar="0, each refused and logged",
        met=told.n_executed == 0 and told.n_refused == told.n_logged == n,
        note=f"{told.n_refused:,} refused, {told.n_logged:,} lines in the two logs",
    )
    return [row]


def _schedules(n: int) -> list[Row]:
    pieces = [range(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
    with processes() as pool:
        told = [one for piece in pool.map(_run_schedules, pieces) for one in piece]
    return _rows(told, f"of {n} seeded schedules of faults over the in-process transport: a claim that broke")


def _run_schedules(seeds: range) -> list[tuple[int, Any]]:
    """Returns what each schedule came to, or the claim that broke."""
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)  # refusals by the thousand
    schedules, claims = _fake("fault_schedules"), _fake("fault_claims")
    found = []
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="sottovoce-faults-") as folder:
            try:
                found.append((seed, schedules.run_schedule(seed, Path(folder) / str(seed))))
            except claims.Broken as broken:
                found.append((seed, f"seed {seed}: {broken}"))
    return found


def _rows(told: Sequence[tuple[int, Any]], what: str) -> list[Row]:
    broken = [one for _, one in told if isinstance(one, str)]
    kept = [one for _, one in told if not isinstance(one, str)]
    faults: Counter[str] = sum((Counter(one.faults) for one in kept), Counter())
    sums = {
        "messages": sum(one.n_messages for one in kept),
        "ends of sites": sum(one.n_site_deaths for one in kept),
        "ends of the coordinator": sum(one.n_coordinator_deaths for one in kept),
    }
    notes = ", ".join([*(f"{n:,} {name}" for name, n in sums.items()), *broken[:3]])
    done = sum(one.done for one in kept)
    return [
        Row(what=what, value=float(len(broken)), unit="", bar="0", met=not broken, note=notes),
        Row(
            what="runs that ended with a model; the others had spent their sites' budgets",
            value=float(done),
            unit="",
            note=f"{sum(one.whole for one in kept)} with every site in every round: the simulation's bits",
        ),
        Row(
            what="faults met",
            value=float(sum(faults.values())),
            unit="",
            note=", ".join(f"{n:,} {name}" for name, n in sorted(faults.items())),
        ),
    ]


def _processes(n: int) -> list[Row]:
    kills, claims = _fake("process_faults"), _fake("fault_claims")
    told, broken = [], []
    with (
        tempfile.TemporaryDirectory(prefix="sottovoce-faults-") as folder,
        kills.killable(Path(folder) / "federation", n_runs=n, n_sites=N_SITES) as made,
    ):
        for seed in range(n):
            try:
                told.append(kills.run_with_kills(made, seed))
            except claims.Broken as error:
                broken.append(str(error))
    killed = Counter(one.partition(" ")[0] for each in told for one in each.killed)
    row = Row(
        what=f"of {n} runs of real processes that were killed in the middle: other weights, or a ledger broken",
        value=float(len(broken)),
        unit="",
        bar="0",
        met=not broken,
        note=", ".join([*(f"{n} times the {name}" for name, n in sorted(killed.items())), *broken[:3]]),
    )
    if not told:
        return [row]
    return [
        row,
        Row(what="such a run of 4 rounds, a middling one", value=median(one.seconds for one in told)),
    ]
