"""The slow proofs of the ledger: `python -m sottovoce.simulations.bench ledger`, from a checkout.

Random schedules of crash, retry, restart and concurrency over the production ledger; kill and write faults
through a disk that fails; SIGKILLs of a real process; single mutations, each to be found where it is; the
time that verification takes; and the auditor's program, on a grid ten times finer, against the ledger.
The fakes and the auditor's program are not in the wheel, so this runs in a checkout.
"""

import functools
import importlib
import importlib.util
import itertools
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.common.ledger.entries import Charge
from sottovoce.common.ledger.store import HEAD_FILE, LEDGER_FILE
from sottovoce.common.ledger.verify import entries_of, verify
from sottovoce.common.privacy.budget import PldAccountant
from sottovoce.common.streams import stream
from sottovoce.simulations.bench.remembered import remember_mechanisms, remember_signatures
from sottovoce.simulations.bench.timing import ROOT, NotMeasured, Parts, Row, parts_run, processes, report

N_SCHEDULES = 100_000
N_FAULTS = 19_000
N_OPERATIONS = 16  # of the disk in one round of open, reserve and commit
N_KILLS = 1000
N_MUTATIONS = 100_000
N_ROLLBACKS = 1000
N_ENTRIES = 100_000
N_LEDGERS, N_DEAR, N_LARGE = 1000, 50, 20
CHUNK = 250
FINE_GRID = 1e-5
WITHIN = 1e-3


def measure(**sizes: int) -> dict[str, Any]:
    """Runs all parts, or those of another size: hours on one core, most of it schedules and the fine grid."""
    parts: Parts = {
        "faults": (N_FAULTS, _faults),
        "kills": (N_KILLS, _kills),
        "mutations": (N_MUTATIONS, _mutations),
        "rollbacks": (N_ROLLBACKS, _rollbacks),
        "speed": (N_ENTRIES, _speed),
        "agreement": (N_LEDGERS, partial(_agreement, SMALL)),
        "dear": (N_DEAR, partial(_agreement, DEAR)),
        "large": (N_LARGE, partial(_agreement, LARGE)),
        "schedules": (N_SCHEDULES, _schedules),
    }
    return report(parts_run(parts, **sizes))


def _fake(name: str) -> Any:
    """A module of the checkout's tests. Raises: NotMeasured."""
    if not (ROOT / "tests" / "fakes" / f"{name}.py").is_file():
        raise NotMeasured("the proofs of the ledger need a checkout: tests/ is not in the wheel")
    os.chdir(ROOT)  # `tests` is found from the checkout's root
    import sys

    sys.path[:0] = [str(ROOT)] if str(ROOT) not in sys.path else []
    return importlib.import_module(f"tests.fakes.{name}")


def _spread(work: Callable[[range], Sequence[int]], n: int) -> list[int]:
    """Adds up what the pieces of `range(n)` return, over all processes."""
    pieces = [range(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
    with processes() as pool:
        return [sum(column) for column in zip(*pool.map(work, pieces), strict=True)]


def _schedules(n: int) -> list[Row]:
    broken, faults, restarts, sent = _spread(_run_schedules, n)
    row = Row(
        what=f"of {n:,} schedules of crash, retry, restart and concurrency: over the cap, or a spend forgotten",
        value=float(broken),
        unit="",
        bar="0",
        met=broken == 0,
        note=f"{faults:,} faults, {restarts:,} restarts, {sent:,} releases sent",
    )
    return [row]


def _run_schedules(seeds: range) -> tuple[int, int, int, int]:
    remember_signatures()
    schedules = _fake("ledger_schedules")
    broken = faults = restarts = sent = 0
    for seed in seeds:
        try:
            world = schedules.run_schedule(seed)
        except schedules.Broken:
            broken += 1
            continue
        faults, restarts, sent = faults + world.n_faults, restarts + world.n_restarts, sent + len(world.sent)
    return broken, faults, restarts, sent


def _faults(n: int) -> list[Row]:
    broken, met = _spread(_run_faults, n)
    row = Row(
        what=f"of {n:,} kill and write faults at the operations of a round: something lost",
        value=float(broken),
        unit="",
        bar="0",
        met=broken == 0 and met == n,
        note=f"{met:,} met their operation",
    )
    return [row]


def _run_faults(seeds: range) -> tuple[int, int]:
    remember_signatures()
    schedules = _fake("ledger_schedules")
    broken = met = 0
    for seed in seeds:
        draw = random.Random(seed)
        kind = draw.choice(schedules.FAULTS)
        try:
            met += schedules.run_fault(
                kind, draw.randint(1, N_OPERATIONS), seed=seed, power_cut=draw.random() < 0.5
            )
        except schedules.Broken:
            broken += 1
    return broken, met


def _kills(n: int) -> list[Row]:
    schedules = _fake("ledger_schedules")
    met, broken = schedules.Kills(), ""
    with tempfile.TemporaryDirectory(prefix="sottovoce-bench-") as folder:
        try:
            met = schedules.run_sigkills(Path(folder), n, seed=0)
        except schedules.Broken as found:
            broken = str(found)
    row = Row(
        what=f"of {n:,} SIGKILLs of a real process on a real disk: something lost",
        value=float(bool(broken)),
        unit="",
        bar="0",
        met=met.n_kills == n,
        note=broken
        or f"{met.n_reserved:,} reservations and {met.n_sent:,} commits were acknowledged before a kill",
    )
    return [row]


def _mutations(n: int) -> list[Row]:
    missed, misplaced = _spread(_run_mutations, n)
    row = Row(
        what=f"of {n:,} single mutations of a ledger: not found, or found elsewhere",
        value=float(missed + misplaced),
        unit="",
        bar="0",
        met=missed + misplaced == 0,
    )
    return [row]


def _run_mutations(seeds: range) -> tuple[int, int]:
    remember_signatures()
    disk, at = _fake("ledgers").lived_in(), _fake("ledgers").hospital()
    source, head = disk.names[LEDGER_FILE].data, disk.names[HEAD_FILE].data.decode()
    missed = misplaced = 0
    changes = _fake("ledger_mutations").mutations(source, random.Random(seeds.start))
    different = ((data, entry) for data, entry in changes if data != source)
    for data, entry in islice(different, len(seeds)):
        verdict = verify(data, head=head, public_key=at.key.public_hex)
        missed += verdict.ok
        located = verdict.findings[0].entry if verdict.findings else entry
        # A byte put in or taken out where two entries meet belongs to either.
        misplaced += located is None or abs(located - entry) > 1
    return missed, misplaced


def _rollbacks(n: int) -> list[Row]:
    """The holder of the key rolls back, or rewrites from an entry on and signs all of it again."""
    disk, at = _fake("ledgers").lived_in(), _fake("ledgers").hospital()
    shown = disk.names[HEAD_FILE].data.decode()  # to somebody else, before
    entries, draw, found, alone = entries_of(disk.names[LEDGER_FILE].data), random.Random(0), 0, 0
    remember_signatures()
    for number in range(n):
        start = draw.randrange(1, len(entries))
        later = f"2027-{draw.randint(2, 12):02}-{draw.randint(1, 28):02}T{draw.randrange(24):02}:00:00Z"
        rest = [] if number % 2 else [replace(entry, time=later) for entry in entries[start:]]
        data, head = _fake("ledger_vectors").forged([*entries[:start], *rest])
        alone += verify(data, head=head, public_key=at.key.public_hex).ok
        judged = verify(data, head=head, public_key=at.key.public_hex, seen=[shown])
        found += [finding.step for finding in judged.findings] == [8]
    row = Row(
        what=f"of {n:,} ledgers rolled back or signed anew by the key's holder: not found by a later checkpoint",
        value=float(n - found),
        unit="",
        bar="0",
        met=found == n,
        note=f"without it {alone:,} pass",
    )
    return [row]


def _speed(n: int) -> list[Row]:
    data, head = _fake("ledger_vectors").long_ledger(n)
    # One thread that computes: its own time is what an idle core needs, whatever else the machine does.
    began, computing = time.perf_counter(), time.process_time()
    verdict = verify(data, head=head)
    seconds, computing = time.perf_counter() - began, time.process_time() - computing
    row = Row(
        what=f"verify {verdict.n_entries:,} entries: seconds of processor",
        value=computing,
        bar="60 s",
        met=verdict.ok and verdict.n_entries >= n - 1 and computing <= 60.0,
        note=f"{len(data) / 1e6:.0f} MB; {seconds:.0f} s by the clock",
    )
    return [row]


def _agreement(pool: "Pool", n: int) -> list[Row]:
    with processes() as workers:
        gaps, lowest, highest = zip(*workers.map(partial(_gap, pool), range(n), chunksize=4), strict=True)
    return [
        Row(
            what=f"{n:,} random ledgers of {pool.name}: the ledger's epsilon less the auditor's, at most",
            value=max(gaps),
            unit="",
            bar=f"{WITHIN}",
            met=max(gaps) <= WITHIN,
            note=f"epsilon from {min(lowest):.2f} to {max(highest):.2f}, the auditor's grid {FINE_GRID:g}",
        ),
        Row(
            what="of the same, at least (never below)",
            value=min(gaps),
            unit="",
            bar="0",
            met=min(gaps) >= 0.0,
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What random ledgers choose from, so that the fine distributions of each mechanism are made once."""

    name: str
    n_mechanisms: int
    n_groups: tuple[int, int]
    noise: tuple[float, float]
    noise_unsampled: tuple[float, float]
    log_sampling_prob: tuple[float, float]
    steps: tuple[int, ...]


SMALL = Pool(
    name="1 to 10 groups",
    n_mechanisms=24,
    n_groups=(1, 10),
    noise=(3.0, 12.0),
    noise_unsampled=(25.0, 60.0),
    log_sampling_prob=(-2.5, -1.2),
    steps=(1, 3, 10, 30, 100),
)
# Little noise: distributions so wide that one ledger costs what twenty of the others do.
DEAR = replace(
    SMALL,
    name="1 to 10 dear groups",
    noise=(0.8, 3.0),
    noise_unsampled=(6.0, 25.0),
    log_sampling_prob=(-2.0, -0.8),
)
# Two hundred mechanisms together are to stay within an epsilon that a site would ever allow.
LARGE = Pool(
    name="200 groups",
    n_mechanisms=220,
    n_groups=(200, 200),
    noise=(5.0, 25.0),
    noise_unsampled=(40.0, 80.0),
    log_sampling_prob=(-2.5, -0.9),
    steps=(1, 4),
)


def random_charges(seed: int, pool: Pool) -> tuple[list[Charge], float]:
    """So many groups, each in one to three entries of the ledger, and a delta."""
    draw = stream(seed, "ledger agreement", *pool.n_groups)
    wanted = int(draw.integers(pool.n_groups[0], pool.n_groups[1] + 1))
    charges = []
    for mechanism in draw.permutation(pool.n_mechanisms)[:wanted]:
        numbers = stream(int(mechanism), "ledger mechanisms", *pool.n_groups)
        sampled = numbers.random() < 0.9
        noise = float(numbers.uniform(*(pool.noise if sampled else pool.noise_unsampled)))
        sampling_prob = float(10 ** numbers.uniform(*pool.log_sampling_prob)) if sampled else 1.0
        for steps in _parts(int(draw.choice(pool.steps)), draw):
            charge = Charge(
                what="update",
                mechanism="poisson_gaussian",
                noise_multiplier=noise,
                sampling_prob=sampling_prob,
                steps=steps,
                n_patients=5000,
            )
            charges.append(charge)
    return charges, float(10 ** draw.uniform(-7, -4))


def _parts(steps: int, draw: np.random.Generator) -> list[int]:
    """Splits a group's steps into one to three entries."""
    cuts = sorted({0, steps, *(int(cut) for cut in draw.integers(0, steps + 1, 2))})
    return [after - before for before, after in itertools.pairwise(cuts)]


def _gap(pool: Pool, seed: int) -> tuple[float, float, float]:
    remember_mechanisms(2 * pool.n_mechanisms)  # on the ledger's grid and on the auditor's
    charges, delta = random_charges(seed, pool)
    ours = PldAccountant().epsilon(charges, delta)
    tables = [{**vars(charge), "cap": 0} for charge in charges]
    theirs: float = _auditor().epsilon_of(tables, delta, FINE_GRID)
    return ours - theirs, theirs, theirs


@functools.cache
def _auditor() -> Any:
    """The auditor's program, as it is."""
    path = ROOT / "deploy" / "auditor" / "verify_ledger.py"
    spec = importlib.util.spec_from_file_location("verify_ledger", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise NotMeasured("the auditor's program needs a checkout: deploy/ is not in the wheel")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program
