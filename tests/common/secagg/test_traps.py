"""What a site must not be talked into, where a mistake of one line would go unnoticed by every sum that is right."""

import inspect
import itertools
import os
from dataclasses import replace

import pytest

from sottovoce.common.errors import SecureSumError
from sottovoce.common.secagg import shamir, wire
from sottovoce.common.secagg.journal import PHASES, Mark
from sottovoce.common.secagg.participant import Participant
from sottovoce.common.secagg.session import refuse_unless_agreed, threshold_of
from sottovoce.common.secagg.state import decode_state
from sottovoce.common.secagg.steps import Ended
from sottovoce.common.secagg.wire import Kind
from tests.fakes.secagg import World
from tests.fakes.secagg_deviations import body_of, parts, told


@pytest.mark.parametrize("changed", [{"view": bytes(32)}, {"dealers": (0, 1, 2, 3)}])
def test_a_consent_under_other_dealers_or_another_view_is_refused_though_its_survivors_are_the_same(
    changed: dict[str, object],
) -> None:
    attempt = World(5).attempt().until("reveal", {4: "mask"})
    consents = parts(attempt, Kind.CONSENTS)
    consent = wire.decode_consent(body_of(consents[1], Kind.CONSENT))
    other = replace(consent, **changed).encode()  # type: ignore[arg-type]
    consents[1] = wire.seal(Kind.CONSENT, attempt.session.digest, 1, other, attempt.world.keys[1])
    message = told(attempt, Kind.CONSENTS, wire.encode_messages(consents))
    with pytest.raises(SecureSumError) as refused:
        attempt.answer(0, "reveal", message)
    assert refused.value.reason == "consent"


@pytest.mark.parametrize("n_sites", [1, 2])
def test_nobody_is_summed_with_fewer_than_two_others_though_the_study_allows_it(n_sites: int) -> None:
    world = World(5, n_min=1)
    whole = world.session()
    session = replace(whole, cohort=whole.cohort[:n_sites], threshold=threshold_of(n_sites))
    with pytest.raises(SecureSumError) as refused:
        refuse_unless_agreed(session, world.agreement)
    assert refused.value.reason == "cohort"
    refuse_unless_agreed(replace(whole, cohort=whole.cohort[:3], threshold=2), world.agreement)


def test_a_vector_of_a_site_that_never_dealt_is_not_added() -> None:
    attempt = World(5).attempt().until("mask", {4: "deal"})
    body = bytes(4 * attempt.session.length)
    late = wire.seal(Kind.MASKED, attempt.session.digest, 4, body, attempt.world.keys[4])
    with pytest.raises(SecureSumError) as refused:
        attempt.coordinator.receive(attempt.world.site(4), late)
    assert refused.value.reason == "phase"
    assert attempt.run().survivors == tuple(map(attempt.world.site, range(4)))


@pytest.mark.parametrize(("threshold", "n_shares"), [(2, 3), (4, 5), (7, 10)])
def test_one_share_less_than_the_threshold_is_not_the_secret(threshold: int, n_shares: int) -> None:
    secret = os.urandom(32)
    shares = shamir.split(secret, threshold=threshold, n_shares=n_shares, coins=os.urandom)
    for chosen in itertools.combinations(range(n_shares), threshold - 1):
        assert shamir.combine({number: shares[number] for number in chosen}) != secret


def test_who_is_given_no_coins_takes_them_from_the_operating_system() -> None:
    for made in (Participant, Participant.resume):
        assert inspect.signature(made).parameters["coins"].default is os.urandom


class FullDisk:
    def record(self, mark: Mark) -> bool:
        raise OSError("no space left on device")


@pytest.mark.parametrize("phase", PHASES)
def test_a_disk_that_takes_no_mark_leaves_no_state_to_go_on_with(phase: str) -> None:
    attempt = World(3).attempt().until(phase)
    site = attempt.participants[0]
    site._journal = FullDisk()
    with pytest.raises(OSError, match="no space"):
        attempt.answer(0, phase, attempt.messages[0])
    assert decode_state(site.state_bytes()) == Ended()
