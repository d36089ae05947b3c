"""Claims of the coordinator's registry: unique names, single use, revocation, durability under kill -9."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sottovoce.common.consortium.names import member_name
from sottovoce.common.errors import DeploymentError
from sottovoce.server.registry import Registry
from sottovoce.server.registry_tables import Decision, Kept, Witnessed

FAR = 4_000_000_000


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry.create(tmp_path / "registry.sqlite") as made:
        yield made


def enrol(registry: Registry, name: str, *, role: str = "site", number: int = 1, identity: str = "") -> int:
    """Invites and enrols; returns the serial number of the certificate."""
    registry.invite(name, role, serial=number, not_after=FAR)  # type: ignore[arg-type]
    registry.enrolled(
        invitation=number,
        request_sha256=f"{number:064x}",
        identity=identity or f"{number:064x}",
        node_key_pem=f"node key of {name}",
        certificate_pem=f"certificate {number}",
        serial=1000 + number,
        not_after=FAR,
    )
    return 1000 + number


def again(registry: Registry, *, invitation: int, request: str, pem: str = "another") -> str:
    return registry.enrolled(
        invitation=invitation,
        request_sha256=request,
        identity="ff" * 32,
        node_key_pem="",
        certificate_pem=pem,
        serial=77,
        not_after=FAR,
    )


@pytest.mark.parametrize("other", ["HOSPITAL-Ä", "hospital-a\u0308", "Hospital-ä", "hospital\uff0dä"])
def test_no_two_members_have_one_name_in_two_spellings(registry: Registry, other: str) -> None:
    enrol(registry, "hospital-ä")
    if "\uff0d" in other:  # a sign that no name may have
        with pytest.raises(DeploymentError, match="letters, digits"):
            registry.invite(other, "site", serial=2, not_after=FAR)
    elif member_name(other) == "hospital-ä":  # the same name, in Unicode's other form
        assert registry.invite(other, "site", serial=2, not_after=FAR).name == "hospital-ä"
    else:
        with pytest.raises(DeploymentError, match="too near to site 'hospital-ä'"):
            registry.invite(other, "site", serial=2, not_after=FAR)


@pytest.mark.parametrize(
    "name", ["", " a", "-a", "a/b", "a=b", "a\nb", "a:b", "Coordinator", "x" * 65, "ä" * 33, "a\u202eb"]
)
def test_names_that_could_be_mistaken_are_refused(registry: Registry, name: str) -> None:
    with pytest.raises(DeploymentError, match="Expected a name"):
        registry.invite(name, "site", serial=2, not_after=FAR)
    assert not registry.invitations()


def test_a_name_has_one_role(registry: Registry) -> None:
    enrol(registry, "ann", role="auditor")
    with pytest.raises(DeploymentError, match="too near to auditor"):
        registry.invite("ann", "admin", serial=2, not_after=FAR)


def test_an_invitation_is_used_once_and_the_same_request_gets_the_same_certificate(
    registry: Registry,
) -> None:
    enrol(registry, "hospital-a")
    assert again(registry, invitation=1, request=f"{1:064x}") == "certificate 1"
    assert registry.certificate_given(1, f"{1:064x}") == "certificate 1"
    with pytest.raises(DeploymentError, match="was not used; this one was"):
        again(registry, invitation=1, request="ee" * 32)
    assert [member.serial for member in registry.sites()] == [1001]


def test_an_identity_is_of_one_member(registry: Registry) -> None:
    enrol(registry, "hospital-a", identity="aa" * 32)
    with pytest.raises(DeploymentError, match="this one is of 'hospital-a'"):
        enrol(registry, "hospital-b", number=2, identity="aa" * 32)
    assert [member.name for member in registry.sites()] == ["hospital-a"]


def test_a_certificate_is_admitted_only_if_it_is_on_record_and_not_revoked(registry: Registry) -> None:
    serial = enrol(registry, "hospital-a")
    assert registry.refusal("hospital-a", "site", serial) is None
    assert registry.refusal("hospital-a", "admin", serial) == "this certificate is not on record"
    assert registry.refusal("hospital-b", "site", serial) == "this certificate is not on record"
    assert registry.refusal("hospital-a", "site", 999) == "this certificate is not on record"
    registry.renewed("hospital-a", serial=2001, not_after=FAR)
    assert registry.refusal("hospital-a", "site", 2001) is None
    assert registry.revoke("hospital-a", "Name", "left") == (serial, 2001)
    for number in (serial, 2001):
        assert registry.refusal("hospital-a", "site", number) == "this certificate was revoked"
    assert registry.revoked_serials() == (serial, 2001)
    with pytest.raises(DeploymentError, match="may take part"):
        registry.renewed("hospital-a", serial=2002, not_after=FAR)


def test_who_enrols_again_is_back_and_old_certificates_stay_revoked(registry: Registry) -> None:
    old = enrol(registry, "hospital-a")
    registry.revoke("hospital-a", "Name", "key lost")
    new = enrol(registry, "hospital-a", number=2)
    assert registry.refusal("hospital-a", "site", old) == "this certificate was revoked"
    assert registry.refusal("hospital-a", "site", new) is None
    changed = [event for event in registry.events() if event.what == "enrolled again"]
    assert changed[0].facts["identity_before"] == f"{1:064x}"


def test_revoking_withdraws_open_invitations(registry: Registry) -> None:
    enrol(registry, "hospital-a")
    registry.invite("hospital-a", "site", serial=2, not_after=FAR)
    registry.revoke("hospital-a", "Name", "left")
    assert registry.refusal("hospital-a", "invitation", 2) == "this invitation was withdrawn"
    with pytest.raises(DeploymentError, match="ask the coordinator for a new one"):
        again(registry, invitation=2, request="ee" * 32)


def test_approvals_count_by_their_newest_entry_and_the_identity_in_force(registry: Registry) -> None:
    enrol(registry, "hospital-a")
    enrol(registry, "hospital-b", number=2)
    registry.offer("text", "d" * 64, ["hospital-a", "hospital-b"], b"", b"signature", offered_at=7)

    def say(site: str, number: int, decision: str, entry: int) -> None:
        registry.record_approval(
            Decision(
                study="d" * 64,
                site=site,
                decision=decision,
                instance="i",
                entry=entry,
                decided_at=entry,
                identity=f"{number:064x}",
                signature=b"",
            )
        )

    say("hospital-a", 1, "approved", 3)
    say("hospital-b", 9, "approved", 3)  # under an identity that is not in force
    assert registry.approved("d" * 64) == {"hospital-a"}
    say("hospital-a", 1, "denied", 5)
    assert registry.approved("d" * 64) == frozenset()
    assert [one.decision for one in registry.approvals("d" * 64)] == ["denied", "approved"]


def test_a_study_is_offered_once_and_only_to_sites_that_may_take_part(registry: Registry) -> None:
    enrol(registry, "hospital-a")
    enrol(registry, "ann", role="auditor", number=2)
    with pytest.raises(DeploymentError, match="'ann' is none"):
        registry.offer("text", "d" * 64, ["hospital-a", "ann"], b"", b"", offered_at=7)
    assert registry.offers() == ()  # whole or not at all
    registry.offer("text", "d" * 64, ["hospital-a"], b"roster", b"signature", offered_at=7)
    with pytest.raises(DeploymentError, match="offered already"):
        registry.offer("text", "d" * 64, ["hospital-a"], b"", b"", offered_at=7)
    assert registry.offers("Hospital-A") == registry.offers()
    assert registry.offers("ann") == ()


def test_checkpoints_and_cosignatures_are_kept_once(registry: Registry) -> None:
    enrol(registry, "hospital-a")
    enrol(registry, "hospital-b", number=2)
    kept = Kept(
        site="hospital-a",
        identity=f"{1:064x}",
        size=3,
        note="note",
        ledger_key="k",
        signature=b"s",
        proof=(b"p" * 32, b"q" * 32),
        sent_at=1,
    )
    seen = Witnessed(
        site="hospital-a",
        identity=f"{1:064x}",
        size=3,
        witness="hospital-b",
        witness_identity=f"{2:064x}",
        witnessed_at=2,
        signature=b"w",
    )
    for _ in range(2):
        registry.checkpoint(kept)
        registry.cosign(seen)
    assert registry.checkpoints() == (kept,)
    assert registry.checkpoints_since("hospital-a", kept.identity, 4, 10) == ()
    assert registry.cosignatures() == (seen,)
    with pytest.raises(DeploymentError, match="FOREIGN KEY"):
        registry.cosign(Witnessed(**{**vars(seen), "size": 4}))


def test_a_model_is_released_with_its_digest_or_not_at_all(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"weights")
    digest = "9b59e4d9e0ad1b0a4e6e8b6f1ac5a4b0f1c66c4b2ac4ad8a9e54d4d2f2a1c8f0"
    with pytest.raises(DeploymentError, match="expected SHA-256"):
        registry.publish("run", digest, tmp_path / "model", study="d")
    assert registry.models() == ()


def test_events_are_never_changed_or_removed_and_every_change_left_one(
    registry: Registry, tmp_path: Path
) -> None:
    enrol(registry, "hospital-a")
    registry.renewed("hospital-a", serial=5, not_after=FAR)
    registry.revoke("hospital-a", "Name", "left")
    assert [event.what for event in registry.events()] == [
        "registry created",
        "invited",
        "enrolled",
        "certificate renewed",
        "revoked",
    ]
    with sqlite3.connect(tmp_path / "registry.sqlite") as raw:
        for statement in ("UPDATE events SET who = 'me'", "DELETE FROM events"):
            with pytest.raises(sqlite3.IntegrityError, match="events are never"):
                raw.execute(statement)
    raw.close()


def test_the_file_is_for_its_owner_and_synchronised(registry: Registry, tmp_path: Path) -> None:
    for path in tmp_path.glob("registry.sqlite*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    pragma = registry.file.all("PRAGMA synchronous")[0]["synchronous"]
    assert (pragma, registry.file.all("PRAGMA journal_mode")[0]["journal_mode"]) == (2, "wal")


def test_what_is_no_registry_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="there is none"):
        Registry.open(tmp_path / "none")
    (tmp_path / "damaged").write_bytes(b"not a database, but long enough to be read as one" * 100)
    with pytest.raises(DeploymentError, match="cannot be used"):
        Registry.open(tmp_path / "damaged")
    Registry.create(tmp_path / "new").close()
    with pytest.raises(DeploymentError, match="there is one"):
        Registry.create(tmp_path / "new")
    with sqlite3.connect(tmp_path / "new") as raw:
        raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(DeploymentError, match="version 99"):
        Registry.open(tmp_path / "new")


WRITER = """
import sys
from pathlib import Path
from sottovoce.server.registry import Registry
registry, start = Registry.open(Path(sys.argv[1])), int(sys.argv[2])
for number in range(start, start + 100_000):
    registry.invite(f"site {number}", "site", serial=number, not_after=4_000_000_000)
    print(number, flush=True)
"""


def test_nothing_that_was_acknowledged_is_lost_by_kill_nine_of_two_writers(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite"
    Registry.create(path).close()
    acknowledged: set[int] = set()
    for attempt in range(3):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(path), str((2 * attempt + which) * 1_000_000)],
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": "src"},
            )
            for which in (0, 1)
        ]
        try:
            for writer in writers:
                assert writer.stdout is not None
                for _ in range(3):  # both are at work, however slowly
                    acknowledged.add(int(writer.stdout.readline()))
            time.sleep(0.05 + 0.03 * attempt)
        finally:
            for writer in writers:
                writer.send_signal(signal.SIGKILL)
        for writer in writers:
            rest, _ = writer.communicate()
            acknowledged |= {int(line) for line in rest.split(b"\n")[:-1]}
    with Registry.open(path) as registry:
        found = {invited.serial for invited in registry.invitations()}
        invited = {event.facts["name"] for event in registry.events(limit=100_000) if event.what == "invited"}
    assert len(acknowledged) >= 3 * 2 * 3
    assert acknowledged <= found
    assert invited == {
        f"site {serial}" for serial in found
    }  # each change with its event, and no event without


def test_a_full_disk_changes_nothing_and_is_said_in_words(registry: Registry) -> None:
    enrol(registry, "hospital-a")
    before = registry.events()
    pages = registry.file.all("PRAGMA page_count")[0]["page_count"]
    registry.file.all(f"PRAGMA max_page_count = {pages}")  # SQLite then answers as on a disk without room
    with pytest.raises(DeploymentError, match="disk has room"):
        registry.offer("text" * 10_000, "d" * 64, ["hospital-a"], b"", b"", offered_at=7)
    assert (registry.offers(), registry.events()) == ((), before)
    registry.file.all("PRAGMA max_page_count = 1000000")
    registry.offer("text" * 10_000, "d" * 64, ["hospital-a"], b"", b"", offered_at=7)
