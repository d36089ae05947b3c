"""Claims of the consortium's service, on a real server over real mutual TLS."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from sottovoce.client.consortium import ConsortiumClient
from sottovoce.client.home import Hospital
from sottovoce.client.operator import Operator
from sottovoce.client.tls_folder import TlsFolder
from sottovoce.common.consortium import consortium_pb2 as schema
from sottovoce.common.consortium.channel import BrokenStream, Connection
from sottovoce.common.consortium.invitation import read_invitation
from sottovoce.common.consortium.schema import METHODS
from sottovoce.common.consortium.statements import (
    ApprovalStatement,
    CheckpointStatement,
    EnrolmentStatement,
    signed,
)
from sottovoce.common.errors import DeploymentError
from sottovoce.common.keys import SigningKey
from sottovoce.common.ledger.checkpoint import Checkpoint, parse, sign
from sottovoce.common.ledger.cosignature import cosign
from sottovoce.common.ledger.reading import newest_checkpoint, read_ledger
from sottovoce.common.pki import Authority, new_node_key, new_request, peer_of
from sottovoce.server.consortium import gate
from sottovoce.server.registry_tables import Decision
from tests.fakes.consortium import Consortium, consortium

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


def refused(connection: Connection, name: str, request: Any) -> str:
    with pytest.raises(DeploymentError) as caught:
        connection.call(name, request)
    return str(caught.value)


def raw(made: Consortium, place: Hospital | Operator, path: str, data: bytes) -> grpc.RpcError:
    """Sends any bytes under any path and returns the error that comes."""
    pair = TlsFolder(place.tls).current()
    assert pair is not None
    with raw_channel(made, pair.key, pair.certificate) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(path)(data, timeout=60)
    error: grpc.RpcError = caught.value
    return error


def raw_channel(made: Consortium, key: str | None, certificate: str | None) -> Any:
    credentials = grpc.ssl_channel_credentials(
        made.authority.certificate_pem.encode(), key and key.encode(), certificate and certificate.encode()
    )
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.secure_channel(made.address, credentials, options)


# --- who may call -----------------------------------------------------------------------------------------

SITE, AUDITOR, ADMIN, COORDINATOR, INVITATION = "site", "auditor", "admin", "coordinator", "invitation"
EVERY_MEMBER = {SITE, AUDITOR, ADMIN, COORDINATOR}
MAY = {
    "Enrol": {INVITATION},
    "Renew": EVERY_MEMBER,
    "ListOffers": EVERY_MEMBER,
    "FetchOffer": EVERY_MEMBER,
    "SendApproval": {SITE},
    "SendCheckpoint": {SITE},
    "FetchCheckpoints": {SITE, AUDITOR},
    "SendCosignature": {SITE},
    "FetchCosignatures": EVERY_MEMBER,
    "ListModels": EVERY_MEMBER,
    "FetchModel": EVERY_MEMBER,
    "Status": {AUDITOR, ADMIN, COORDINATOR},
}


@pytest.mark.parametrize("role", [SITE, AUDITOR, ADMIN, COORDINATOR, INVITATION])
def test_a_role_may_make_its_own_calls_and_no_others(made: Consortium, role: Any) -> None:
    if role == INVITATION:
        invited = read_invitation(made.invite("nobody-yet"))
        connection = made.connect_with(invited.certificate, invited.key)
    else:
        place = made.join("hospital-a") if role == SITE else made.person(f"person-{role}", role)
        connection = made.connect(place)
    assert set(MAY) == set(METHODS)
    with connection:
        for name, method in METHODS.items():
            said = _answer(connection, name, method.request())
            assert (f"role {role} may not" in said) == (role not in MAY[name]), f"{name}: {said}"


def _answer(connection: Connection, name: str, request: Any) -> str:
    try:
        if METHODS[name].streams:
            list(connection.stream(name, request, seconds=60))
        else:
            connection.call(name, request)
    except DeploymentError as error:
        return str(error)
    return "done"


def test_without_a_certificate_nobody_gets_as_far_as_a_request(made: Consortium) -> None:
    before = len(made.registry.events(limit=10_000))
    with raw_channel(made, None, None) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(METHODS["ListOffers"].path)(b"", timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(made.registry.events(limit=10_000)) == before


def test_a_certificate_of_another_authority_is_refused_both_ways(made: Consortium, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", name="Consortium")
    leaf = other.issue(new_request(tmp_path / "key"), name="hospital-a", role="site")
    key = (tmp_path / "key").read_text()
    with made.connect_with(leaf, key) as connection:
        assert "refuses this certificate" in refused(connection, "ListOffers", schema.ListOffersRequest())
    with made.connect_with(*made.certificate("hospital-a", "site"), other.certificate_pem) as connection:
        assert "fingerprint" in refused(connection, "ListOffers", schema.ListOffersRequest())


class Later:
    """The clock of a module, an hour and more ahead: no certificate or invitation of these tests lasts as long."""

    monotonic = staticmethod(time.monotonic)

    @staticmethod
    def time() -> float:
        return time.time() + 7200


def test_a_certificate_that_is_over_is_refused_before_and_during_a_connection(
    made: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = made.certificate("hospital-a", "site", hours=1, now=time.time() - 7200)
    with made.connect_with(*over) as connection:
        assert "refuses this certificate" in refused(connection, "ListOffers", schema.ListOffersRequest())
    with made.connect_with(*made.certificate("hospital-a", "site", hours=1)) as connection:
        connection.call("ListOffers", schema.ListOffersRequest())
        monkeypatch.setattr(gate, "time", Later)
        assert "this one is over" in refused(connection, "ListOffers", schema.ListOffersRequest())
    assert made.refusals()[-1] == ("hospital-a", "ListOffers", "UNAUTHENTICATED")


def test_a_certificate_that_is_not_on_record_is_admitted_to_nothing(made: Consortium) -> None:
    with made.connect_with(*made.certificate("hospital-a", "site", recorded=False)) as connection:
        assert "not on record" in refused(connection, "ListOffers", schema.ListOffersRequest())
    for name, role in [("hospital-a", "admin"), ("hospital-x", "site"), ("hospital-a", "invitation")]:
        leaf = made.certificate(name, role, recorded=False)  # type: ignore[arg-type]
        with made.connect_with(*leaf) as connection:
            assert "not on record" in refused(connection, "Status", schema.StatusRequest())


def test_who_is_revoked_is_refused_at_the_next_request_of_the_same_connection(own: Consortium) -> None:
    with own.connect(own.join("hospital-a")) as connection, own.connect(own.join("hospital-b")) as other:
        connection.call("ListOffers", schema.ListOffersRequest())
        own.registry.revoke("hospital-a", "Name", "test")
        for name in ("ListOffers", "Renew"):
            assert "was revoked" in refused(connection, name, METHODS[name].request())
        other.call("ListOffers", schema.ListOffersRequest())
    assert own.refusals() == [
        ("hospital-a", "ListOffers", "PERMISSION_DENIED"),
        ("hospital-a", "Renew", "PERMISSION_DENIED"),
    ]


def test_a_revoked_site_enrols_again_only_by_a_new_invitation(own: Consortium) -> None:
    hospital = own.join("hospital-a")
    own.registry.revoke("hospital-a", "Name", "test")
    assert ConsortiumClient.enrol(hospital, own.root / "hospital-a.invitation").name == "hospital-a"
    with ConsortiumClient(hospital, patience_seconds=0.5) as client, pytest.raises(DeploymentError):
        client.offers()  # the old invitation did nothing
    ConsortiumClient.enrol(hospital, own.invite("hospital-a"))
    with ConsortiumClient(hospital) as client:
        assert client.offers() == ()


# --- what a request may be --------------------------------------------------------------------------------


def test_what_is_too_large_is_refused(made: Consortium) -> None:
    hospital, path = made.join("hospital-a"), METHODS["ListOffers"].path
    error = raw(made, hospital, path, b"\x00" * 5_000)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "at most 4096 bytes" in str(error.details())
    assert made.refusals()[-1] == ("hospital-a", "ListOffers", "INVALID_ARGUMENT")
    assert raw(made, hospital, path, b"\x00" * 1_500_000).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("ListOffers", b"\x0a\x01x"),  # field 1 of a message without fields
        ("FetchOffer", schema.FetchOfferRequest(study="x").SerializeToString() + b"\xf8\x06\x01"),
        ("FetchCheckpoints", b"\x0a\x05\x0a\x01a\x20\x01"),  # field 4 of a message within
        ("FetchOffer", b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94."),  # a pickle
        ("FetchOffer", b"\x0a\xff\xff\xff\xff\x0f"),  # a length of 4 GiB
        ("FetchOffer", b"\x0a\x02\xff\xfe"),  # no UTF-8
    ],
)
def test_bytes_that_are_no_message_of_the_schema_are_refused(
    made: Consortium, name: str, data: bytes
) -> None:
    error = raw(made, made.join("hospital-a"), METHODS[name].path, data)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Expected a message" in str(error.details())
    assert made.refusals()[-1] == ("hospital-a", name, "INVALID_ARGUMENT")


def test_an_unknown_call_is_refused_and_nothing_tells_which_there_are(made: Consortium) -> None:
    reflection = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    for path in (reflection, "/sottovoce.v1.Consortium/Dump"):
        assert raw(made, made.join("hospital-a"), path, b"").code() is grpc.StatusCode.PERMISSION_DENIED
        assert made.refusals()[-1] == ("hospital-a", "an unknown call", "PERMISSION_DENIED")


def test_health_is_told_to_members(made: Consortium) -> None:
    pair = TlsFolder(made.join("hospital-a").tls).current()
    assert pair is not None
    with raw_channel(made, pair.key, pair.certificate) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        for service in ("", "sottovoce.v1.Consortium"):
            answer = check(health_pb2.HealthCheckRequest(service=service), timeout=60)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            check(health_pb2.HealthCheckRequest(service="other"), timeout=60)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_defect_is_told_to_the_operator_and_not_to_the_peer(own: Consortium) -> None:
    with own.connect(own.join("hospital-a")) as connection:
        with sqlite3.connect(own.home.registry) as database:
            database.execute("DROP TABLE models")
        database.close()
        said = refused(connection, "ListModels", schema.ListModelsRequest())
    assert "its log says why" in said
    assert not any(word in said for word in ("models", "sqlite", "Traceback", str(own.root)))
    assert own.refusals() == [("hospital-a", "ListModels", "INTERNAL")]


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops the clock of the gate: how many calls this machine makes in a second is not what is claimed."""
    now = time.monotonic()
    monkeypatch.setattr(gate, "time", SimpleNamespace(time=time.time, monotonic=lambda: now))


@pytest.mark.usefixtures("still")
def test_one_peer_calls_only_so_often_and_the_others_go_on(own: Consortium) -> None:
    with own.connect(own.join("hospital-a")) as eager, own.connect(own.join("hospital-b")) as other:
        said = [_answer(eager, "ListOffers", schema.ListOffersRequest()) for _ in range(240)]
        other.call("ListOffers", schema.ListOffersRequest())
    assert said[:190] == ["done"] * 190
    assert all("calls a second" in one for one in said[int(gate.CALLS) :])
    # Being refused over and over fills no disk.
    assert 0 < len(own.refusals()) <= gate.EVENTS_PER_MINUTE


@pytest.mark.usefixtures("still")
def test_one_peer_fills_only_so_much_of_the_disk(own: Consortium) -> None:
    with own.connect(own.join("hospital-a")) as connection:
        said = [_answer(connection, "SendCosignature", schema.Cosignature()) for _ in range(105)]
        assert "another site" in said[0]
        assert "that change something" in said[-1]
        connection.call("ListOffers", schema.ListOffersRequest())


def test_one_peer_has_only_so_many_calls_open(own: Consortium) -> None:
    model = own.root / "model"
    model.write_bytes(bytes(20_000_000))  # more than fits into buffers on the way
    study = publish(own, model, ["hospital-a"])
    with own.connect(own.join("hospital-a")) as connection:
        request = schema.FetchModelRequest(sha256=study)
        streams = [connection.stream("FetchModel", request, seconds=120) for _ in range(gate.CALLS_AT_ONCE)]
        for stream in streams:
            next(stream)  # and read no further
        assert "at once" in refused(connection, "ListOffers", schema.ListOffersRequest())
        for stream in streams:
            stream.close()  # type: ignore[attr-defined]
        deadline = time.monotonic() + 60
        while _answer(connection, "ListOffers", schema.ListOffersRequest()) != "done":
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_who_reads_a_stream_too_slowly_is_cut_off_and_may_go_on(
    own: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "STREAM_SECONDS", 1.5)
    model = own.root / "model"
    model.write_bytes(bytes(20_000_000))
    request = schema.FetchModelRequest(sha256=publish(own, model, ["hospital-a"]))
    with own.connect(own.join("hospital-a")) as connection:
        stream = connection.stream("FetchModel", request, seconds=120)
        next(stream)
        time.sleep(2.0)
        with pytest.raises(BrokenStream):
            list(stream)
        connection.call("ListOffers", schema.ListOffersRequest())


# --- enrolment --------------------------------------------------------------------------------------------


def enrolment(made: Consortium, folder: Path, name: str) -> tuple[Connection, dict[str, Any], SigningKey]:
    """Returns a connection with an invitation, a request's fields, and the key that signs them."""
    invited, key = read_invitation(made.invite(name)), SigningKey.generate()
    fields = {
        "name": name,
        "certificate_request": new_request(folder / "k"),
        "node_key": new_node_key(folder / "n"),
        "identity": key.public_hex,
    }
    return made.connect_with(invited.certificate, invited.key), fields, key


def signed_request(fields: dict[str, Any], key: SigningKey) -> schema.EnrolRequest:
    return schema.EnrolRequest(**fields, signature=signed(key, EnrolmentStatement(**fields)))


CHANGES: dict[str, tuple[Callable[[Consortium], dict[str, Any]], str]] = {
    "another's name": (lambda made: {"name": "hospital-b"}, "the invitation's name"),
    "no request": (lambda made: {"certificate_request": ""}, "a certificate request of 1"),
    "a request that is none": (lambda made: {"certificate_request": "x"}, "signed by its own"),
    "no node key": (lambda made: {"node_key": ""}, "a node key from a site"),
    "a node key that is none": (lambda made: {"node_key": "x"}, "EC P-384"),
    "no identity": (lambda made: {"identity": "xyz"}, "an identity of 64"),
    "the coordinator's identity": (lambda made: {"identity": made.home.key.public_hex}, "of your own"),
    "an identity of another": (lambda made: {"identity": "ab" * 32}, "a signature of the identity"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_an_enrolment_that_is_not_whole_is_refused_and_uses_nothing_up(
    made: Consortium, tmp_path: Path, what: str
) -> None:
    change, said = CHANGES[what]
    name = f"new {list(CHANGES).index(what)}"
    connection, fields, key = enrolment(made, tmp_path, name)
    with connection:
        assert said in refused(connection, "Enrol", signed_request({**fields, **change(made)}, key))
        assert made.registry.member(name) is None
        assert connection.call("Enrol", signed_request(fields, key)).certificate  # the invitation still holds


def test_an_invitation_is_used_once_and_a_lost_answer_comes_again(made: Consortium, tmp_path: Path) -> None:
    connection, fields, key = enrolment(made, tmp_path, "once")
    with connection:
        first = connection.call("Enrol", signed_request(fields, key))
        assert connection.call("Enrol", signed_request(fields, key)) == first
        other = SigningKey.generate()
        said = refused(connection, "Enrol", signed_request({**fields, "identity": other.public_hex}, other))
        assert "this one was" in said
    peer = peer_of(first.certificate)
    assert (peer.name, peer.role) == ("once", "site")


def test_two_that_use_an_invitation_at_once_get_one_membership(made: Consortium, tmp_path: Path) -> None:
    connection, fields, _ = enrolment(made, tmp_path, "race")
    keys = [SigningKey.generate() for _ in range(4)]
    requests = [signed_request({**fields, "identity": key.public_hex}, key) for key in keys]
    with connection, ThreadPoolExecutor(4) as pool:
        said = list(pool.map(lambda request: _answer(connection, "Enrol", request), requests))
    assert said.count("done") == 1
    member = made.registry.member("race")
    assert member is not None
    assert member.identity == keys[said.index("done")].public_hex


def test_an_identity_of_another_member_is_refused(made: Consortium, tmp_path: Path) -> None:
    connection, fields, _ = enrolment(made, tmp_path, "thief")
    taken = made.join("hospital-a").identity
    with connection:
        said = refused(connection, "Enrol", signed_request({**fields, "identity": taken.public_hex}, taken))
    assert "is of 'hospital-a'" in said


def test_an_invitation_holds_no_longer_than_it_says(
    made: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    invited = read_invitation(made.invite("late"))
    assert invited.not_after == peer_of(invited.certificate).not_after
    with made.connect_with(invited.certificate, invited.key) as connection:
        assert "certificate request" in refused(connection, "Enrol", schema.EnrolRequest(name="late"))
        monkeypatch.setattr(gate, "time", Later)
        assert "is over" in refused(connection, "Enrol", schema.EnrolRequest(name="late"))


# --- studies ----------------------------------------------------------------------------------------------


def publish(made: Consortium, file: Path, sites: list[str]) -> str:
    """Offers a study to sites and releases a file as its model; returns the file's digest."""
    from sottovoce.common.consortium.statements import sha256

    for site in sites:
        made.join(site)
    study, digest = made.offer(sites, name=file.stem), sha256(file.read_bytes())
    made.registry.publish(file.stem, digest, file, study=study.digest())
    return digest


def test_a_site_sees_what_was_offered_to_it_and_nothing_of_the_rest(made: Consortium) -> None:
    study = made.offer(["hospital-a", "hospital-b"], name="two")
    with made.connect(made.join("hospital-b")) as invited, made.connect(made.join("hospital-c")) as other:
        assert study.digest() in {one.study for one in _offers(invited)}
        assert invited.call("FetchOffer", schema.FetchOfferRequest(study=study.digest())).text
        assert study.digest() not in {one.study for one in _offers(other)}
        hidden = refused(other, "FetchOffer", schema.FetchOfferRequest(study=study.digest()))
        unknown = refused(other, "FetchOffer", schema.FetchOfferRequest(study="0" * 64))
    assert hidden.replace(study.digest()[:16], "") == unknown.replace("0" * 16, "")


def _offers(connection: Connection) -> Any:
    return connection.call("ListOffers", schema.ListOffersRequest()).offers


def approval(site: Hospital, study: str, key: SigningKey | None = None, **change: Any) -> schema.Approval:
    said = ApprovalStatement(
        study=study, site=site.site, decision="approved", instance="i", entry=3, decided_at=1_800_000_000
    )
    signature = signed(key or site.identity, said)
    return schema.Approval(
        **{**{k: v for k, v in vars(said).items() if k != "site"}, "signature": signature, **change}
    )


def test_an_approval_counts_only_under_the_sites_own_signature(made: Consortium) -> None:
    digest = made.offer(SITES, name="approvals").digest()
    site, other = made.join("hospital-a"), made.join("hospital-b")
    with made.connect(site) as connection:
        for wrong in (
            approval(site, digest, key=other.identity),
            approval(site, digest, decision="denied"),  # signed for another decision
            approval(site, digest, entry=4),
            approval(other, digest),  # another site's, sent by this one
        ):
            assert "Expected a signature" in refused(connection, "SendApproval", wrong)
        assert "a decision of approved, denied" in refused(
            connection, "SendApproval", approval(site, digest, decision="maybe")
        )
        assert made.registry.approved(digest) == frozenset()
        for _ in range(2):
            connection.call("SendApproval", approval(site, digest))
    assert made.registry.approved(digest) == {"hospital-a"}
    (kept,) = made.registry.approvals(digest)
    assert isinstance(kept, Decision)
    assert (kept.entry, kept.identity) == (3, site.identity.public_hex)


def test_models_go_to_the_sites_of_their_study_and_go_on_at_any_byte(made: Consortium) -> None:
    data = bytes(range(256)) * 4000  # more than one chunk
    model = made.root / "model.bin"
    model.write_bytes(data)
    digest = publish(made, model, ["hospital-a", "hospital-b"])
    with made.connect(made.join("hospital-a")) as connection, made.connect(made.join("hospital-c")) as other:
        for offset in (0, 1, 262_144, 700_001, len(data)):
            request = schema.FetchModelRequest(sha256=digest, offset=offset)
            chunks = list(connection.stream("FetchModel", request, seconds=60))
            assert b"".join(chunk.data for chunk in chunks) == data[offset:]
            assert [chunk.offset for chunk in chunks] == list(range(offset, len(data), 262_144))
        beyond = schema.FetchModelRequest(sha256=digest, offset=len(data) + 1)
        assert "an offset in" in _answer(connection, "FetchModel", beyond)
        assert "is none" in _answer(other, "FetchModel", schema.FetchModelRequest(sha256=digest))
        model.unlink()
        assert "it is gone" in _answer(connection, "FetchModel", schema.FetchModelRequest(sha256=digest))


def test_status_tells_an_auditor_who_takes_part_and_how_far_they_are(made: Consortium) -> None:
    digest = made.offer(SITES, name="status").digest()
    with ConsortiumClient(made.join("hospital-a")) as client:
        client.send_checkpoint()
    with ConsortiumClient(made.join("hospital-b")) as client:
        client.witness()
    with ConsortiumClient(made.person("eve", "auditor")) as client:
        told = client.status()
    assert {one["name"] for one in told["participants"]} >= {*SITES, "eve"}
    standing = {one["site"]: one for one in told["checkpoints"]}["hospital-a"]
    assert (standing["size"], standing["witnesses"]) == (1, ["hospital-b"])
    assert {"study": digest, "approved": [], "denied": []} in told["decisions"]


# --- ledgers ----------------------------------------------------------------------------------------------


def checkpoint(site: Hospital, **change: Any) -> schema.SendCheckpointRequest:
    note = newest_checkpoint(read_ledger(site.ledger))
    (key_file,) = (site.ledger / "keys").glob("signing-*.pem")
    fields = {"note": note, "ledger_key": SigningKey.load(key_file).public_hex, **change}
    signer = fields.pop("signer", site.identity)
    word = signed(signer, CheckpointStatement(site=site.site, **fields))
    return schema.SendCheckpointRequest(note=schema.Note(**fields, signature=word))


def test_a_checkpoint_is_kept_only_with_the_sites_word_for_its_key(own: Consortium) -> None:
    site, other = own.join("hospital-a"), own.join("hospital-b")
    with own.connect(site) as connection:
        for wrong in (
            checkpoint(site, signer=other.identity),
            checkpoint(site, ledger_key=other.identity.public_hex),  # not the key that signed the note
            checkpoint(site, note="no checkpoint"),
            checkpoint(other),
        ):
            assert "Expected a" in refused(connection, "SendCheckpoint", wrong)
        assert own.registry.checkpoints() == ()
        assert connection.call("SendCheckpoint", checkpoint(site)).accepted
        again = connection.call("SendCheckpoint", checkpoint(site))  # from size 0, as if nothing had come
        assert (again.accepted, again.kept_size) == (False, 1)


def test_a_ledger_that_was_begun_anew_is_refused_and_the_evidence_is_kept(own: Consortium) -> None:
    site = own.join("hospital-a")
    with ConsortiumClient(site) as client:
        client.send_checkpoint()
        (kept,) = own.registry.checkpoints()
        for name in ("ledger.jsonl", "head", "lock"):
            (site.ledger / name).unlink()
        remade(site)
        with pytest.raises(DeploymentError, match="rolled back, rewritten, or runs twice"):
            client.send_checkpoint()
    assert own.registry.checkpoints() == (kept,)
    (event,) = [one for one in own.registry.events() if one.what == "LEDGER DOES NOT EXTEND"]
    assert (event.who, event.facts["kept"]) == ("hospital-a", kept.note)
    assert parse(event.facts["shown"]).checkpoint.instance != parse(kept.note).checkpoint.instance


def remade(site: Hospital) -> None:
    """Begins a site's ledger anew, under the same keys."""
    from sottovoce.common.keys import load_keys
    from sottovoce.common.ledger.files import DiskFolder
    from sottovoce.common.ledger.store import Ledger

    (key,), digest_key = load_keys(site.ledger / "keys")
    Ledger.create(DiskFolder(site.ledger), site=site.site, key=key, digest_key=digest_key).close()


def test_a_cosignature_is_kept_only_of_another_sites_kept_checkpoint(own: Consortium) -> None:
    site, witness = own.join("hospital-a"), own.join("hospital-b")
    with ConsortiumClient(site) as client:
        client.send_checkpoint()
    (kept,) = own.registry.checkpoints()
    now = int(time.time())

    def cosignature(key: SigningKey, name: str, at: int, **change: Any) -> schema.Cosignature:
        one = cosign(parse(kept.note), key, witness=name, now=at)
        fields = {
            "site": "hospital-a",
            "note": kept.note,
            "witnessed_at": at,
            "signature": one.signature,
            **change,
        }
        return schema.Cosignature(**fields)

    with own.connect(witness) as connection, own.connect(site) as self_witness:
        for wrong, said in (
            (cosignature(site.identity, "hospital-b", now), "a cosignature of this site"),
            (cosignature(witness.identity, "hospital-b", now - 90_000), "a time of today"),
            (cosignature(witness.identity, "hospital-b", now, witnessed_at=now + 1), "a cosignature of this"),
            (cosignature(witness.identity, "hospital-b", now, site="hospital-b"), "another site"),
            (cosignature(witness.identity, "hospital-b", now, note="x"), "a ledger checkpoint"),
        ):
            assert said in refused(connection, "SendCosignature", wrong)
        for size in (1, 2):  # signed as it should be, but no checkpoint that the coordinator keeps
            other = sign(Checkpoint(instance="cd" * 16, size=size, root=bytes(32)), site.identity).text()
            word = cosign(parse(other), witness.identity, witness="hospital-b", now=now)
            made_up = cosignature(witness.identity, "hospital-b", now, note=other, signature=word.signature)
            assert "the coordinator keeps" in refused(connection, "SendCosignature", made_up)
        own_word = cosignature(site.identity, "hospital-a", now)
        assert "another site" in refused(self_witness, "SendCosignature", own_word)
        assert own.registry.cosignatures() == ()
        connection.call("SendCosignature", cosignature(witness.identity, "hospital-b", now))
    assert [one.witness for one in own.registry.cosignatures()] == ["hospital-b"]


# --- certificates that change -----------------------------------------------------------------------------


def test_certificates_of_both_sides_change_in_a_stream_of_calls_and_no_call_fails(tmp_path: Path) -> None:
    with consortium(
        tmp_path, hours=8 / 3600
    ) as made:  # two thirds of them, and as long as a slow call may take
        hospital = made.join("hospital-a")
        first = TlsFolder(hospital.tls).current()
        assert first is not None
        server = server_serial(made)
        n_calls = 0
        with ConsortiumClient(hospital, patience_seconds=0.1) as client:
            while time.time() < first.peer.not_after + 0.5:  # longer than either lives
                client.offers()
                n_calls += 1
                time.sleep(0.02)
        last = TlsFolder(hospital.tls).current()
        assert last is not None
        assert n_calls > 20
        assert first.peer.not_after < time.time() < last.peer.not_after
        assert server_serial(made) != server
        renewals = [
            event for event in made.registry.events(limit=10_000) if event.what == "certificate renewed"
        ]
        assert 1 <= len(renewals) <= 3
        assert made.refusals() == []


def server_serial(made: Consortium) -> int:
    """Returns the serial number of the certificate that the server shows now."""
    import socket
    import ssl

    hospital = made.join("hospital-a")
    context = ssl.create_default_context(cadata=made.authority.certificate_pem)
    context.load_cert_chain(hospital.tls / "site.crt", hospital.tls / "site.key")
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", made.served.port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
    ):
        found = wrapped.getpeercert()
    assert found is not None
    return int(str(found["serialNumber"]), 16)


def test_a_port_that_is_taken_is_said_at_once(made: Consortium) -> None:
    from sottovoce.server.consortium.service import serve

    with pytest.raises(DeploymentError, match="another program does"):
        serve(made.home, made.registry, made.authority, port=made.served.port)


def test_no_thread_is_left_waiting(made: Consortium) -> None:
    end = time.monotonic() + 60  # a timer that was cancelled needs a moment; one that was not, ten minutes
    while [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]:
        assert time.monotonic() < end
        time.sleep(0.02)
