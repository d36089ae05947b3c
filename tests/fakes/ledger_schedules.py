"""Random schedules of crash, retry, restart and concurrency over the production ledger, and what must hold.

Outside stands a patient who counts: every training step that began, and every byte that was sent. Whatever
happened to the disk, after every restart

 1. what began is spent in the ledger (no spend forgotten);
 2. all that began fits under the cap in force when it was approved (no release over the cap);
 3. every release that was sent is committed, and its bytes, and no others, may be sent again;
 4. the ledger verifies, and contains every checkpoint that was sent along.
"""

import itertools
import os
import random
import signal
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from sottovoce.client.policy import adopt
from sottovoce.common.errors import LedgerError
from sottovoce.common.ledger.entries import AnyCharge
from sottovoce.common.ledger.files import DiskFolder
from sottovoce.common.ledger.rule import by_the_filter, merged, order_of
from sottovoce.common.ledger.store import HEAD_FILE, LEDGER_FILE
from sottovoce.common.ledger.verify import verify
from sottovoce.common.privacy.budget import Budget, Granted, Reserved
from tests.fakes.faulty_disk import Fault, FaultyDisk, FaultyFolder, Killed
from tests.fakes.ledgers import ACCOUNTANT, DOMAIN, OTHER_STUDY, STUDY, charge_of, hospital

# Alone 1.6, 2.8 and 4.4 by the filter (the last 2.8 by PLD); caps are 2, 3 and 4: two rarely fit, three never.
ASKED = ((STUDY, 4, 2.0), (OTHER_STUDY, 4, 1.5), (STUDY, 8, 1.5))
STEPS = 2  # of every release
FAULTS: tuple[Fault, ...] = ("kill_before", "kill_after", "torn", "full", "io_error", "short")


class Broken(AssertionError):
    """A schedule after which something that must hold does not."""


@dataclass
class World:
    """What the patient outside has seen."""

    began: Counter[AnyCharge] = field(default_factory=Counter)
    sent: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    largest_cap: float = 3.0
    n_faults: int = 0
    n_restarts: int = 0
    n_denied: int = 0
    next_release: int = 0


_START: dict[str, FaultyDisk] = {}


def fresh_disk(draw: random.Random) -> FaultyDisk:
    """A disk with a young ledger, copied from one that was made once."""
    if "disk" not in _START:
        disk = FaultyDisk()
        hospital().create(FaultyFolder(disk)).close()
        _START["disk"] = disk
    copy = _START["disk"].copy()
    copy.draw = draw
    return copy


def run_schedule(seed: int, *, n_lives: int = 4) -> World:
    """Plays one schedule. Raises: Broken."""
    draw = random.Random(seed)
    disk, world = fresh_disk(draw), World()
    for life in range(n_lives):
        last = life == n_lives - 1
        _arm(disk, draw, world, calm=last)
        power_cut = draw.random() < 0.5
        try:
            _live(disk, draw, world)
        except Killed:
            pass
        except LedgerError:  # a full disk, a failed fsync: the process ends in good order
            power_cut = power_cut and draw.random() < 0.5
        disk.crash(power_cut=power_cut and not last)
        world.n_restarts += 1
    _check(disk, world)
    return world


def run_fault(kind: Fault, operation: int, *, seed: int, power_cut: bool) -> bool:
    """Plays one round of reserve, commit and keep with one fault; says whether it was met. Raises: Broken."""
    if "approved" not in _START:
        disk = fresh_disk(random.Random(0))
        with hospital().open(FaultyFolder(disk)) as ledger:
            hospital().approve(Budget(ledger, ACCOUNTANT))
        _START["approved"] = disk.copy()
    disk = _START["approved"].copy()
    disk.draw, met = random.Random(seed), False

    def fault(n: int, what: str) -> Fault | None:
        nonlocal met
        met |= n == operation
        return kind if n == operation else None

    disk.fault = fault
    world = World()
    try:
        with hospital().open(FaultyFolder(disk)) as ledger:
            budget = Budget(ledger, ACCOUNTANT)
            answer = _reserve(budget, 3, "r1")
            if isinstance(answer, Reserved) and answer.charge is not None:
                world.began[replace(answer.charge, steps=1)] += STEPS
            world.notes.append(budget.commit("r1", b"r1"))
            world.sent["r1"] = b"r1"
    except (Killed, LedgerError):
        pass
    disk.crash(power_cut=power_cut)
    disk.fault = lambda n, what: None
    _check(disk, world)
    return met


@dataclass
class Kills:
    """What came of killing a real process again and again."""

    n_kills: int = 0
    n_reserved: int = 0
    n_sent: int = 0


def run_sigkills(folder: Path, n_kills: int, *, seed: int) -> Kills:
    """Kills a forked process with SIGKILL while it writes to a real disk. Raises: Broken."""
    draw, met, ledger_folder = random.Random(seed), Kills(), folder / "none"
    charge = charge_of(1000, 40.0)
    for number in range(n_kills):
        if number % 25 == 0:  # a ledger that only grows would spend the time on reading
            ledger_folder = folder / f"ledger-{number}"
            with hospital().create(DiskFolder(ledger_folder)) as ledger:
                hospital().approve(Budget(ledger, ACCOUNTANT), hospital().request(charges=[charge]))
            reserved, sent = set[str](), set[str]()
        _kill_one(ledger_folder, number, draw.uniform(0.0, 0.06), reserved, sent)
        met.n_kills += 1
        with hospital().open(DiskFolder(ledger_folder)) as ledger:
            budget = Budget(ledger, ACCOUNTANT)
            if not reserved <= set(budget.state.releases):
                raise Broken("a reservation was forgotten")
            if not all(budget.may_resend(release, release.encode()) for release in sent):
                raise Broken("a commit was forgotten")
            if sum(c.steps for c in budget.state.spent(DOMAIN)) < len(reserved):
                raise Broken("a spend was forgotten")
        verdict = verify(
            (ledger_folder / LEDGER_FILE).read_bytes(), head=(ledger_folder / HEAD_FILE).read_text()
        )
        if not verdict.ok:
            raise Broken(str(verdict.findings))
        if number % 25 == 24 or number == n_kills - 1:
            met.n_reserved += len(reserved)
            met.n_sent += len(sent)
    return met


def _kill_one(folder: Path, number: int, seconds: float, reserved: set[str], sent: set[str]) -> None:
    """The child tells through a pipe what it was told; then it is gone."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of forks beside threads; this child uses none and never returns.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            with hospital().open(DiskFolder(folder)) as ledger:
                budget = Budget(ledger, ACCOUNTANT)
                for k in itertools.count():
                    release = f"{number}/{k}"
                    if not isinstance(_reserve_one(budget, release), Reserved):
                        break
                    os.write(writing, f"r {release}\n".encode())
                    budget.commit(release, release.encode())
                    os.write(writing, f"c {release}\n".encode())
        finally:
            os._exit(1)
    os.close(writing)
    time.sleep(0.02 + seconds)  # it opens the ledger first
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reading) as told:
        for line in told.read().splitlines():
            what, release = line.split(" ")
            (reserved if what == "r" else sent).add(release)


def _reserve_one(budget: Budget, release: str) -> object:
    return budget.reserve(
        release=release,
        grant=3,
        what="update",
        steps=1,
        round=0,
        attempt=0,
        manifest=b"patients",
        withdrawals_honoured=0,
    )


def _arm(disk: FaultyDisk, draw: random.Random, world: World, *, calm: bool) -> None:
    """Something goes wrong at one operation of this life, or at a few; the last life is calm."""
    rate = 0.0 if calm else draw.choice([0.01, 0.03, 0.1])

    def fault(n: int, operation: str) -> Fault | None:
        if draw.random() >= rate:
            return None
        world.n_faults += 1
        return draw.choice(FAULTS)

    disk.fault = fault


def _live(disk: FaultyDisk, draw: random.Random, world: World) -> None:
    """One life of the site's process: workers share one budget, a step of a random one at a time."""
    with hospital().open(FaultyFolder(disk), seen=world.notes[-1:]) as ledger:
        budget = Budget(ledger, ACCOUNTANT)
        _check_budget(budget, world)
        workers = [_worker(budget, draw, world) for _ in range(draw.randint(1, 3))]
        workers.append(_office(budget, ledger_of=ledger, draw=draw, world=world, disk=disk))
        while workers:
            worker = draw.choice(workers)
            try:
                next(worker)
            except StopIteration:
                workers.remove(worker)


def _worker(budget: Budget, draw: random.Random, world: World) -> Iterator[None]:
    """Asks for a study where there is none, then reserve, train, commit, send; sometimes retries or gives up."""
    at = hospital()
    grants = [index for index, grant in budget.state.grants.items() if not grant.closed]
    if not grants or draw.random() < 0.4:
        study, steps, noise = draw.choice(ASKED)
        granted = at.approve(budget, at.request(study=study, charges=[charge_of(steps, noise)]))
        if not isinstance(granted, Granted):
            world.n_denied += 1
            return
        grants = [granted.grant]
    for _ in range(draw.randint(2, 4)):
        yield
        grant = draw.choice(grants)
        world.next_release += 1
        release = f"r{world.next_release}"
        answer = _reserve(budget, grant, release)
        if not isinstance(answer, Reserved) or answer.charge is None:
            world.n_denied += 1
            continue
        world.began[replace(answer.charge, steps=1)] += answer.charge.steps
        yield
        if draw.random() < 0.15:
            budget.burn(release, "training failed")
            continue
        note = budget.commit(release, release.encode())
        world.sent[release] = release.encode()
        world.notes.append(note)


def _reserve(budget: Budget, grant: int, release: str) -> object:
    domain = budget.state.domains[DOMAIN]
    return budget.reserve(
        release=release,
        grant=grant,
        what="update",
        steps=STEPS,
        round=0,
        attempt=0,
        manifest=b"patients",
        withdrawals_honoured=domain.withdrawals,
    )


def _office(
    budget: Budget, *, ledger_of: object, draw: random.Random, world: World, disk: FaultyDisk
) -> Iterator[None]:
    """What else happens to a ledger meanwhile."""
    for _ in range(draw.randint(0, 2)):
        yield
        match draw.randrange(5):
            case 0:
                budget.withdraw(DOMAIN)
            case 1:
                for index, grant in list(budget.state.grants.items()):
                    if not grant.closed and not grant.open_releases:
                        budget.close_study(index, "enough")
                        break
            case 2:
                policy = budget.state.policy
                if policy is None:
                    raise Broken("a policy was forgotten")
                cap = draw.choice([2.0, 3.0, 4.0])
                world.largest_cap = max(world.largest_cap, cap)
                terms = replace(policy.domains[0], epsilon_cap=cap)
                changed = replace(policy, version=policy.version + 1, domains=(terms,))
                adopt(changed, ledger_of)  # type: ignore[arg-type]
            case 3:
                try:
                    hospital().open(FaultyFolder(disk)).close()
                except LedgerError:
                    continue
                raise Broken("a second process opened the ledger")
            case _:
                release = draw.choice([*world.sent, "never"])
                if budget.may_resend(release, b"other bytes"):
                    raise Broken("other bytes may be sent")


def _check_budget(budget: Budget, world: World) -> None:
    """Invariants 1 to 3, at every restart."""
    spent = {replace(charge, steps=1): charge.steps for charge in budget.state.spent(DOMAIN)}
    for charge, steps in world.began.items():
        if spent.get(replace(charge, what="all"), 0) < steps:
            raise Broken(f"{steps} steps began, {spent} are in the ledger")
    together = merged(replace(charge, steps=steps) for charge, steps in world.began.items())
    if together:
        opened = budget.state.domains[DOMAIN].opened
        figures = (
            by_the_filter(together, opened, order=order_of(opened)),
            ACCOUNTANT.epsilon(together, 1e-5),
        )
        if min(figures) > world.largest_cap:
            raise Broken(f"{figures} spent under a cap of {world.largest_cap}")
    for release, released in world.sent.items():
        if not budget.may_resend(release, released) or budget.may_resend(release, released + b"!"):
            raise Broken("a release that was sent is not the committed one")


def _check(disk: FaultyDisk, world: World) -> None:
    """Invariant 4, at the end, and the others once more."""
    with hospital().open(FaultyFolder(disk), seen=world.notes) as ledger:
        _check_budget(Budget(ledger, ACCOUNTANT), world)
    verdict = verify(
        disk.names[LEDGER_FILE].data,
        head=disk.names[HEAD_FILE].data.decode(),
        seen=world.notes,
        public_key=hospital().key.public_hex,
    )
    if not verdict.ok:
        raise Broken(str(verdict.findings))
