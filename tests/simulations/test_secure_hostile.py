"""Claims against a hostile coordinator, hostile sites and bad luck: each was a hole that a review found."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sottovoce.client.site_ledger import SiteLedger
from sottovoce.common.dataset import Example, SiteData
from sottovoce.common.errors import LedgerError, QuorumError
from sottovoce.common.federation_ledger.compare import compare_with_site
from sottovoce.common.flower import config_record, exchange, sum_message, sum_reply_of
from sottovoce.common.keys import SigningKey
from sottovoce.common.ledger.verify import entries_of
from sottovoce.common.secagg.session import Member
from sottovoce.common.weights import Layout
from sottovoce.server.exchange import Call, Share
from sottovoce.simulations import site_ledgers
from tests.fakes import sites as fakes
from tests.fakes.secure_rounds import Federation


def call_of(place: Federation, **changes: object) -> Call:
    layout = Layout.of(place.weights)
    rounds = place.study.federation.rounds
    constants: dict[str, object] = {
        "round": 1, "rounds": rounds, "attempt": 1, "seed": 0, "fold": 0, "layout": layout,
        "weights": layout.flatten(place.weights).astype(np.float32), "deadline_seconds": 60.0, "max_update_norm": 1e4,
    }  # fmt: skip
    return Call(**{**constants, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"rounds": 1}, {"config": {"proximal-mu": 1e-9}}])
def test_a_site_takes_rounds_and_pull_from_its_study_alone(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    place = Federation(tmp_path, "none", rounds=2)
    with place.exchange() as (_, secure):
        assert secure.train(call_of(place, **changes), [Share(site=s) for s in place.sites]).sites == []


@pytest.mark.parametrize("mode", ["none", "local"])
def test_a_round_of_some_sites_is_evaluated_by_all(tmp_path: Path, mode: str) -> None:
    outcome = Federation(tmp_path, mode, rounds=2, more="sites_per_round = 3").run()
    assert outcome.rounds[-1].confusion is not None


def test_two_patients_of_one_speaker_id_are_refused_in_mode_distributed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fakes._example

    def shared(key: str, index: int, centres: np.ndarray, draw: np.random.Generator) -> Example:
        one = whole(key, index, centres, draw)
        speaker = one.speaker if index % 4 > 1 else one.speaker[:-1] + "shared"
        return replace(one, speaker=speaker, patient=f"patient-{index % 4}-{one.speaker}")

    monkeypatch.setattr(fakes, "_example", shared)
    monkeypatch.setattr(fakes, "STUDY", fakes.STUDY.replace('"constants"', '"speaker"'))
    place = Federation(tmp_path, rounds=1)
    assert any(
        len(set(zip(d.speakers, d.patients, strict=True))) > len(set(d.speakers))
        for d in map(SiteData.open, place.sites.values())
    )
    with pytest.raises(QuorumError):
        place.run()


def test_a_dealer_whose_shares_are_of_no_secret_ends_one_attempt_and_is_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sottovoce.client import app, secure
    from sottovoce.common.secagg import shamir

    split, honest = shamir.split, secure.answered

    def answered(name: str, body: bytes, **rest: object) -> object:
        if rest["site"] != "site-1" or name != "deal":
            return honest(name, body, **rest)  # type: ignore[arg-type]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                shamir, "split", lambda s, *, threshold, **more: split(s, threshold=threshold + 1, **more)
            )
            return honest(name, body, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(app, "answered", answered)
    place = Federation(tmp_path, rounds=1)
    assert place.run().rounds[0].sites == ("site-2", "site-3", "site-4", "site-5")


def test_a_denied_approval_leaves_the_roster_of_the_approved_study(tmp_path: Path) -> None:
    place = Federation(tmp_path, rounds=1)
    with SiteLedger.open(place.places["site-1"]) as site:
        roster = site.secure.roster(place.study.digest())
        stranger = Member(site="site-9", public_key=SigningKey.generate().public_hex)
        other = replace(roster, members=(*roster.members, stranger))
        with suppress(LedgerError):  # a roster of more sites than the study has
            site.approve(
                place.study, domain=site_ledgers.DOMAIN, person="X", key=SigningKey.generate(), roster=other
            )
        assert site.roster(place.study) == roster


def test_no_approval_of_a_roster_that_gives_one_key_two_names_or_has_too_many_sites(tmp_path: Path) -> None:
    place = Federation(tmp_path, rounds=1)
    with SiteLedger.open(place.places["site-1"]) as site:
        roster = site.secure.roster(place.study.digest())
        sybil = Member(site="site-5", public_key=roster.coordinator)
        stranger = Member(site="site-9", public_key=SigningKey.generate().public_hex)
        for members in ((*roster.members[:4], sybil), (*roster.members, stranger)):
            with pytest.raises(LedgerError):
                site.request(place.study, site_ledgers.DOMAIN, replace(roster, members=members))


def test_a_site_whose_vector_failed_is_lost_to_the_attempt_and_charged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sottovoce.client import releases, train_private

    whole, fails = train_private.gradient_sum, iter([True])

    def flaky(model: object, data: SiteData, *rest: object, **more: object) -> object:
        if data.site == "site-5" and next(fails, False):
            raise OSError("the disk was away")
        return whole(model, data, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(releases, "gradient_sum", flaky)
    place = Federation(tmp_path, rounds=1)
    with place.exchange() as (grid, secure):
        once = grid.phase

        def asked_twice(kind, phase, call, model, bodies):  # type: ignore[no-untyped-def]
            if phase == "mask":
                list(once(kind, phase, call, model, {"site-5": bodies["site-5"]}))
            yield from once(kind, phase, call, model, bodies)

        monkeypatch.setattr(grid, "phase", asked_twice)
        assert "site-5" not in secure.train(call_of(place), [Share(site=s) for s in place.sites]).sites
    assert place.entries("site-5") == ["reserve", "burn"]
    assert (
        compare_with_site(place.record(), entries_of((place.places["site-5"] / "ledger.jsonl").read_bytes()))
        == ()
    )


def test_a_number_in_place_of_a_body_allocates_nothing(tmp_path: Path) -> None:
    import tracemalloc

    place = Federation(tmp_path, n_sites=3)
    with place.exchange() as (grid, _):
        config = config_record(call_of(place).message_config)
        message = sum_message("train.advert", 1, 50_000_000, "0" * 64, config, arrays=None, group="g", ttl=60)  # type: ignore[arg-type]
        tracemalloc.start()
        (reply,) = exchange(grid._grid, [message], window=1, timeout=60)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert reply is not None
    assert not sum_reply_of(reply).body
    assert peak < 25_000_000
