"""Answers, before anything runs, what a study costs its patients and what else could be had: plain data.

    for name, table in tables(study.privacy, rounds): ...      # each as soon as it is known

| table      | says                                                                                       |
|------------|--------------------------------------------------------------------------------------------|
| `study`    | the cost, seen from every side, and what is weak                                           |
| `promise`  | the words of the guarantee: what is protected, against whom, what it does not cover        |
| `noise`    | the noise multiplier for a target epsilon (the one asked for, or 1, 3 and 8)               |
| `deltas`   | epsilon at other deltas                                                                    |
| `patients` | epsilon if more or fewer took part, the mean draw the same, delta as their number calls for |

Guarantees:
  - Every figure is an upper bound; those of other studies are on a coarser grid, and so never too low.
  - `rounds_left` asks the rule of the site's hard stop: a study of one round more would be denied.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sottovoce.common.errors import PrivacyError
from sottovoce.common.ledger.entries import Charge, DomainOpened
from sottovoce.common.ledger.rule import Accountant, Decision, decide
from sottovoce.common.ledger.state import State
from sottovoce.common.privacy import accountant
from sottovoce.common.privacy.accountant import GRID
from sottovoce.common.privacy.plan import Cost, cost, counts_events, events, training_event
from sottovoce.common.privacy_specs import LocalPrivacy, largest_delta

NOT_COVERED = (
    "a patient under two ids; other voices in a recording; features normalised by other patients' recordings; "
    "what was published elsewhere; how long training took"
)
TARGETS = (1.0, 3.0, 8.0)
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
MAX_ROUNDS = 100_000  # of a study

Numbers = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Room:
    """A domain as a new study finds it: what it has promised, and under which cap."""

    opened: DomainOpened
    cap: float
    promised: tuple[Charge, ...] = ()
    promised_epsilon: float = 0.0
    first: bool = True


def tables(
    spec: LocalPrivacy, rounds: int, *, n_counts: int = 0, target_epsilon: float | None = None
) -> Iterator[tuple[str, Any]]:
    """Yields (name, table), each as soon as it is known."""
    found = cost(spec, rounds, n_counts=n_counts)
    yield "study", _study(spec, rounds, found)
    yield "promise", {**asdict(found.guarantee), "not_covered": NOT_COVERED}
    targets = TARGETS if target_epsilon is None else (target_epsilon,)
    yield "noise", [_noise(spec, rounds, n_counts, target) for target in targets]
    curve = accountant.curve(found.events, _deltas(spec))
    yield "deltas", [{"delta": delta, "epsilon": epsilon} for delta, epsilon in curve]
    yield "patients", [_with_patients(spec, rounds, n_counts, factor) for factor in FACTORS]


def fresh_room(spec: LocalPrivacy, cap: float) -> Room:
    """Returns a domain made for this study, with nothing promised."""
    opened = DomainOpened(
        kind="domain_opened",
        domain="new",
        n_patients=spec.n_patients_public,
        unit="patient",
        adjacency="add_or_remove_one",
        epsilon_cap=cap,
        delta=spec.delta,
        small_population=spec.small_population,
    )
    return Room(opened=opened, cap=cap)


def room_in(state: State, domain: str, *, cap: float | None = None) -> Room:
    """Returns a ledger's domain as it is now; with `cap`, as if its cap were another."""
    found = state.domains[domain]
    return Room(
        opened=found.opened,
        cap=found.cap if cap is None else cap,
        promised=state.promised(domain),
        promised_epsilon=found.promised_epsilon,
        first=not found.grants,
    )


def rounds_left(
    charges_of: Callable[[int], Sequence[Charge]], room: Room, by: Accountant
) -> tuple[int, Decision]:
    """Returns the largest number of rounds that a new study may have, and the decision that allows it.

    `charges_of` gives what a study of so many rounds draws. With no round left the decision is the denial of one.
    """

    def ask(rounds: int) -> Decision:
        return decide(
            room.promised,
            charges_of(rounds),
            opened=room.opened,
            cap=room.cap,
            first=room.first,
            accountant=by,
        )

    below, above = 0, 1
    while above <= MAX_ROUNDS and ask(above).allowed:
        below, above = above, 2 * above
    above = min(above, MAX_ROUNDS + 1)
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if ask(middle).allowed else (below, middle)
    return below, ask(max(below, 1))


def misfits(spec: LocalPrivacy, opened: DomainOpened) -> list[str]:
    """Returns why a domain would deny the study whatever it costs."""
    found = []
    if spec.n_patients_public != opened.n_patients:
        found.append(
            f"privacy.n_patients_public: expected the domain's {opened.n_patients}; came {spec.n_patients_public}."
        )
    if spec.delta > opened.delta:
        found.append(f"privacy.delta: expected at most the domain's {opened.delta:g}; came {spec.delta:g}.")
    return found


def _study(spec: LocalPrivacy, rounds: int, found: Cost) -> dict[str, Any]:
    return {
        "sentence": found.sentence(),
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
        return {
            "epsilon": target,
            "noise_multiplier": None,
        }  # no noise reaches it: an answer, printed as such
    return {"epsilon": target, "noise_multiplier": noise}


def _deltas(spec: LocalPrivacy) -> list[float]:
    powers = [10.0**-k for k in range(2, 10)]
    small = (delta for delta in powers if delta < largest_delta(spec.n_patients_public))
    return sorted({spec.delta, *small}, reverse=True)


def _with_patients(spec: LocalPrivacy, rounds: int, n_counts: int, factor: float) -> Numbers:
    n_patients = max(2, round(spec.n_patients_public * factor))
    # Just below N^-1.1, by 1 %: the rule asks for less, not for equal.
    delta = min(spec.delta, 0.99 * largest_delta(n_patients))
    prob = min(1.0, spec.sampling_prob * spec.n_patients_public / n_patients)
    cap = spec.cap if factor == 1.0 else None
    other = replace(spec, n_patients_public=n_patients, sampling_prob=prob, cap=cap, delta=delta)
    grid = GRID if factor == 1.0 else 5 * GRID
    figure = accountant.epsilon(events(other, rounds, n_counts=n_counts), delta, grid=grid)
    return {"n_patients": n_patients, "sampling_prob": prob, "delta": delta, "epsilon": figure}
