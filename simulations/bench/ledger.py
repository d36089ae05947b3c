"""The slow proofs of the ledger: `python -m sottovoce.simulations.bench ledger`, from a checkout.

Random schedules of crash, retry, restart and concurrency over the production ledger; kill and write faults
through a disk that fails; SIGKILLs of a real process; single mutations, each to be found where it is; the
time that verification takes; and the auditor's program, on a grid ten times finer, against the ledger.
The fakes and the auditor's program are not in the wheel, so this runs in a checkout.
"""

import functools
import importlib
import importlib.util
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from sottovoce.common.ledger.entries import Charge
from sottovoce.common.ledger.store import HEAD_FILE, LEDGER_FILE
from sottovoce.common.ledger.verify import verify
from sottovoce.common.privacy.budget import PldAccountant
from sottovoce.common.streams import stream
from sottovoce.simulations.bench.timing import ROOT, NotMeasured, Row, report

N_SCHEDULES = 100_000
N_FAULTS = 19_000
N_KILLS = 1000
N_MUTATIONS = 100_000
N_ENTRIES = 100_000
N_LEDGERS, N_LARGE, N_GROUPS = 1000, 20, 200
CHUNK = 250
FINE_GRID = 1e-5
WITHIN = 1e-3
N_MECHANISMS = 24  # a fine distribution takes seconds to make and 50 MB, so ledgers share so many mechanisms


def measure(
    n_schedules: int = N_SCHEDULES,
    n_faults: int = N_FAULTS,
    n_kills: int = N_KILLS,
    n_mutations: int = N_MUTATIONS,
    n_entries: int = N_ENTRIES,
    n_ledgers: int = N_LEDGERS,
    n_large: int = N_LARGE,
) -> dict[str, Any]:
    """Runs all of it: some hours on two cores, most of it schedules and the fine grid."""
    return report(
        [
            _schedules(n_schedules),
            _faults(n_faults),
            _kills(n_kills),
            _mutations(n_mutations),
            _speed(n_entries),
            *_agreement("of 1 to 10 mechanisms", n_ledgers, (1, 10)),
            *_agreement(f"of {N_GROUPS} mechanisms", n_large, (N_GROUPS, N_GROUPS)),
        ]
    )


def _fake(name: str) -> Any:
    """A module of the checkout's tests. Raises: NotMeasured."""
    if not (ROOT / "tests" / "fakes" / f"{name}.py").is_file():
        raise NotMeasured("the proofs of the ledger need a checkout: tests/ is not in the wheel")
    os.chdir(ROOT)  # `tests` is found from the checkout's root
    import sys

    sys.path[:0] = [str(ROOT)] if str(ROOT) not in sys.path else []
    return importlib.import_module(f"tests.fakes.{name}")


def _spread(work: Callable[[range], Sequence[int]], n: int) -> list[int]:
    """Adds up what the pieces of `range(n)` return, over all cores."""
    pieces = [range(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        return [sum(column) for column in zip(*pool.map(work, pieces), strict=True)]


def _schedules(n: int) -> Row:
    broken, faults, restarts, sent = _spread(_run_schedules, n)
    return Row(
        what=f"of {n:,} schedules of crash, retry, restart and concurrency: over the cap, or a spend forgotten",
        value=float(broken),
        unit="",
        bar="0",
        met=broken == 0,
        note=f"{faults:,} faults, {restarts:,} restarts, {sent:,} releases sent",
    )


def _run_schedules(seeds: range) -> tuple[int, int, int, int]:
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


def _faults(n: int) -> Row:
    broken, met = _spread(_run_faults, n)
    return Row(
        what=f"of {n:,} kill and write faults at the operations of a round: something lost",
        value=float(broken),
        unit="",
        bar="0",
        met=broken == 0 and met > n // 2,
        note=f"{met:,} met their operation",
    )


def _run_faults(seeds: range) -> tuple[int, int]:
    schedules = _fake("ledger_schedules")
    broken = met = 0
    for seed in seeds:
        draw = random.Random(seed)
        kind = draw.choice(schedules.FAULTS)
        try:
            met += schedules.run_fault(kind, draw.randint(1, 18), seed=seed, power_cut=draw.random() < 0.5)
        except schedules.Broken:
            broken += 1
    return broken, met


def _kills(n: int) -> Row:
    schedules = _fake("ledger_schedules")
    with tempfile.TemporaryDirectory(prefix="sottovoce-bench-") as folder:
        try:
            met, lost = schedules.run_sigkills(Path(folder), n, seed=0), 0
        except schedules.Broken:
            return Row(
                what=f"of {n:,} SIGKILLs of a real process: something lost", value=1.0, bar="0", met=False
            )
    return Row(
        what=f"of {n:,} SIGKILLs of a real process on a real disk: something lost",
        value=float(lost),
        unit="",
        bar="0",
        met=met.n_kills == n,
        note=f"{met.n_reserved:,} reservations and {met.n_sent:,} commits were acknowledged before a kill",
    )


def _mutations(n: int) -> Row:
    missed, misplaced = _spread(_run_mutations, n)
    return Row(
        what=f"of {n:,} single mutations of a ledger: not found, or found elsewhere",
        value=float(missed + misplaced),
        unit="",
        bar="0",
        met=missed + misplaced == 0,
    )


def _run_mutations(seeds: range) -> tuple[int, int]:
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


def _speed(n: int) -> Row:
    data, head = _fake("ledger_vectors").long_ledger(n)
    began = time.perf_counter()
    verdict = verify(data, head=head)
    seconds = time.perf_counter() - began
    return Row(
        what=f"verify {verdict.n_entries:,} entries",
        value=seconds,
        bar="60 s",
        met=verdict.ok and verdict.n_entries >= n - 1 and seconds <= 60.0,
        note=f"{len(data) / 1e6:.0f} MB",
    )


def _agreement(what: str, n: int, n_groups: tuple[int, int]) -> list[Row]:
    if n == 0:
        return []
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        gaps = list(pool.map(_gap, range(n), [n_groups] * n))
    return [
        Row(
            what=f"{n:,} random ledgers {what}: the ledger's epsilon less the auditor's, at most",
            value=max(gaps),
            unit="",
            bar=f"{WITHIN}",
            met=max(gaps) <= WITHIN,
        ),
        Row(
            what="of the same, at least (never below)",
            value=min(gaps),
            unit="",
            bar="0",
            met=min(gaps) >= 0.0,
        ),
    ]


def random_charges(seed: int, n_groups: tuple[int, int]) -> tuple[list[Charge], float]:
    """Any number of entries over so many mechanisms, and a delta."""
    draw = stream(seed, "ledger agreement", *n_groups)
    wanted = int(draw.integers(n_groups[0], n_groups[1] + 1))
    mechanisms = draw.permutation(max(wanted, N_MECHANISMS))[:wanted]
    charges = []
    for mechanism in mechanisms:
        numbers = stream(int(mechanism), "ledger mechanisms", n_groups[0])
        # Two hundred mechanisms together are to stay within an epsilon that a site would ever allow.
        noise = float(numbers.uniform(1.5, 10.0)) if wanted <= 10 else float(numbers.uniform(4.0, 16.0))
        sampling_prob = float(10 ** numbers.uniform(-2.5, -0.7)) if numbers.random() < 0.9 else 1.0
        for _ in range(int(draw.integers(1, 4))):
            charges.append(
                Charge(
                    what="update",
                    mechanism="poisson_gaussian",
                    noise_multiplier=noise,
                    sampling_prob=sampling_prob,
                    steps=int(10 ** draw.uniform(0, 2 if wanted <= 10 else 1)),
                    n_patients=5000,
                )
            )
    return charges, float(10 ** draw.uniform(-7, -4))


def _gap(seed: int, n_groups: tuple[int, int]) -> float:
    charges, delta = random_charges(seed, n_groups)
    ours = PldAccountant().epsilon(charges, delta)
    tables = [{"cap": 0, **vars(charge)} | {"cap": charge.cap or 0} for charge in charges]
    theirs: float = _auditor().pld_epsilon(tables, delta, FINE_GRID)
    return ours - theirs


@functools.cache
def _auditor() -> Any:
    """The auditor's program; the library's distributions are remembered, its own code is as it is."""
    path = ROOT / "deploy" / "auditor" / "verify_ledger.py"
    spec = importlib.util.spec_from_file_location("verify_ledger", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise NotMeasured("the auditor's program needs a checkout: deploy/ is not in the wheel")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    library = importlib.import_module("dp_accounting.pld.privacy_loss_distribution")
    remembered = functools.lru_cache(maxsize=N_MECHANISMS)(library.from_gaussian_mechanism)
    library.from_gaussian_mechanism = remembered  # type: ignore[attr-defined]
    return program
