"""Two independent programs: PRV below, PLD between, PRV and RDP above."""

import numpy as np
import pytest

from sottovoce.common.privacy.accountant import Event, epsilon, rdp_epsilon
from sottovoce.common.privacy.prv import bracket
from tests.fakes.privacy import an_event


def random_ledger(rng: np.random.Generator) -> list[Event]:
    return [
        an_event(
            noise_multiplier=float(rng.uniform(1.5, 8.0)),
            sampling_prob=float(rng.choice([rng.uniform(0.01, 0.3), 1.0], p=[0.9, 0.1])),
            steps=int(rng.integers(1, 60)),
            n_patients=1000,
            cap=int(rng.choice([0, 420])) or None,
        )
        for _ in range(rng.integers(1, 4))
    ]


@pytest.mark.parametrize("seed", range(4))
def test_pld_lies_inside_the_bracket_and_below_rdp(seed: int) -> None:
    rng = np.random.default_rng(seed)
    events, delta = random_ledger(rng), float(10 ** rng.uniform(-7, -4))
    found = bracket(events, delta)
    assert found is not None
    lower, upper = found
    ours = epsilon(events, delta)
    assert lower <= ours <= upper <= lower + 0.025
    assert ours <= rdp_epsilon(events, delta).epsilon


def test_there_is_no_bracket_where_opacus_knows_no_mechanism() -> None:
    assert bracket([an_event(records_per_patient=2)], 1e-5) is None
    assert bracket([an_event(cap=64)], 1e-5) is None


def test_no_events_cost_nothing() -> None:
    assert bracket([], 1e-5) == (0.0, 0.0)
