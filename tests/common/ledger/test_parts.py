"""Claims of the smaller parts: keys, checkpoints, witness, recompute, show, export, outbox, filter."""

import itertools
import math
import stat
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sottovoce.common.errors import KeyFileError, LedgerError
from sottovoce.common.keys import DigestKey, SigningKey, load_keys, new_keys, verified
from sottovoce.common.ledger.checkpoint import Checkpoint, parse, sign
from sottovoce.common.ledger.entries import AccountedBy, AnyCharge, Approval, Charge, Recovery, Withdrawal
from sottovoce.common.ledger.export import BOUND, VERIFIER, export, program_text
from sottovoce.common.ledger.outbox import Outbox
from sottovoce.common.ledger.recompute import recompute
from sottovoce.common.ledger.show import show
from sottovoce.common.ledger.store import HEAD_FILE, LEDGER_FILE
from sottovoce.common.ledger.verify import entries_of
from sottovoce.common.ledger.witness import proof_since, witness
from sottovoce.common.privacy.accountant import Event, rdp_epsilon
from sottovoce.common.privacy.distributed_accountant import ORDERS
from sottovoce.common.privacy.filter import Draws, filter_epsilon, fixed_order
from tests.fakes.faulty_disk import FaultyDisk, FaultyFolder
from tests.fakes.ledgers import ACCOUNTANT, DOMAIN, PERSON, STUDY, hospital, lived_in

ENTRIES = entries_of(lived_in().names[LEDGER_FILE].data)


# keys


def test_a_key_file_is_private_and_never_written_over(tmp_path: Path) -> None:
    key, digest_key = new_keys(tmp_path / "keys")
    for path in (tmp_path / "keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(KeyFileError, match="cannot be made"):
        new_keys(tmp_path / "keys")
    (loaded,), same = load_keys(tmp_path / "keys")
    assert (loaded.public_hex, same.commitment) == (key.public_hex, digest_key.commitment)


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = SigningKey.generate().save(tmp_path)
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        SigningKey.load(path)


@pytest.mark.parametrize("data", [b"", b"no key", b"\xff" * 100, b"x" * 5000])
def test_what_is_no_key_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "signing-0.pem"
    path.write_bytes(data)
    path.chmod(0o600)
    for kind in (SigningKey, DigestKey):
        with pytest.raises(KeyFileError) as caught:
            kind.load(path)
        assert "xff" not in str(caught.value)


def test_secrets_are_in_no_repr() -> None:
    key, digest_key = SigningKey.generate(), DigestKey.generate()
    secret = digest_key.opened().decode().strip()
    assert secret not in repr(digest_key) + digest_key.commitment
    assert repr(key) == f"SigningKey({key.public_hex[:16]}…)"


@pytest.mark.parametrize("public", ["", "zz", "00" * 32, "ab" * 31, "ab" * 33])
def test_a_bad_key_verifies_nothing_and_raises_nothing(public: str) -> None:
    assert not verified(public, b"\x00" * 64, b"message")


def test_digests_under_two_keys_or_labels_have_nothing_in_common() -> None:
    one, other = DigestKey.generate(), DigestKey.generate()
    digests = {key.digest(label, b"patients") for key in (one, other) for label in ("manifest", "released")}
    assert len(digests) == 4
    assert one.digest("manifest", b"patients") == one.digest("manifest", b"patients")


# checkpoints and witnesses


def test_a_checkpoint_has_one_text() -> None:
    key = SigningKey.generate()
    signed = sign(Checkpoint(instance="0" * 32, size=7, root=b"r" * 32), key)
    text = signed.text()
    assert parse(text) == signed
    assert parse(text).signed_by(key.public_hex)
    assert not parse(text).signed_by(SigningKey.generate().public_hex)
    assert not parse(text).signed_by("no key")
    for other in (
        text + "\n",
        text.replace("\n7\n", "\n07\n"),
        text.replace("\n7\n", "\n-7\n"),
        text[1:],
        "",
        "x" * 2000,
    ):
        with pytest.raises(LedgerError):
            parse(other)
    forged = text.replace("\n7\n", "\n8\n")
    assert not parse(forged).signed_by(key.public_hex)


def test_a_witness_follows_a_ledger_that_grows_and_no_other() -> None:
    disk, at = FaultyDisk(), hospital()
    with at.create(FaultyFolder(disk)) as ledger:
        kept = witness(None, ledger.checkpoint(), [], at.key.public_hex)
        older, size = disk.copy(), ledger.state.size
        ledger.append(_withdrawal())
        ledger.append(_withdrawal())
        grown = witness(kept, ledger.checkpoint(), proof_since(ledger.hashes, size), at.key.public_hex)
        with pytest.raises(LedgerError, match="rolled back"):
            witness(grown, kept, [], at.key.public_hex)
        with pytest.raises(LedgerError, match="signed by this site"):
            witness(kept, grown, proof_since(ledger.hashes, size), at.next_key.public_hex)
    with at.open(FaultyFolder(older)) as ledger:
        for _ in range(3):
            ledger.append(Recovery(kind="recovery", cut_bytes=1))
        with pytest.raises(LedgerError, match="evidence"):
            witness(grown, ledger.checkpoint(), proof_since(ledger.hashes, size + 2), at.key.public_hex)


def _withdrawal() -> Withdrawal:
    return Withdrawal(kind="withdrawal", domain=DOMAIN)


# recompute


def test_every_figure_is_computed_again_from_the_entries() -> None:
    found = recompute(ENTRIES, ACCOUNTANT, n_prefixes=4)
    assert found["ok"], found["different"]
    (study,), (domain,) = found["studies"], found["domains"]
    assert study["epsilon"] == pytest.approx(1.8285, abs=1e-3)
    assert [row["releases"] for row in study["rounds"]] == [1, 2, 3, 4]
    epsilons = [row["epsilon"] for row in study["rounds"]]
    assert epsilons == sorted(epsilons)
    assert epsilons[-1] == study["epsilon_spent"] == domain["epsilon_spent"] == study["epsilon"]
    assert (domain["cap"], domain["withdrawals"], domain["not_private"]) == (4.0, 1, False)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"epsilon": 1.9}, "epsilon"),
        ({"domain_epsilon": 1.0}, "domain_epsilon"),
        ({"epsilon": None}, "epsilon"),
    ],
)
def test_a_figure_that_was_recorded_wrong_is_named(changes: dict[str, Any], what: str) -> None:
    changed = [
        replace(entry, body=replace(entry.body, **changes)) if isinstance(entry.body, Approval) else entry
        for entry in ENTRIES
    ]
    found = recompute(changed, ACCOUNTANT)
    assert not found["ok"]
    assert what in {row["what"] for row in found["different"]}


def test_a_study_that_should_have_been_denied_is_named() -> None:
    class Generous:
        def facts_of(self, charges: Sequence[AnyCharge]) -> AccountedBy:
            return ACCOUNTANT.facts_of(charges)

        def epsilon(
            self,
            charges: Sequence[AnyCharge],
            delta: float,
            *,
            n_colluding: int | None = None,
            n_sites: int = 1,
        ) -> float:
            return 100.0

    dear = Charge(
        what="update",
        mechanism="poisson_gaussian",
        noise_multiplier=0.5,
        sampling_prob=0.5,
        steps=9,
        n_patients=2000,
    )
    changed = [
        replace(entry, body=replace(entry.body, charges=(dear,)))
        if isinstance(entry.body, Approval)
        else entry
        for entry in ENTRIES
    ]
    found = recompute(changed, Generous())
    assert any("should have been denied" in row["what"] for row in found["different"])


def test_a_patient_in_several_sites_meets_all_of_their_releases() -> None:
    changed = [
        replace(entry, body=replace(entry.body, sites_per_patient=3))
        if isinstance(entry.body, Approval)
        else entry
        for entry in ENTRIES
    ]
    figures = recompute(changed, ACCOUNTANT)["studies"][0]["epsilon_in_sites"]
    assert list(figures) == ["1", "2", "3"]
    assert figures["1"] < figures["2"] < figures["3"] < 3 * figures["1"]


# show, export, outbox


def test_every_entry_has_a_row_that_holds_no_more_than_it_does() -> None:
    shown = show(ENTRIES)
    assert [row["index"] for row in shown["entries"]] == list(range(len(ENTRIES)))
    assert all(row["what"] for row in shown["entries"])
    (study,) = shown["studies"]
    assert (study["study"], study["committed"], study["burned"], study["open"]) == (STUDY, 3, 1, 0)
    assert shown["domains"][0]["domain"] == DOMAIN
    assert any(PERSON in row["what"] for row in shown["entries"])


def test_an_export_needs_nothing_of_ours_and_keeps_the_digest_key_back(tmp_path: Path) -> None:
    disk = lived_in()
    ledger = tmp_path / "ledger"
    ledger.mkdir()
    for name in (LEDGER_FILE, HEAD_FILE):
        (ledger / name).write_bytes(disk.names[name].data)
    note = disk.names[HEAD_FILE].data.decode()
    out = export(ledger, tmp_path / "out", seen=[note])
    assert set(out["files"]) == {
        "ledger.jsonl", "head", "policy.json", "public-keys.txt", "seen/000.txt", VERIFIER, BOUND, "README.txt",
    }  # fmt: skip
    for name in (VERIFIER, BOUND):
        assert (tmp_path / "out" / name).read_bytes() == program_text(name)
    with pytest.raises(LedgerError, match="empty folder"):
        export(ledger, tmp_path / "out")
    opened = export(ledger, tmp_path / "opened", digest_key=hospital().digest_key)
    assert "digest-key" in opened["files"]
    with pytest.raises(LedgerError, match="expected a ledger"):
        export(tmp_path / "nowhere", tmp_path / "x")


def test_the_outbox_gives_back_what_it_was_given(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "outbox")
    box.keep("../../run/1", b"bytes")
    box.keep("run/2", b"other")
    assert (box.get("../../run/1"), box.get("run/3")) == (b"bytes", None)
    assert len(list((tmp_path / "outbox").iterdir())) == 2
    box.forget_all_but(["run/2"])
    assert (Outbox(tmp_path / "outbox").get("../../run/1"), box.get("run/2")) == (None, b"other")


# the filter


@pytest.mark.parametrize("noise", [0.7, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("q", [0.01, 0.2, 1.0])
def test_the_filter_is_never_below_the_accountants_rdp_and_close_to_it(noise: float, q: float) -> None:
    draws = [Draws(noise_multiplier=noise, sampling_prob=q, steps=100, n_patients=5000)]
    at_every_order = [filter_epsilon(draws, 1e-5, order=order) for order in ORDERS]
    ours = min(at_every_order)  # nobody may decide by it: the order is fixed beforehand
    event = Event(noise_multiplier=noise, sampling_prob=q, steps=100, cap=None, n_patients=5000)
    theirs = rdp_epsilon([event], 1e-5).epsilon  # the same bound, at fractional orders as well
    # Where epsilon is above 10 the best order is below 2, and whole orders pay for it.
    assert theirs - 1e-9 <= ours <= theirs * (1.1 if theirs < 10 else 2)


def test_the_filter_grows_with_every_charge_with_crowded_draws_and_with_records() -> None:
    one = Draws(noise_multiplier=2.0, sampling_prob=0.1, steps=50, n_patients=1000)
    at_six = partial(filter_epsilon, delta=1e-5, order=6)
    base = at_six([one])
    assert at_six([]) == 0.0
    assert at_six([one, one]) > base
    roomy, tight = (at_six([replace(one, cap=cap)]) for cap in (200, 100))
    assert base <= roomy < tight
    assert at_six([replace(one, cap=1000)]) == base
    assert at_six([replace(one, records_per_patient=4)]) > base
    assert all(isinstance(order, int) for order in ORDERS)


@pytest.mark.parametrize("cap", [0.5, 3.0, 8.0])
@pytest.mark.parametrize("delta", [1e-6, 1e-5, 0.03])
def test_the_order_lets_gaussian_steps_reach_as_far_as_any_order(cap: float, delta: float) -> None:
    def fits(steps: int, order: int) -> bool:
        draws = Draws(noise_multiplier=30.0, sampling_prob=1.0, steps=steps, n_patients=5000)
        return filter_epsilon([draws], delta, order=order) <= cap

    chosen = fixed_order(cap, delta)
    most = next(steps for steps in itertools.count(1) if not fits(steps, chosen)) - 1
    assert most > 0
    assert not any(fits(most + 1, order) for order in ORDERS)


def test_the_probability_of_a_full_draw_is_that_of_the_binomial() -> None:
    from scipy.stats import binom

    from sottovoce.common.privacy.draws import full_draw_prob

    for n, q, cap in ((1000, 0.064, 96), (50, 0.5, 20), (2000, 0.01, 60)):
        assert math.isclose(full_draw_prob(n, q, cap), binom.sf(cap - 1, n - 1, q), rel_tol=1e-9)
    assert full_draw_prob(10, 0.5, 10) == 0.0
    assert full_draw_prob(10, 1.0, 5) == 1.0
