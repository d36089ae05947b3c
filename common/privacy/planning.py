"""What planning has in common for both private modes, and how many rounds a budget leaves for a study.

The tables of `sottovoce privacy plan` are `planning_local.py`'s and `planning_distributed.py`'s; `of_study.tables`
gives a study its own.

Guarantees:
  - `rounds_left` asks the rule of the site's hard stop: a study of one round more would be denied.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sottovoce.common.ledger.entries import AnyCharge, DomainOpened
from sottovoce.common.ledger.rule import Accountant, Decision, decide
from sottovoce.common.ledger.state import State
from sottovoce.common.privacy.filter import KEPT
from sottovoce.common.privacy_specs import Private, largest_delta

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
    promised: tuple[AnyCharge, ...] = ()
    promised_epsilon: float = 0.0
    first: bool = True


def fresh_room(spec: Private, cap: float) -> Room:
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
        conceded_delta=spec.delta * KEPT,
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
    charges_of: Callable[[int], Sequence[AnyCharge]], room: Room, by: Accountant
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


def misfits(spec: Private, opened: DomainOpened) -> list[str]:
    """Returns why a domain would deny the study whatever it costs."""
    found = []
    if spec.n_patients_public != opened.n_patients:
        found.append(
            f"privacy.n_patients_public: expected the domain's {opened.n_patients}; came {spec.n_patients_public}."
        )
    if spec.delta > opened.delta:
        found.append(f"privacy.delta: expected at most the domain's {opened.delta:g}; came {spec.delta:g}.")
    return found


def delta_for(delta: float, n_patients: int) -> float:
    """Returns a study's delta, or less where so many patients call for it."""
    # Just below N^-1.1, by 1 %: the rule asks for less, not for equal.
    return min(delta, 0.99 * largest_delta(n_patients))


def deltas_for(delta: float, n_patients: int) -> list[float]:
    """Returns a study's delta and the powers of ten that so many patients allow, the largest first."""
    powers = (10.0**-k for k in range(2, 10))
    return sorted({delta, *(power for power in powers if power < largest_delta(n_patients))}, reverse=True)
