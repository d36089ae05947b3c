"""Claims of a hospital's side of the consortium: joining, renewing, fetching, witnessing; crashes in each."""

import hashlib
import json
import os
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sottovoce.client import consortium as consortium_client
from sottovoce.client.commands import ledger_app
from sottovoce.client.consortium import ConsortiumClient
from sottovoce.client.duties import duties_of
from sottovoce.client.home import Hospital
from sottovoce.client.offered import OFFER_FILE, digests, open_offer
from sottovoce.client.received import checked_model
from sottovoce.client.site_ledger import SiteLedger
from sottovoce.client.tls_folder import TlsFolder
from sottovoce.common import study as studies
from sottovoce.common.consortium import consortium_pb2 as schema
from sottovoce.common.consortium.statements import ModelStatement, signed
from sottovoce.common.errors import CertificateError, DeploymentError, LedgerError
from sottovoce.common.keys import SigningKey
from sottovoce.common.ledger.cosignature import read_cosigned
from sottovoce.common.ledger.merkle import consistency_proof, leaf_hash, root_of
from sottovoce.common.pki import Authority, belongs_to, node_public_key, renewal_due, verified_peer
from sottovoce.server.consortium.offers import sign_offer
from sottovoce.server.consortium.service import serve
from sottovoce.server.consortium.witnessed import export_witnessed
from sottovoce.server.registry_tables import Kept
from tests.fakes.consortium import Consortium, consortium
from tests.fakes.failing_os import TROUBLES, FailingOs, Killed, Trouble
from tests.fakes.hospitals import approve
from tests.fakes.wards import study_text

SITES = ["hospital-a", "hospital-b", "hospital-c"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    with consortium(tmp_path_factory.mktemp("consortium")) as one:
        for site in SITES:
            one.join(site)
        yield one


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Consortium]:
    """A consortium of its own, for a test that leaves it damaged."""
    with consortium(tmp_path) as one:
        yield one


def is_whole(hospital: Hospital, authority: Authority) -> bool:
    """Says whether key and certificate in force are of one pair, by the names that everybody reads."""
    crt, key = hospital.tls / "site.crt", hospital.tls / "site.key"
    verified_peer(crt.read_text(), authority.certificate_pem)
    return belongs_to(crt.read_text(), key)


# --- joining ----------------------------------------------------------------------------------------------


def test_joining_leaves_a_whole_folder_and_no_key_elsewhere(made: Consortium) -> None:
    hospital = made.join("hospital-a")
    assert is_whole(hospital, made.authority)
    assert (hospital.tls / "ca.crt").read_text() == made.authority.certificate_pem
    member = made.registry.member("hospital-a")
    assert member is not None
    assert member.node_key_pem == node_public_key(hospital.tls / "node.key")
    assert member.identity == hospital.identity.public_hex
    assert hospital.coordinator.public_key == made.home.key.public_hex
    assert hospital.coordinator.consortium == made.address
    for name in ("site.key", "node.key"):
        assert stat.S_IMODE((hospital.tls / name).stat().st_mode) == 0o600
    secrets = [(hospital.tls / name).read_text().splitlines()[1] for name in ("site.key", "node.key")]
    kept = b"".join(path.read_bytes() for path in made.home.folder.rglob("*") if path.is_file())
    assert not [secret for secret in secrets if secret.encode() in kept]


def test_joining_again_by_the_same_invitation_changes_nothing(made: Consortium) -> None:
    hospital = made.join("hospital-a")
    before = (hospital.tls / "site.crt").read_text()
    ConsortiumClient.enrol(hospital, made.root / "hospital-a.invitation")
    assert (hospital.tls / "site.crt").read_text() == before


@pytest.mark.parametrize("trouble", ["torn", "full"])  # "torn" is killed at every write, and within it
def test_joining_goes_on_after_a_crash_or_a_full_disk_at_any_write(
    made: Consortium, trouble: Trouble
) -> None:
    hospital, at, met = made.hospital(f"joins {trouble}"), 0, 1
    while met:  # until an attempt has nothing left to go wrong
        at += 1
        invitation = begun_anew(made, hospital)
        with FailingOs() as machine:
            machine.plan("site", {at: trouble})
            with machine.acting("site"), suppress(Killed, DeploymentError, CertificateError):
                ConsortiumClient.enrol(hospital, invitation)
            met = machine.met.total()
        assert ConsortiumClient.enrol(hospital, invitation).name == hospital.site, f"write {at}"
        assert is_whole(hospital, made.authority)
        member = made.registry.member(hospital.site)
        assert member is not None
        assert member.node_key_pem == node_public_key(hospital.tls / "node.key")
    assert at > 20


def begun_anew(made: Consortium, hospital: Hospital) -> Path:
    """Takes all that joining made out of a folder, and returns a new invitation."""
    shutil.rmtree(hospital.tls)
    (hospital.folder / "coordinator.json").unlink(missing_ok=True)
    return made.invite(hospital.site)


def test_an_invitation_for_another_or_of_another_coordinator_is_refused(
    made: Consortium, tmp_path: Path
) -> None:
    hospital = made.join("hospital-a")
    with pytest.raises(DeploymentError, match="this one is for 'somebody'"):
        ConsortiumClient.enrol(hospital, made.invite("somebody"))
    person = made.invite("hospital-a-admin", role="admin")
    renamed = Hospital.create(tmp_path / "h", 'format = 1\nsite = "hospital-a-admin"\n')
    with pytest.raises(DeploymentError, match="for a site; this one is for role admin"):
        ConsortiumClient.enrol(renamed, person)
    with consortium(tmp_path) as other, pytest.raises(DeploymentError, match="another coordinator"):
        ConsortiumClient.enrol(hospital, other.invite("hospital-a"))
    assert is_whole(hospital, made.authority)


def test_an_invitation_that_is_over_or_none_is_refused_in_words_without_its_key(
    made: Consortium, tmp_path: Path
) -> None:
    hospital = made.hospital("tardy")
    path = made.invite("tardy")
    plain = json.loads(path.read_text())
    for change, said in (
        ({"not_after": int(time.time()) - 1}, "not over"),
        ({"role": "server"}, "see role"),
        ({"key": ""}, "see key"),
        ({"extra": 1}, "see extra"),
    ):
        bad = tmp_path / "bad"
        bad.write_text(json.dumps({**plain, **change}))
        with pytest.raises(DeploymentError, match=said) as caught:
            ConsortiumClient.enrol(hospital, bad)
        assert plain["key"].splitlines()[1] not in str(caught.value)


def test_a_person_joins_without_a_node_and_cannot_do_what_a_site_does(made: Consortium) -> None:
    person = made.person("auditor 1", "auditor")
    assert not (person.tls / "node.key").exists()
    with ConsortiumClient(person) as client:
        assert client.status()["coordinator"] == "Consortium"
        with pytest.raises(DeploymentError, match="this is a person's"):
            client.witness()


# --- renewing ---------------------------------------------------------------------------------------------


def test_a_certificate_is_renewed_at_two_thirds_of_its_life_with_a_new_key(own: Consortium) -> None:
    hospital = own.join("hospital-a")
    before = TlsFolder(hospital.tls).current()
    assert before is not None
    issued = before.peer.not_after - 3600
    assert renewal_due(before.peer) == pytest.approx(issued + 2400, abs=2)
    with ConsortiumClient(hospital) as client:
        assert not client.renew(now=renewal_due(before.peer) - 1)
        assert client.renew(now=renewal_due(before.peer) + 1)
        after = TlsFolder(hospital.tls).current()
        assert after is not None
        assert after.peer.serial != before.peer.serial
        assert after.key != before.key
        assert is_whole(hospital, own.authority)
        assert client.offers() == ()  # over a connection with the new one


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_crash_or_a_full_disk_in_a_renewal_leaves_a_pair_that_works(
    made: Consortium, trouble: Trouble
) -> None:
    hospital, at, met = made.join("hospital-b"), 0, 1
    while met:
        at += 1
        with FailingOs() as machine, ConsortiumClient(hospital) as client:
            machine.plan("site", {at: trouble})
            with machine.acting("site"), suppress(Killed, DeploymentError, CertificateError):
                client.renew(now=time.time() + 3000)
            met = machine.met.total()
        assert is_whole(hospital, made.authority), f"write {at}"
        with ConsortiumClient(hospital) as client:
            client.offers()
    assert at > 10
    assert len(list(hospital.tls.glob("pair-*"))) <= 3


def test_a_certificate_that_is_over_is_said_to_be(own: Consortium) -> None:
    hospital = own.join("hospital-a")
    over, key = own.certificate("hospital-a", "site", hours=1, now=time.time() - 7200)
    tls = TlsFolder(hospital.tls)
    pending = tls.begin("test")
    pending.key_file.chmod(0o600)
    pending.key_file.write_text(key)
    tls.adopt(pending, over)
    client = ConsortiumClient(hospital, patience_seconds=0.3)
    with client, pytest.raises(DeploymentError, match="for a new invitation, and enrol again"):
        client.offers()


# --- studies ----------------------------------------------------------------------------------------------


def test_an_offer_is_kept_as_it_was_signed(made: Consortium) -> None:
    study = made.offer(SITES, name="fetched")
    hospital = made.join("hospital-a")
    with ConsortiumClient(hospital) as client:
        assert client.fetch(study.digest()) == study
        assert study not in client.fetch_all()
        line = {one.study: one for one in client.offers()}[study.digest()]
    assert (line.name, line.sites, line.decision) == ("fetched", tuple(SITES), "")
    assert studies.load(hospital.study_file(study.digest())) == study
    kept = json.loads((hospital.study_folder(study.digest()) / "offer.json").read_text())
    assert kept["sites"] == SITES
    assert made.home.key.public_hex in kept["roster"]


def lie(made: Consortium, what: str) -> str:
    """Offers a study with a lie in it, and returns its digest."""
    sites, text = ["hospital-a", "hospital-b"], study_text(n_sites=2)
    text = text.replace('name = "wards"', f'name = "{what}"', 1)
    roster, key, digest = b"", made.home.key, studies.loads(text).digest()
    if what == "another key":
        key = SigningKey.generate()
    if what == "another text":
        text = text.replace("rounds = 2", "rounds = 3")
    if what == "too few sites":
        sites = ["hospital-a"]
    if what == "another roster":
        members = [{"site": site, "public_key": f"{n}" * 64} for n, site in enumerate([*sites, "x"])]
        coordinator = made.home.key.public_hex
        roster = json.dumps(
            {"coordinator": coordinator, "members": members}, sort_keys=True, separators=(",", ":")
        ).encode()
    signed_sites = ["hospital-a", "hospital-c"] if what == "another signature" else sites
    signature = sign_offer(key, study=digest, sites=signed_sites, roster=roster, offered_at=1)
    made.registry.offer(text, digest, sites, roster, signature, offered_at=1)
    return digest


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("another key", "an offer signed by"),
        ("another signature", "an offer signed by"),
        ("another text", "its text has digest"),
        ("too few sites", "Expected an offer to 2 sites"),
        ("another roster", "Expected a roster"),
    ],
)
def test_an_offer_that_is_not_what_it_says_is_not_kept(made: Consortium, what: str, said: str) -> None:
    hospital = made.join("hospital-a")
    digest = lie(made, what)
    with ConsortiumClient(hospital) as client, pytest.raises(DeploymentError, match=said):
        client.fetch(digest)
    assert not hospital.study_folder(digest).exists()


def test_an_offer_that_cannot_be_kept_holds_up_no_other_and_no_approval(own: Consortium) -> None:
    hospital = own.join("hospital-a")
    own.join("hospital-b")
    first = own.offer(["hospital-a"], name="first")
    with ConsortiumClient(hospital) as client:
        client.fetch(first.digest())
    approve(hospital, first)
    lie(own, "another key")
    last = own.offer(["hospital-a"], name="last")
    (_, duty, *_) = duties_of(hospital)
    with pytest.raises(DeploymentError, match="an offer signed by"):
        duty.work()
    assert studies.load(hospital.study_file(last.digest())) == last
    assert own.registry.approved(first.digest()) == {"hospital-a"}


def test_a_damaged_offer_is_mended_by_fetching_it_again(made: Consortium) -> None:
    study, hospital = made.offer(SITES, name="damaged"), made.join("hospital-c")
    with ConsortiumClient(hospital) as client:
        client.fetch(study.digest())
        (hospital.study_folder(study.digest()) / OFFER_FILE).write_text("{")
        with pytest.raises(DeploymentError, match="Fetch it again with `sottovoce client offers`"):
            open_offer(hospital, study.digest())
        with suppress(DeploymentError):  # of the lies that others of these tests have offered
            client.fetch_all(mend=True)
    assert open_offer(hospital, study.digest()).study == study


def test_a_coordinator_fills_no_disk_with_offers(own: Consortium, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consortium_client, "MAX_OFFERS", 2)
    hospital = own.join("hospital-a")
    for number in range(3):
        own.offer(["hospital-a"], name=f"offer {number}")
    with ConsortiumClient(hospital) as client:
        for _ in range(2):
            with pytest.raises(DeploymentError, match="at most 2 offers"):
                client.fetch_all()
    assert len(digests(hospital)) == 2


@pytest.mark.parametrize("sha256", ["../../../etc/x", "G" * 64, "0" * 63])
def test_a_model_whose_digest_is_none_is_refused(made: Consortium, sha256: str) -> None:
    said = ModelStatement(run="r", study="s", name="n", n_bytes=1, sha256=sha256, released_at=1)
    found = schema.Model(**vars(said), signature=signed(made.home.key, said))
    with pytest.raises(DeploymentError, match="64 hexadecimal digits"):
        checked_model(found, made.home.key.public_hex)


def test_what_is_sent_as_approved_stands_in_the_ledger(own: Consortium) -> None:
    for site in SITES:
        own.join(site)
    study = own.offer(SITES)
    hospital = own.join("hospital-a")
    with ConsortiumClient(hospital) as client:
        client.fetch(study.digest())
        with pytest.raises(LedgerError, match="it is not there"):
            client.send_approval(study.digest(), "approved")
        approve(hospital, study)
        entry = client.send_approval(study.digest(), "approved")
        assert client.send_approval(study.digest(), "approved") == entry
        assert client.offers()[0].decision == "approved"
        with pytest.raises(LedgerError, match="as denied"):
            client.send_approval(study.digest(), "denied")
    assert own.registry.approved(study.digest()) == {"hospital-a"}


# --- witnesses --------------------------------------------------------------------------------------------


def grow(hospital: Hospital) -> None:
    """Adds an entry to a hospital's ledger."""
    with SiteLedger.open(hospital.ledger) as ledger:
        ledger.rotate_key(person="Name", reason="test")


def test_a_ledger_is_followed_over_many_checkpoints_and_its_own_new_keys(own: Consortium) -> None:
    site, witness = own.join("hospital-a"), own.join("hospital-b")
    with ConsortiumClient(site) as client, ConsortiumClient(witness) as other:
        assert client.send_checkpoint() == 1
        assert other.witness().cosigned == {"hospital-a": 1}
        for size in (2, 3, 4):
            grow(site)
            assert client.send_checkpoint() == size
        grow(site)
        grow(site)
        assert client.send_checkpoint() == 6
        found = other.witness()
        assert (found.cosigned, found.forks) == ({"hospital-a": 6}, ())
        assert other.witness().cosigned == {}
    assert [one.size for one in own.registry.cosignatures()] == [1, 6]


def test_a_witness_that_was_away_for_long_gets_every_step(own: Consortium) -> None:
    site, witness = own.join("hospital-a"), own.join("hospital-b")
    leaves, key = [leaf_hash(bytes([n])) for n in range(200)], SigningKey.generate()
    chain(own, site, key, leaves, range(1, 2))
    with ConsortiumClient(witness) as other:
        assert other.witness().cosigned == {"hospital-a": 1}
        chain(own, site, key, leaves, range(2, 201))  # more than one answer holds
        assert other.witness().cosigned == {"hospital-a": 200}
        assert other.witness().forks == ()


def chain(
    own: Consortium,
    site: Hospital,
    key: SigningKey,
    leaves: list[bytes],
    sizes: range,
    *,
    signer: SigningKey | None = None,
) -> None:
    """Puts checkpoints of a made-up ledger straight into the registry, as a coordinator could who lies."""
    from sottovoce.common.consortium.statements import CheckpointStatement, signed
    from sottovoce.common.ledger.checkpoint import Checkpoint, sign

    for size in sizes:
        note = sign(Checkpoint(instance="ab" * 16, size=size, root=root_of(leaves[:size])), key).text()
        said = CheckpointStatement(site=site.site, ledger_key=key.public_hex, note=note)
        own.registry.checkpoint(
            Kept(
                site=site.site,
                identity=site.identity.public_hex,
                size=size,
                note=note,
                ledger_key=key.public_hex,
                signature=signed(signer or site.identity, said),
                proof=tuple(consistency_proof(leaves[:size], size - 1)),
                sent_at=1,
            )
        )


def forget(own: Consortium, size: int) -> None:
    """Takes checkpoints from a size on out of the coordinator's registry."""
    with sqlite3.connect(own.home.registry) as database:
        database.execute("DELETE FROM cosignatures WHERE size >= ?", (size,))
        database.execute("DELETE FROM checkpoints WHERE size >= ?", (size,))
    database.close()


def test_a_fork_and_a_rollback_are_refused_and_the_evidence_is_kept(own: Consortium) -> None:
    site, witness = own.join("hospital-a"), own.join("hospital-b")
    leaves, key = [leaf_hash(bytes([n])) for n in range(8)], SigningKey.generate()
    chain(own, site, key, leaves, range(1, 6))
    with ConsortiumClient(witness) as other:
        assert other.witness().cosigned == {"hospital-a": 5}
        forget(own, 4)  # a rollback: the coordinator shows 3 entries
        (rolled_back,) = other.witness().forks
        forked = [*leaves[:3], leaf_hash(b"other"), *leaves[4:]]
        chain(own, site, key, forked, range(4, 8))  # a fork: 7 entries, the fourth is another
        (fork,) = other.witness().forks
        assert other.witness().forks == (fork,)  # the same evidence, once
        chores = {chore.name: chore for chore in duties_of(witness, other)}
        with pytest.raises(LedgerError, match="REFUSED the ledger of 'hospital-a'"):
            chores["witness other ledgers"].work()  # and the agent reports it
    assert [path.name for path in sorted((witness.run / "forks").iterdir())] == sorted(
        [rolled_back.evidence.name, fork.evidence.name]
    )
    for found in (rolled_back, fork):
        evidence = json.loads(found.evidence.read_text())
        assert evidence["kept"]["note"] != evidence["shown"]["note"]
        assert evidence["kept"]["identity"] == evidence["shown"]["identity"] == site.identity.public_hex
    assert [
        one.size for one in own.registry.cosignatures()
    ] == []  # the ones there were the coordinator removed
    forget(own, 1)
    chain(own, site, key, leaves, range(1, 9))
    with ConsortiumClient(witness) as other:
        assert other.witness().cosigned == {"hospital-a": 8}  # what it saw before is still what counts


def test_a_registry_restored_from_a_backup_is_bridged_over_by_the_sites(own: Consortium) -> None:
    site, witness = own.join("hospital-a"), own.join("hospital-b")
    with ConsortiumClient(site) as client, ConsortiumClient(witness) as other:
        for size in (1, 2, 3):
            assert client.send_checkpoint() == size
            other.witness()
            grow(site)
        forget(own, 2)  # the backup knew of one entry
        assert [fork.site for fork in other.witness().forks] == ["hospital-a"]  # 1 where 3 were seen
        assert client.send_checkpoint() == 4  # and the bridge from 3 that the witness had asked about
        found = other.witness()
        assert (found.cosigned, found.forks) == ({"hospital-a": 4}, ())
        grow(site)
        assert client.send_checkpoint() == 5
        assert other.witness().cosigned == {"hospital-a": 5}


def test_a_bridge_over_a_fork_is_refused(own: Consortium) -> None:
    site, witness = own.join("hospital-a"), own.join("hospital-b")
    leaves, key = [leaf_hash(bytes([n])) for n in range(8)], SigningKey.generate()
    chain(own, site, key, leaves, range(1, 5))
    with ConsortiumClient(witness) as other:
        other.witness()
        forget(own, 3)
        forked = [*leaves[:2], leaf_hash(b"other"), *leaves[3:]]
        chain(own, site, key, forked, range(3, 8, 4))  # 3 and 7: the 4 that was seen is passed over
        assert len(other.witness().forks) == 1
        (newest,) = own.registry.checkpoints()
        own.registry.bridge(newest, 4, consistency_proof(forked[:7], 4))
        (fork,) = other.witness().forks
    assert "extends its 4 entries" in fork.reason


def test_a_checkpoint_that_its_site_gave_no_word_for_is_refused(own: Consortium) -> None:
    site, witness = own.join("hospital-a"), own.join("hospital-b")
    leaves, made_up = [leaf_hash(bytes([n])) for n in range(80)], SigningKey.generate()
    chain(own, site, made_up, leaves, range(1, 2), signer=own.home.key)  # the coordinator makes one up
    with ConsortiumClient(witness) as other:
        (fork,) = other.witness().forks
        assert "with the word of 'hospital-a'" in fork.reason
        forget(own, 1)
        chain(own, site, made_up, leaves, range(1, 2))
        assert other.witness().cosigned == {"hospital-a": 1}
        # And none of the steps between: of so many one is the last of an answer, and would be cosigned.
        chain(own, site, made_up, leaves, range(2, 80), signer=own.home.key)
        chain(own, site, made_up, leaves, range(80, 81))
        found = other.witness()
        assert (found.cosigned, len(found.forks)) == ({}, 1)


def test_a_site_under_another_identity_is_refused_until_an_approved_roster_names_it(own: Consortium) -> None:
    site, witness = own.join("hospital-a"), own.join("hospital-b")
    with ConsortiumClient(site) as client:
        client.send_checkpoint()
    with ConsortiumClient(witness) as other:
        other.witness()
        stranger = SigningKey.generate()
        with sqlite3.connect(own.home.registry) as database:  # a coordinator that puts another in its place
            database.execute(
                "UPDATE members SET identity = ? WHERE name = 'hospital-a'", (stranger.public_hex,)
            )
        database.close()
        leaves = [leaf_hash(bytes([n])) for n in range(3)]
        chain(own, _Impostor(site, stranger), SigningKey.generate(), leaves, range(1, 3))  # type: ignore[arg-type]
        (fork,) = other.witness().forks
        assert "under the identity that is known here" in fork.reason
        members = [("hospital-a", stranger), ("hospital-b", witness.identity), ("c", SigningKey.generate())]
        roster = {
            "coordinator": own.home.key.public_hex,
            "members": [{"site": name, "public_key": key.public_hex} for name, key in members],
        }
        rosters = witness.ledger / "secure" / "rosters"
        (rosters / f"{'0' * 64}.json").write_text(json.dumps(roster, sort_keys=True, separators=(",", ":")))
        assert other.witness().cosigned == {"hospital-a": 2}


class _Impostor:
    def __init__(self, site: Hospital, identity: SigningKey) -> None:
        self.site, self.identity = site.site, identity


def test_a_cosignature_that_a_crash_kept_back_is_sent_at_the_next_look(own: Consortium) -> None:
    site, witness = own.join("hospital-a"), own.join("hospital-b")
    with ConsortiumClient(site) as client:
        client.send_checkpoint()
    memory, at, met = witness.run / "witness.json", 0, 1
    while met:
        at += 1
        forget_cosignatures(own)
        memory.unlink(missing_ok=True)
        with FailingOs() as machine, ConsortiumClient(witness) as other:
            machine.plan("witness", {at: "kill_after"})
            with machine.acting("witness"), suppress(Killed):
                other.witness()
            met = machine.met.total()
        with ConsortiumClient(witness) as other:
            other.witness()
        assert [one.witness for one in own.registry.cosignatures()] == ["hospital-b"], f"write {at}"
    assert at > 5


def forget_cosignatures(own: Consortium) -> None:
    with sqlite3.connect(own.home.registry) as database:
        database.execute("DELETE FROM cosignatures")
    database.close()


def test_a_damaged_memory_is_never_taken_for_an_empty_one(own: Consortium) -> None:
    witness = own.join("hospital-b")
    (witness.run / "witness.json").write_text("{}")
    with ConsortiumClient(witness) as other, pytest.raises(DeploymentError, match="Restore it from a backup"):
        other.witness()


def test_cosigned_checkpoints_are_written_out_for_an_auditor(own: Consortium, tmp_path: Path) -> None:
    hospitals = [own.join(site) for site in SITES]
    for hospital in hospitals:
        with ConsortiumClient(hospital) as client:
            client.send_checkpoint()
    for hospital in hospitals[1:]:
        with ConsortiumClient(hospital) as client:
            client.witness()
    own.offer(SITES)
    written = export_witnessed(own.registry, tmp_path / "out")
    assert sorted(path.name for path in written) == [f"{site}-1.cosigned.txt" for site in SITES]
    note, found = read_cosigned((tmp_path / "out" / "hospital-a-1.cosigned.txt").read_text())
    assert note == (tmp_path / "out" / "hospital-a-1.txt").read_text()
    assert [one.witness for one in found] == SITES[1:]
    with ConsortiumClient(own.person("ann", "auditor")) as client:  # the same, from afar
        client.export_cosigned(tmp_path / "afar")
    assert files(tmp_path / "afar") == files(tmp_path / "out")
    judge_with_witnesses(own, hospitals[0], tmp_path)
    with sqlite3.connect(own.home.registry) as database:
        database.execute("UPDATE cosignatures SET witnessed_at = witnessed_at + 1")
    database.close()
    with pytest.raises(DeploymentError, match="Expected a cosignature"):
        export_witnessed(own.registry, tmp_path / "other")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def judge_with_witnesses(own: Consortium, hospital: Hospital, folder: Path) -> None:
    """What `ledger verify` says of a cosigned checkpoint, with the roster and without."""
    roster = folder / "roster.json"
    roster.write_bytes(own.registry.offers()[0].roster)
    seen = folder / "out" / f"{hospital.site}-1.cosigned.txt"
    arguments = ["verify", str(hospital.ledger), "--seen", str(seen)]
    runner = CliRunner()
    said = runner.invoke(ledger_app, [*arguments, "--roster", str(roster)])
    assert said.exit_code == 0
    assert "cosigned by 2 of the 2 other sites of the roster: hospital-b, hospital-c" in _one_line(
        said.output
    )
    said = runner.invoke(ledger_app, arguments)
    assert "2 witnesses; who they are, only --roster can tell" in _one_line(said.output)
    plain = json.loads(runner.invoke(ledger_app, [*arguments, "--roster", str(roster), "--json"]).output)
    assert plain["witnessed"][str(seen)] == {"lines": 2, "of": 2, "by": ["hospital-b", "hospital-c"]}


def _one_line(text: str) -> str:
    return " ".join(text.split())


# --- models -----------------------------------------------------------------------------------------------


def release(made: Consortium, data: bytes, name: str) -> None:
    study, file = made.offer(SITES, name=name), made.root / f"{name}.safetensors"
    file.write_bytes(data)
    made.registry.publish(name, hashlib.sha256(data).hexdigest(), file, study=study.digest())


def test_a_transfer_goes_on_where_an_earlier_one_broke_off(made: Consortium, tmp_path: Path) -> None:
    data = os.urandom(1_500_000)
    release(made, data, "resumed")
    with ConsortiumClient(made.join("hospital-a")) as client:
        model = {one.run: one for one in client.models()}["resumed"]
        out, came = tmp_path / "model", list[int]()

        def stop(offset: int) -> None:
            came.append(offset)
            if len(came) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            client.fetch_model(model, out, progress=stop)
        assert not out.exists()
        client.fetch_model(model, out, progress=came.append)
    assert out.read_bytes() == data
    assert came == [*range(262_144, len(data), 262_144), len(data)]  # no byte came twice


def test_a_model_whose_bytes_are_others_is_never_put_in_place(made: Consortium, tmp_path: Path) -> None:
    release(made, b"weights" * 1000, "altered")
    with ConsortiumClient(made.join("hospital-a")) as client:
        model = {one.run: one for one in client.models()}["altered"]
        (made.root / "altered.safetensors").write_bytes(b"another" * 1000)
        with pytest.raises(DeploymentError, match="expected SHA-256"):
            client.fetch_model(model, tmp_path / "model")
    assert list(tmp_path.glob("model*")) == []


def test_a_coordinator_that_is_killed_in_a_transfer_only_delays_it(own: Consortium, tmp_path: Path) -> None:
    for site in SITES:
        own.join(site)
    data = os.urandom(3_000_000)
    release(own, data, "broken")
    restarted = threading.Event()

    def restart() -> None:
        own.served.stop(0)
        own.served = serve(own.home, own.registry, own.authority)
        restarted.set()

    def kill(offset: int) -> None:
        if offset > 500_000 and not thread.is_alive() and not restarted.is_set():
            thread.start()

    thread = threading.Thread(target=restart)
    with ConsortiumClient(own.join("hospital-a"), patience_seconds=10) as client:
        (model,) = client.models()
        client.fetch_model(model, tmp_path / "model", progress=kill)
    thread.join()
    own.served.stop(0)
    assert restarted.is_set()
    assert (tmp_path / "model").read_bytes() == data


def test_a_coordinator_that_is_away_is_said_in_words_and_within_its_time(own: Consortium) -> None:
    hospital = own.join("hospital-a")
    own.served.stop(0)
    began = time.monotonic()
    client = ConsortiumClient(hospital, patience_seconds=1.0)
    with client, pytest.raises(DeploymentError, match="Is the coordinator started"):
        client.offers()
    assert time.monotonic() - began < 20
