"""Secure sums: `python -m sottovoce.simulations.bench secagg`, from a checkout.

Cost of one attempt of 10 sites and 10^6 parameters with 3 sites lost after they dealt (the dearest moment: each
of their masks must be rebuilt and taken off); the same of Flower's SecAgg+, and what that goes along with; scripted
deviations; every pattern of loss of 3 to 6 sites; random attempts of up to 50 sites of which up to a third are
lost; and the second implementation on random transcripts.

CPU seconds of one thread. A client's are of all five of its answers, signatures and all.
"""

import functools
import hashlib
import importlib
import itertools
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.common.errors import SecureSumError
from sottovoce.common.secagg.complaint import proves, read_complaint
from sottovoce.common.secagg.coordinator import SecureSum
from sottovoce.common.secagg.journal import PHASES
from sottovoce.common.secagg.masks import WIDTHS, largest_sum
from sottovoce.common.secagg.session import MIN_SITES, RING_BITS
from sottovoce.simulations.bench.timing import ROOT, NotMeasured, Parts, Row, parts_run, processes, report

N_REPEATS = N_FLOWER_REPEATS = 5
N_SITES, LENGTH, N_LOST = 10, 1_000_000, 3
N_DEVIATIONS = 25
LARGEST_PATTERN = 6
N_RANDOM, SLICE, MAX_SITES = (
    10_000,
    2500,
    50,
)  # in slices: each is a part, and keeps its row when another runs
MAX_RANDOM_LENGTH = 64
N_TRANSCRIPTS = 1000
CHUNK = 20


def measure(**sizes: int) -> dict[str, Any]:
    """Runs all parts, or those of another size: half an hour of one core, most of it random attempts."""
    parts: Parts = {
        "cost": (N_REPEATS, _cost),
        "flower": (N_FLOWER_REPEATS, _flower),
        "deviations": (N_DEVIATIONS, _deviations),
        "patterns": (LARGEST_PATTERN, _patterns),
        "transcripts": (N_TRANSCRIPTS, _transcripts),
        **{f"random_{k}": (SLICE, functools.partial(_random, k * SLICE)) for k in range(N_RANDOM // SLICE)},
    }
    return report(parts_run(parts, **sizes))


def _fake(name: str) -> Any:
    """A module of the checkout's tests. Raises: NotMeasured."""
    if not (ROOT / "tests" / "fakes" / f"{name}.py").is_file():
        raise NotMeasured("the proofs of secure sums need a checkout: tests/ is not in the wheel")
    os.chdir(ROOT)  # `tests` is found from the checkout's root
    sys.path[:0] = [str(ROOT)] if str(ROOT) not in sys.path else []
    return importlib.import_module(f"tests.fakes.{name}")


class _Meter:
    """CPU seconds by party, and bytes by party, direction and phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.n_bytes: dict[tuple[str, str, str], int] = {}

    def clocked(self, party: str, work: Callable[[], Any]) -> Any:
        began = time.process_time()
        done = work()
        self.seconds[party] = self.seconds.get(party, 0.0) + time.process_time() - began
        return done

    def moved(self, site: str, direction: str, phase: str, data: bytes) -> bytes:
        key = (site, direction, phase)
        self.n_bytes[key] = self.n_bytes.get(key, 0) + len(data)
        return data

    def bytes_of(self, site: str, *, vector: bool, direction: str | None = None) -> int:
        """Returns bytes of a site: those of its vector, or all others."""
        return sum(
            n_bytes
            for (who, way, phase), n_bytes in self.n_bytes.items()
            if who == site
            and (direction is None or way == direction)
            and ((phase, way) == ("mask", "up")) is vector
        )


def _attempt(
    values: list[Any], lost: Mapping[str, str], *, bits: int = RING_BITS
) -> tuple[_Meter, SecureSum]:
    """One attempt, every step of it on the meter; its sum stands beside."""
    bound = largest_sum(bits) // N_SITES
    world = _fake("secagg").World(N_SITES, length=LENGTH, bound=bound, ring_bits=bits)
    attempt, meter = world.attempt(values=values), _Meter()
    numbers = {world.site(number): number for number in range(N_SITES)}
    server = attempt.coordinator
    messages = dict.fromkeys(numbers, meter.clocked("coordinator", server.opening))
    for phase in PHASES:
        for site, message in messages.items():
            if site in lost and PHASES.index(lost[site]) <= PHASES.index(phase):
                continue
            meter.moved(site, "down", phase, message)
            answer = meter.clocked(site, functools.partial(attempt.answer, numbers[site], phase, message))
            meter.clocked("coordinator", functools.partial(server.receive, site, answer))
            meter.moved(site, "up", phase, answer)
        messages = meter.clocked("coordinator", server.advance)
    return meter, meter.clocked("coordinator", server.finish)


LOST = {f"hospital-{number:02}": "mask" for number in (1, 4, 8)}


def _values(bits: int = RING_BITS) -> list[npt.NDArray[np.int64]]:
    draw, bound = np.random.default_rng(0), largest_sum(bits) // N_SITES
    return [draw.integers(-bound, bound + 1, LENGTH, dtype=np.int64) for _ in range(N_SITES)]


@dataclass(frozen=True, kw_only=True)
class _Cost:
    """CPU seconds and bytes of a middling attempt."""

    client_seconds: float
    server_seconds: float
    upload_bytes: int
    setup_bytes: int
    exact: bool


def _cost_of(bits: int, n_repeats: int) -> _Cost:
    values = _values(bits)
    sites = [f"hospital-{number:02}" for number in range(N_SITES)]
    plain = np.sum([values[at] for at, site in enumerate(sites) if site not in LOST], axis=0)
    meters, exact = [], True
    for _ in range(n_repeats):
        meter, found = _attempt(values, LOST, bits=bits)
        meters.append(meter)
        exact &= np.array_equal(found.values, plain)
    last = meters[-1]
    return _Cost(
        client_seconds=statistics.median(max(meter.seconds[site] for site in sites) for meter in meters),
        server_seconds=statistics.median(meter.seconds["coordinator"] for meter in meters),
        upload_bytes=max(
            last.bytes_of(site, vector=True) + last.bytes_of(site, vector=False, direction="up")
            for site in sites
        ),
        setup_bytes=max(last.bytes_of(site, vector=False) for site in sites),
        exact=exact,
    )


def _cost(n_repeats: int) -> list[Row]:
    costs = {bits: _cost_of(bits, n_repeats) for bits in (32, 16, 8)}
    cost, what = costs[RING_BITS], f"{N_SITES} sites, {LENGTH:,} parameters, {len(LOST)} lost: "
    return [
        Row(
            what=f"{what}CPU of the dearest client",
            value=cost.client_seconds,
            bar="0.25 s",
            met=cost.client_seconds <= 0.25 and cost.exact,
            note=_exact(cost),
        ),
        Row(
            what=f"{what}CPU of the coordinator",
            value=cost.server_seconds,
            bar="1.0 s",
            met=cost.server_seconds <= 1.0,
        ),
        Row(
            what=f"{what}upload of a client",
            value=cost.upload_bytes / 1e6,
            unit="MB",
            ratio=cost.upload_bytes / (4 * LENGTH),
            against="float32",
            bar="1.03 of float32",
            met=cost.upload_bytes <= 1.03 * 4 * LENGTH,
        ),
        Row(
            what=f"{what}all else of a client, up and down",
            value=cost.setup_bytes / 1000,
            unit="kB",
            bar="50 kB",
            met=cost.setup_bytes <= 50_000,
        ),
        *(
            Row(
                what=f"{what}upload in the ring of {bits} bits",
                value=narrow.upload_bytes / 1e6,
                unit="MB",
                ratio=narrow.upload_bytes / (4 * LENGTH),
                against="float32",
                note=f"{_exact(narrow)}; CPU {narrow.client_seconds:.3f} s and {narrow.server_seconds:.3f} s",
            )
            for bits, narrow in costs.items()
            if bits != RING_BITS
        ),
    ]


def _exact(cost: _Cost) -> str:
    return "sums exact" if cost.exact else "a sum is WRONG"


def _flower(n_repeats: int) -> list[Row]:
    """Flower's own, in turns with ours, at the same sites, threshold, length and losses."""
    # Flower's legacy classes, and all that they import, only when they are measured.
    from sottovoce.simulations.bench import flower_secagg as flower

    values = _values()
    vectors = [(each / largest_sum(RING_BITS) * N_SITES).astype(np.float32) for each in values]
    lost = {int(site[-2:]) + 1: flower.MASK for site in LOST}
    kept = [vector for node, vector in enumerate(vectors, start=1) if node not in lost]
    mean, client, server, ours = (
        np.mean(kept, axis=0),
        list[float](),
        list[float](),
        list[tuple[float, float]](),
    )
    for _ in range(n_repeats):
        found, meter = flower.play(vectors, lost=lost), _attempt(values, LOST)[0]
        if found.mean is None:
            raise NotMeasured(f"Flower's round came to no mean: {found.error} {found.wire.errors}")
        client.append(max(found.wire.seconds.values()))
        server.append(found.server_seconds)
        coordinator = meter.seconds.pop("coordinator")
        ours.append((max(meter.seconds.values()), coordinator))
    apart = float(np.abs(found.mean - mean).max()) / flower.GRAIN
    up = max(flower.uploaded(found.wire, node) for node in range(1, N_SITES + 1))
    what = f"Flower's SecAgg+, {N_SITES} sites, {LENGTH:,} parameters, {len(lost)} lost: "
    versus = [statistics.median(each) for each in zip(*ours, strict=True)]
    return [
        Row(
            what=f"{what}CPU of the dearest client",
            value=statistics.median(client),
            ratio=statistics.median(client) / versus[0],
            against="ours",
            note=f"quantisation in it; the mean is {apart:.2g} of its steps off",
        ),
        Row(
            what=f"{what}CPU of the server",
            value=statistics.median(server),
            ratio=statistics.median(server) / versus[1],
            against="ours",
        ),
        Row(
            what=f"{what}upload of a client",
            value=up / 1e6,
            unit="MB",
            ratio=up / (4 * LENGTH),
            against="float32",
        ),
        *_flower_breaks(),
    ]


def _flower_breaks() -> list[Row]:
    from sottovoce.simulations.bench import flower_secagg as flower

    vectors = list(np.random.default_rng(1).uniform(-1, 1, (N_SITES, 8)).astype(np.float32))
    early = {stage: flower.play(vectors, lost={3: stage}) for stage in (flower.SETUP, flower.SHARE)}
    why = sorted({error for played in early.values() for error in played.wire.errors})
    through = [
        name
        for name, attack in flower.ATTACKS.items()
        if np.abs(attack(vectors) - vectors[0]).max() <= flower.GRAIN
    ]
    return [
        Row(
            what="Flower's SecAgg+, one of 10 sites lost before it dealt: rounds that came to a mean",
            value=float(sum(played.mean is not None for played in early.values())),
            unit=f"of {len(early)}",
            note=f"lost in {' or '.join(early)}; every other site: {'; '.join(why)}",
        ),
        Row(
            what="attacks of a dishonest server that gave it one site's update of Flower's SecAgg+",
            value=float(len(through)),
            unit=f"of {len(flower.ATTACKS)}",
            note="; ".join(through),
        ),
    ]


def _deviations(at_least: int) -> list[Row]:
    fakes = _fake("secagg_deviations")
    through, proved = list[str](), 0
    for deviation in fakes.DEVIATIONS:
        try:
            refusal = deviation.play()
            roster = refusal.attempt.world.roster
            complaint = read_complaint(refusal.error.complaint, roster)
        except (fakes.NotRefused, SecureSumError):
            through.append(deviation.name)
            continue
        told = (complaint.reason, complaint.accused, complaint.evidence_sha256)
        expected = hashlib.sha256(refusal.error.evidence).hexdigest()
        if told != (deviation.reason, deviation.accused, expected):
            through.append(deviation.name)
        proved += proves(complaint, roster)
    n_peers = sum(deviation.by == "peer" for deviation in fakes.DEVIATIONS)
    row = Row(
        what=f"of {len(fakes.DEVIATIONS)} scripted deviations: not refused with a complaint that verifies",
        value=float(len(through)),
        unit="",
        bar=f"0 of at least {at_least}",
        met=not through and len(fakes.DEVIATIONS) >= at_least,
        note=f"{n_peers} of peers, the others of the coordinator; {proved} complaints prove it by the accused's own "
        f"signature{''.join(f'; {name}' for name in through)}",
    )
    return [row]


def _patterns(largest: int) -> list[Row]:
    fakes, rows = _fake("secagg"), []
    for n_sites in range(3, largest + 1):
        every = fakes.patterns(n_sites)
        with fakes.remembered_signatures():
            wrong = sum(count for lost, count in every.items() if not _right(fakes, n_sites, dict(lost)))
        n_patterns = f"{every.total():,}"
        rows.append(
            Row(
                what=f"of all {n_patterns} patterns of loss of {n_sites} sites: neither exact nor duly abandoned",
                value=float(wrong),
                unit="",
                bar="0",
                met=wrong == 0 and every.total() == 6**n_sites,
                note=f"{len(every):,} that differ before their end",
            )
        )
    return rows


def _right(fakes: Any, n_sites: int, lost: Mapping[int, str], **world: Any) -> bool:
    """Whether one attempt ends in the exact sum of the right sites, or is abandoned as the rules demand."""
    attempt = fakes.World(n_sites, **world).attempt()
    expected = fakes.survivors_of(lost, n_sites, world.get("n_min", 3))
    try:
        found = attempt.run(lost)
    except SecureSumError as error:
        return expected is None and error.reason == "abandoned"
    return expected is not None and (
        found.survivors == tuple(map(attempt.world.site, expected))
        and found.values.tolist() == fakes.plain_sum(attempt.values, expected)
    )


def _random(first: int, n: int) -> list[Row]:
    end = first + n
    pieces = [range(start, min(start + CHUNK, end)) for start in range(first, end, CHUNK)]
    with processes() as pool:
        wrong, sums, cohorts = zip(*pool.map(_random_piece, pieces), strict=True)
    sizes = list(itertools.chain(*cohorts))
    large = {least: sum(size >= least for size in sizes) for least in (10, 20, 40)}
    row = Row(
        what=f"of {n:,} random attempts (from {first:,}) of 3 to {MAX_SITES} sites, up to a third lost: as above",
        value=float(sum(wrong)),
        unit="",
        bar="0",
        met=sum(wrong) == 0,
        note=f"{sum(sums):,} sums, up to {max(sizes)} sites; "
        + ", ".join(f"{count:,} of {least} or more" for least, count in large.items()),
    )
    return [row]


def _random_piece(seeds: range) -> tuple[int, int, list[int]]:
    fakes = _fake("secagg")
    wrong, sums, sizes = 0, 0, list[int]()
    for seed in seeds:
        draw = random.Random(seed)
        # n sites as often as 1 / n^2: each size then costs about as much as another, since n sites cost n^2.
        n_sites = min(MAX_SITES, int(1 / draw.uniform(1 / (MAX_SITES + 1), 1 / MIN_SITES)))
        chosen = draw.sample(range(n_sites), draw.randint(0, n_sites // 3))
        lost = {number: draw.choice(PHASES) for number in chosen}
        n_min = draw.choice((3, 3, draw.randint(3, n_sites)))
        world = {
            "n_min": n_min,
            "length": draw.randint(1, MAX_RANDOM_LENGTH),
            "name": f"run {seed}",
            **_ring(draw, n_sites),
        }
        with fakes.remembered_signatures():  # of this attempt alone: its parties check the same ones
            right = _right(fakes, n_sites, lost, **world)
        wrong += not right
        sums += fakes.survivors_of(lost, n_sites, n_min) is not None
        sizes.append(n_sites)
    return wrong, sums, sizes


def _ring(draw: random.Random, n_sites: int) -> dict[str, int]:
    """Any of the rings, and any bound that its sum allows."""
    bits = draw.choice(tuple(WIDTHS))
    return {"ring_bits": bits, "bound": draw.randint(1, largest_sum(bits) // n_sites)}


def _transcripts(n: int) -> list[Row]:
    pieces = [range(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
    with processes() as pool:
        differ, compared = zip(*pool.map(_transcript_piece, pieces), strict=True)
    row = Row(
        what=f"of {n:,} random transcripts of 3 to 7 sites: the second implementation differs",
        value=float(sum(differ)),
        unit="",
        bar="0",
        met=sum(differ) == 0,
        note=f"{sum(compared):,} messages, byte for byte",
    )
    return [row]


def _transcript_piece(seeds: range) -> tuple[int, int]:
    vectors, check = _fake("secagg_vectors"), _fake("secagg_check")
    differ = compared = 0
    for seed in seeds:
        draw = random.Random(seed)
        n_sites = draw.randint(3, 7)
        chosen = draw.sample(range(n_sites), draw.randint(0, n_sites // 3))
        table = vectors.transcript(
            n_sites,
            {number: draw.choice(PHASES) for number in chosen},
            name=f"run {seed}",
            length=draw.randint(1, 40),
            **_ring(draw, n_sites),
        )
        try:
            compared += check.check_transcript(table)
        except check.Disagreement:
            differ += 1
    return differ, compared
