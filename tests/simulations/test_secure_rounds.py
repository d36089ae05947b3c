"""Claims of secure sums in rounds: on real grids, with real ledgers, and against the same sums in the clear."""

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sottovoce.client import app as client_app
from sottovoce.client import secure
from sottovoce.client.site_ledger import SECURE, SiteLedger
from sottovoce.common.dataset import SiteData, pool
from sottovoce.common.errors import LedgerError, QuorumError, RunError
from sottovoce.common.federation_ledger.compare import compare_with_site
from sottovoce.common.keys import SigningKey
from sottovoce.common.ledger.verify import entries_of
from sottovoce.common.privacy import distributed, plan
from sottovoce.common.secagg.session import Member, Roster
from sottovoce.common.study import Execution, FedAvgM, load
from sottovoce.common.sums import codec_of
from sottovoce.common.weights import Array, Layout
from sottovoce.server.exchange import Call, Share
from sottovoce.server.rounds import Outcome, RoundRecord, run
from sottovoce.simulations import site_ledgers
from sottovoce.simulations.engines import open_exchange
from tests.fakes.secure_rounds import CELL, DIES_IN, Federation
from tests.fakes.sites import LINEAR, SGD, write_study

DYING = "tests.fakes.secure_rounds:dying_app"


def flat(weights: Mapping[str, Array]) -> np.ndarray:
    return Layout.of(weights).flatten(weights).astype(np.float64)


def in_the_clear(place: Federation, **changes: object) -> Outcome:
    """The same study and sites, summed in floats."""
    bare = replace(
        place.study, federation=replace(place.study.federation, secure_sum=False, compression=None)
    )
    with open_exchange(
        Execution(), place.sites, study_file=place.study_file, without_privacy=True
    ) as exchange:
        return run(exchange, bare, cell=CELL, weights=place.weights)


@pytest.fixture(scope="module")
def distributed_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, Outcome]:
    place = Federation(tmp_path_factory.mktemp("distributed"))
    return place, place.run()


def test_without_privacy_the_weights_are_those_of_plain_sums_up_to_the_grid(tmp_path: Path) -> None:
    place = Federation(tmp_path, "none")
    masked, plain = place.run(), in_the_clear(place)
    step = 16.0 / ((2**31 - 1) // 5)
    assert np.abs(flat(masked.weights) - flat(plain.weights)).max() <= 2 * (step + 2**-23)
    assert masked.rounds[-1].confusion == plain.rounds[-1].confusion  # counts are exact
    assert (
        masked.rounds[-1].loss is None
    )  # one site's loss would be told to nobody in particular: it is not sent


@pytest.mark.parametrize(("bits", "largest_error"), [(16, 1e-3), (8, 0.2)])
def test_narrow_words_cost_accuracy_and_save_bytes(tmp_path: Path, bits: int, largest_error: float) -> None:
    more = f"compression = {{ bits = {bits}, norm = 4.0 }}"
    place = Federation(tmp_path, "none", rounds=1, more=more)
    masked, plain = place.run(), in_the_clear(place)
    gap = np.linalg.norm(flat(masked.weights) - flat(plain.weights))
    assert 0 < gap < largest_error
    length = codec_of(place.study, len(flat(plain.weights)), seed=0, round=1).length
    (tmp_path / "wide").mkdir()
    wide = Federation(tmp_path / "wide", "none", rounds=1)
    saved = wide.run().rounds[0].bytes_up - masked.rounds[0].bytes_up
    assert saved == 5 * (4 * len(flat(plain.weights)) - bits // 8 * length)


def test_the_same_bits_from_other_processes_and_in_every_mode(
    distributed_once: tuple[Federation, Outcome], tmp_path: Path
) -> None:
    _, outcome = distributed_once
    again = Federation(tmp_path).run(engine="processes", workers=2)
    assert again.digest == outcome.digest
    assert [record.confusion for record in again.rounds] == [record.confusion for record in outcome.rounds]


@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra `ray`")
def test_the_same_bits_on_flowers_own_backend(
    distributed_once: tuple[Federation, Outcome], tmp_path: Path
) -> None:
    _, outcome = distributed_once
    assert Federation(tmp_path).run(engine="ray", workers=2).digest == outcome.digest


def test_processes_that_are_killed_in_any_phase_leave_the_exact_sum_of_the_survivors(tmp_path: Path) -> None:
    """The last phase in which its vector is not there, and one after; every phase and pattern: `bench secagg`."""
    place = Federation(tmp_path, "none", rounds=len(DIES_IN))
    outcome = place.run(engine="processes", workers=2, app=DYING)
    lost = [record.refused.get("site-2", "") for record in outcome.rounds]
    assert all("ended twice" in reason for reason in lost)
    # Up to phase `mask` its vector was not there; afterwards it is in the sum, and the others take its masks off.
    assert [("site-2" in record.sites) for record in outcome.rounds] == [False, True]
    weights, expected = place.weights, flat(place.weights)
    for record in outcome.rounds:
        expected = expected + exact_mean(place, weights, record)
        expected = expected.astype(np.float32).astype(np.float64)
        weights = Layout.of(weights).unflatten(expected.astype(np.float32))
    np.testing.assert_array_equal(flat(outcome.weights), expected)
    assert [survivors for *_, survivors in place.attempts("update")] == [
        record.sites for record in outcome.rounds
    ]


def exact_mean(place: Federation, weights: Mapping[str, Array], record: RoundRecord) -> np.ndarray:
    """The mean of the survivors' rounded changes, each asked in the clear."""
    layout, sent = Layout.of(weights), flat(weights)
    codec = codec_of(place.study, layout.size, seed=CELL.seed, round=record.round)
    total = np.zeros(codec.length, np.int64)
    call = Call(
        round=record.round,
        rounds=place.study.federation.rounds,
        attempt=1,
        seed=CELL.seed,
        fold=CELL.fold,
        layout=layout,
        weights=sent.astype(np.float32),
        deadline_seconds=600.0,
        max_update_norm=1e4,
    )
    with open_exchange(Execution(), place.sites, study_file=place.study_file, without_privacy=True) as plain:
        for site in record.sites:
            change = plain.train(call, [Share(site=site)]).total
            total += codec.encode(change, site=site)
    return (codec.decode(total) / len(record.sites)).astype(np.float32).astype(np.float64)


def test_a_distributed_run_is_in_every_ledger_and_they_agree(
    distributed_once: tuple[Federation, Outcome],
) -> None:
    place, outcome = distributed_once
    report = place.record()
    assert [attempt.what for attempt in report.attempts] == ["update", "update", "evaluation_counts"]
    for site in place.sites:
        assert place.entries(site) == ["reserve", "commit"] * 3
        entries = entries_of((place.places[site] / "ledger.jsonl").read_bytes())
        assert compare_with_site(report, entries) == ()
        assert site in outcome.rounds[-1].witnessed


def test_with_noise_off_the_weights_are_those_of_pooled_dp_sgd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everybody: dict[str, Any] = {"sampling_prob": "1.0", "expected_patients": "4.0", "n_patients_public": "8"}
    momentum = FedAvgM(kind="fedavgm", momentum=0.5)

    def silence(variance: object, n: int, source: object) -> np.ndarray:
        return np.zeros(n, np.int64)

    monkeypatch.setattr(distributed, "discrete_gaussians", silence)
    monkeypatch.setattr(plan, "add_noise", lambda total, noise, source: _as_noisy(total, noise))
    place = Federation(
        tmp_path, rounds=4, more='strategy = { kind = "fedavgm", momentum = 0.5 }', **everybody
    )
    apart = place.run()

    parts = [SiteData.open(folder) for folder in place.sites.values()]
    pool(tmp_path / "pooled", site="pooled", parts=parts)
    privacy = """{ mode = "local", clip_norm = 1.0, noise_multiplier = 1.0, sampling_prob = 1.0, \
n_patients_public = 40, expected_patients = 20.0, steps_per_round = 1, delta = 0.01, \
small_population = true, seeded_noise = true }"""
    file = write_study(
        tmp_path / "pooled.toml", n_sites=1, rounds=4, privacy=privacy, model=LINEAR, training=SGD,
        federation='strategy = { kind = "fedavgm", momentum = 0.5 }',
    )  # fmt: skip
    study = load(file)
    assert study.federation.strategy == momentum
    site_ledgers.open_all(tmp_path / "one", study, ["pooled"])
    with open_exchange(
        Execution(), {"pooled": tmp_path / "pooled"}, study_file=file, ledgers=tmp_path / "one"
    ) as exchange:
        together = run(exchange, study, cell=CELL, weights=place.weights)
    moved = np.abs(flat(together.weights) - flat(place.weights)).max()
    gap = np.abs(flat(apart.weights) - flat(together.weights)).max()
    assert moved > 0.1
    assert gap < 1e-5


def _as_noisy(total: object, noise: float) -> object:
    from sottovoce.common.privacy.stages import NoisySum, QuantisedSum

    assert isinstance(total, QuantisedSum)
    return NoisySum(values=total.values, noise_multiplier=noise, grid_step=total.grid_step, simulated=True)


def test_noise_is_in_the_sum_and_only_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Federation(tmp_path, rounds=1, noise_multiplier="200.0", expected_patients="1.0", n_min="4")
    loud = place.run().rounds[0].update_norm
    # Five shares of (200)^2 / (n_min 4 - n_colluding 1), over 5 expected patients, in 21 coordinates.
    expected = 200 * np.sqrt(5 / 3 * 21) / 5
    assert 0.6 * expected < loud < 1.5 * expected


def test_a_plain_request_is_refused_where_the_study_has_secure_sums(tmp_path: Path) -> None:
    place = Federation(tmp_path)
    bare = replace(place.study, federation=replace(place.study.federation, deadline_seconds=30.0))
    with place.exchange() as (grid, _), pytest.raises(QuorumError, match="sends nothing in the clear"):
        run(grid, bare, cell=CELL, weights=place.weights)
    assert place.entries("site-1") == []


def test_an_attempt_that_fell_apart_is_charged_and_another_draws_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Federation(tmp_path, rounds=1, n_min="4")
    _silent_once(monkeypatch, {"site-1", "site-2"}, "consent")
    outcome = place.run()
    assert outcome.rounds[0].attempts == 2
    assert len(outcome.rounds[0].sites) == 5
    for site in place.sites:  # two updates, and the counts
        assert place.entries(site) == ["reserve", "commit"] * 3
    everybody = tuple(place.sites)
    assert place.attempts("update") == [(1, 1, True, ()), (1, 2, True, everybody)]


def _silent_once(monkeypatch: pytest.MonkeyPatch, sites: set[str], phase: str) -> None:
    """Site processes that answer one phase once with an error."""
    silent = set(sites)
    whole = secure.answered

    def answered(name: str, body: bytes, **rest: object) -> object:
        if name == phase and rest["site"] in silent:
            silent.discard(str(rest["site"]))
            raise RunError("this site was away")
        return whole(name, body, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(client_app, "answered", answered)


def test_a_run_goes_on_after_a_crash_in_mid_attempt_with_a_new_attempt_and_the_same_bits(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    whole = Federation(tmp_path / "a").run()
    place = Federation(tmp_path / "b")

    class Crash(BaseException):
        pass

    def crash(record: RoundRecord) -> None:
        raise Crash

    checkpoint = tmp_path / "state.safetensors"
    with pytest.raises(Crash):
        place.run(checkpoint=checkpoint, on_round=crash)
    with place.exchange() as (_, exchange), pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange._phases, "phase", _dies_at("consent", exchange._phases.phase))
        with pytest.raises(KeyboardInterrupt):
            run(exchange, place.study, cell=CELL, weights=place.weights, checkpoint=checkpoint, resume=True)
    resumed = place.run(checkpoint=checkpoint)
    assert resumed.digest == whole.digest
    everybody = tuple(place.sites)
    assert place.attempts("update") == [
        (1, 1, True, everybody),
        (2, 1, True, ()),  # spent, and lost in the crash
        (2, 2, True, everybody),
    ]


def _dies_at(phase: str, ask: object) -> object:
    def asked(kind: str, name: str, *rest: object) -> object:
        if name == phase:
            raise KeyboardInterrupt
        return ask(kind, name, *rest)  # type: ignore[operator]

    return asked


def test_other_weights_than_the_session_names_are_refused_before_anything_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Federation(tmp_path, rounds=1)
    from sottovoce.server import exchange as exchanges

    monkeypatch.setattr(exchanges, "array_record", lambda weights: _other(weights))
    with pytest.raises(QuorumError, match="its complaint is recorded"):
        place.run()
    assert place.entries("site-1") == []
    assert {judged.reason for judged in place.record().complaints} >= {"model"}


def _other(weights: Mapping[str, Array]) -> object:
    from sottovoce.common.flower import array_record

    return array_record({name: array + np.float32(1) for name, array in weights.items()})


def test_a_study_that_states_another_size_of_the_model_does_not_run(tmp_path: Path) -> None:
    place = Federation(tmp_path, n_parameters="20")
    with pytest.raises(RunError, match="n_parameters = 21"):
        place.run()


def test_no_approval_without_a_roster_and_no_release_with_another_one(tmp_path: Path) -> None:
    place = Federation(tmp_path, rounds=1)
    key = SigningKey.generate()
    with SiteLedger.open(place.places["site-1"]) as site:
        with pytest.raises(LedgerError, match="roster"):
            site.approve(place.study, domain=site_ledgers.DOMAIN, person="Dr. A", key=key)
        pinned = site.secure.roster(place.study.digest())
        strangers = tuple(
            Member(site=m.site, public_key=SigningKey.generate().public_hex) for m in pinned.members
        )
        with pytest.raises(LedgerError, match="names 'site-1' under this site's identity"):
            site.approve(
                place.study,
                domain=site_ledgers.DOMAIN,
                person="Dr. A",
                key=key,
                roster=Roster(coordinator=pinned.coordinator, members=strangers),
            )
        # Somebody puts another roster in its place: one stranger among the sites.
        swapped = replace(pinned, members=(*pinned.members[:4], strangers[4]))
        site.secure.pin(place.study.digest(), swapped)
        with pytest.raises(LedgerError, match="Expected the roster that was approved"):
            site.roster(place.study)
    outcome = place.run()
    assert "site-1" not in outcome.rounds[0].sites
    assert place.entries("site-1") == []


def test_secrets_of_an_attempt_are_on_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    whole = secure.answered

    def answered(name: str, body: bytes, **rest: object) -> object:
        said = whole(name, body, **rest)  # type: ignore[arg-type]
        seen.append(said.held)
        return said

    monkeypatch.setattr(client_app, "answered", answered)
    place = Federation(tmp_path, rounds=1)
    place.run()
    secrets = [held[-64:-32] for held in seen if len(held) > 400]  # keys or shares, before the digest
    assert secrets
    on_disk = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert not [secret for secret in secrets if secret in on_disk]
    assert (place.places["site-1"] / SECURE / "answered.json").exists()
