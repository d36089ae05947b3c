"""Attacks on a running federation: real processes over TLS. All are refused, none is executed, each is logged."""

import json
import pickle
import random
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from sottovoce.client.consortium import ConsortiumClient
from sottovoce.client.fleet import connect
from sottovoce.client.setup import set_up
from sottovoce.client.site_ledger import SiteLedger
from sottovoce.client.tls_folder import TlsFolder
from sottovoce.common.consortium.channel import Connection
from sottovoce.common.consortium.schema import METHODS
from sottovoce.common.envelope import COORDINATOR, Envelope, seal
from sottovoce.common.envelope import Sequence as Numbers
from sottovoce.common.errors import SottovoceError
from sottovoce.common.files import write_whole
from sottovoce.common.ledger.entries import Reserve
from sottovoce.common.ledger.reading import read_ledger
from sottovoce.common.ledger.verify import entries_of
from sottovoce.common.pki import Authority, new_node_key, new_request
from sottovoce.common.records import pack
from sottovoce.common.study import Study
from sottovoce.server.consortium.invitations import invitation
from sottovoce.server.registry import Registry
from sottovoce.server.superlink import Control
from sottovoce.simulations.federation import start_hospital, wait_for
from tests.fakes.carried import altered
from tests.fakes.fronts import NGINX
from tests.fakes.running import Running, coordinator
from tests.fakes.secure_rounds import LOCAL
from tests.fakes.sites import LINEAR, SGD, write_study
from tests.fakes.superlinks import PYPROJECT, fab_of, until

SITE, OTHER = "site-1", "site-2"
MAX_BYTES = 100_000
CODELESS = PYPROJECT.replace("tests.fakes.fleet_server", "tests.fakes.attack_server")
EVIL = """\
from pathlib import Path
Path({marker!r}).write_text("it ran")
from flwr.clientapp import ClientApp
app = ClientApp()
@app.train()
def train(message, context):
    Path({marker!r}).write_text("it ran")
"""
needs_front = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: there is no front to attack")


@dataclass
class Attacker:
    """Who has the SuperLink, and the coordinator's key where a test says so."""

    place: Running
    study: Study
    folder: Path
    control: Control
    n_asked: int = 0

    def submit(self, files: Mapping[str, bytes], name: str) -> Path:
        """Submits a run past our coordinator; returns the folder that its ServerApp listens to."""
        folder = self.folder / name
        folder.mkdir()
        self.control.start_run(fab_of(files), {"folder": str(folder)})
        return folder

    def send(
        self, folder: Path, asks: Sequence[Mapping[str, Any]], *, n: int | None = None
    ) -> list[dict[str, Any]]:
        """Sends messages to the site, one after the other; returns what came of each."""
        number, self.n_asked = (self.n_asked, self.n_asked + 1) if n is None else (n, self.n_asked)
        text = json.dumps([{"node": self.place.nodes[SITE], "kind": "train", **ask} for ask in asks])
        write_whole(folder / f"ask-{number}.json", text.encode())
        answer = folder / f"answer-{number}.json"
        until(answer.exists, seconds=300, what=f"an answer in {folder.name}")
        found: list[dict[str, Any]] = json.loads(answer.read_text())
        return found

    def envelope(
        self, body: bytes, *, kind: str = "train", recipient: str = SITE, run: str | None = None
    ) -> Envelope:
        """Returns an envelope that the coordinator's own key signed."""
        home = self.place.home
        return seal(
            home.key,
            run=run or self.study.digest(),
            round=1,
            phase=kind,
            sender=COORDINATOR,
            recipient=recipient,
            sequence=Numbers(home.run / "sequence").next(),
            body=body,
            not_after=time.time() + 300,
        )

    @property
    def n_reserved(self) -> int:
        """How often the site has begun to compute something."""
        ledger = read_ledger(self.place.hospitals[SITE].ledger).ledger
        return sum(isinstance(entry.body, Reserve) for entry in entries_of(ledger))

    def events(self, what: str) -> list[Mapping[str, Any]]:
        """Returns what the coordinator wrote down."""
        with Registry.open(self.place.home.registry) as registry:
            return [
                {"who": one.who, **one.facts} for one in registry.events(limit=10_000) if one.what == what
            ]


def carried(envelope: Envelope) -> dict[str, Any]:
    parts = {"header": envelope.header, "signature": envelope.signature, "body": envelope.body}
    return {"bytes": {"sealed": {name: data.hex() for name, data in parts.items()}}}


@pytest.fixture(scope="module")
def attacker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacker]:
    folder = tmp_path_factory.mktemp("attacked")
    more = "secure_sum = false, deadline_seconds = 120.0"
    study_file = write_study(
        folder / "study.toml", n_sites=1, rounds=1, privacy=LOCAL, model=LINEAR, training=SGD, federation=more
    )
    with coordinator(folder / "federation", 2, study_file, front=NGINX is not None) as place:
        settings = place.hospitals[SITE].folder / "hospital.toml"
        settings.write_text(f"max_message_bytes = {MAX_BYTES}\n{settings.read_text()}")
        study = place.offer(study_file, [SITE])
        place.approve(study, [SITE])
        start_hospital(place.made, SITE)
        address = f"127.0.0.1:{place.home.settings.fleet_port}"
        control = Control(address, (place.home.pki / "ca.crt").read_bytes())
        yield Attacker(place=place, study=study, folder=folder, control=control)
        control.close()


@pytest.fixture(scope="module")
def line(attacker: Attacker) -> Path:
    """A run under the codeless bundle, which the site's agent lets through: what is in the messages decides."""
    return attacker.submit(
        {"pyproject.toml": CODELESS.format(app="sottovoce.client.hospital:app").encode()}, "line"
    )


@pytest.fixture(scope="module")
def unapproved(attacker: Attacker) -> Study:
    """A study that the site was offered and has not approved."""
    file = write_study(
        attacker.folder / "other.toml",
        n_sites=1,
        rounds=1,
        privacy=LOCAL.replace("noise_multiplier = 1.0", "noise_multiplier = 0.5", 1),
        model=LINEAR,
        training=SGD,
        federation="secure_sum = false, deadline_seconds = 120.0",
    )
    return attacker.place.offer(file, [SITE])


@pytest.fixture(scope="module")
def with_code(attacker: Attacker) -> Path:
    """A run whose bundle has code for the site."""
    marker = str(attacker.folder / "marker")
    files = {
        "pyproject.toml": CODELESS.format(app="evil.client:app").encode(),
        "evil/__init__.py": b"",
        "evil/client.py": EVIL.format(marker=marker).encode(),
    }
    return attacker.submit(files, "with-code")


# --- messages -------------------------------------------------------------------------------------------


def test_altered_replayed_oversized_and_pickled_messages_are_refused_and_nothing_runs(
    attacker: Attacker, line: Path
) -> None:
    draw, reserved = random.Random(0), attacker.n_reserved
    genuine = attacker.envelope(pack({}), kind="query", recipient="")
    assert attacker.send(line, [{"kind": "query", **carried(genuine)}]) == [{"keys": ["sealed"]}]
    before = len(attacker.place.refusals(SITE))
    train = attacker.envelope(pack({"config": {"round": 1}}))
    cases: list[tuple[str, dict[str, Any]]] = [("replay", {"kind": "query", **carried(genuine)})]
    while len(cases) < 13:
        other = altered(train, draw, [genuine])
        cases += [("altered", carried(other))] if other != train else []
    cases += [
        ("frame", {"bytes": {"config": {"round": "01"}}}),
        ("content", carried(attacker.envelope(pickle.dumps({"arrays": 1})))),
        ("frame", {"bytes": {}, **_pickled_array(carried(attacker.envelope(b"")))}),
        ("too_large", carried(attacker.envelope(bytes(2 * MAX_BYTES)))),
    ]
    answers = attacker.send(line, [ask for _, ask in cases])
    assert all("error" in answer for answer in answers), answers
    lines = attacker.place.refusals(SITE)[before:]
    assert len(lines) == len(cases)
    for (reason, _), said in zip(cases, lines, strict=True):
        assert said["reason"] == reason or (reason == "altered" and said["reason"] in ALTERED), (reason, said)
    assert attacker.n_reserved == reserved


ALTERED = ("size", "signature", "header", "body", "replay", "phase", "frame")


def _pickled_array(ask: dict[str, Any]) -> dict[str, Any]:
    """A body that is an array of Python objects, as `np.load` would unpickle it."""
    from io import BytesIO

    buffer = BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    sealed = {name: data for name, data in ask["bytes"]["sealed"].items() if name != "body"}
    array = ["object", [1], "numpy.ndarray", buffer.getvalue().hex()]
    return {"bytes": {"sealed": sealed}, "arrays": {"body": {"body": array}}}


def test_a_bundle_with_code_is_refused_and_its_code_never_runs(attacker: Attacker, with_code: Path) -> None:
    before, reserved = len(attacker.place.refusals(SITE)), attacker.n_reserved
    (answer,) = attacker.send(with_code, [carried(attacker.envelope(pack({"config": {"round": 1}})))], n=0)
    assert "bundle" in answer["error"]
    assert [said["reason"] for said in attacker.place.refusals(SITE)[before:]] == ["bundle"]
    assert not (attacker.folder / "marker").exists()
    assert attacker.n_reserved == reserved


def test_a_study_that_the_site_has_not_approved_is_refused_whatever_the_coordinator_says(
    attacker: Attacker, line: Path, unapproved: Study
) -> None:
    digest, reserved = unapproved.digest(), attacker.n_reserved
    with pytest.raises(SottovoceError, match="missing: site-1"):
        attacker.place.begin(unapproved, "unapproved")
    before = len(attacker.place.refusals(SITE))
    train = attacker.envelope(pack({"config": {"round": 1}}), run=digest)
    (answer,) = attacker.send(line, [carried(train)])
    assert "(study)" in answer["error"]
    (said,) = attacker.place.refusals(SITE)[before:]
    assert (said["reason"], said["header"]["run"]) == ("study", digest)
    assert attacker.n_reserved == reserved


# --- who may take part ----------------------------------------------------------------------------------


def test_a_certificate_of_another_authority_reaches_nothing(attacker: Attacker, tmp_path: Path) -> None:
    place = attacker.place
    other = Authority.create(tmp_path, name="another")
    leaf = other.issue(new_request(tmp_path / "site.key"), name=SITE, role="site", hours=1)
    pinned = (place.home.pki / "ca.crt").read_text()
    with (
        Connection(
            place.home.consortium_address,
            authority=pinned,
            certificate=leaf,
            key=(tmp_path / "site.key").read_text(),
            patience_seconds=1,
        ) as connection,
        pytest.raises(SottovoceError, match="refuses this certificate"),
    ):
        connection.call("ListOffers", METHODS["ListOffers"].request())
    assert attacker.events("refused") == []  # it did not get as far as a request


def test_a_node_key_that_nobody_registered_is_refused(attacker: Attacker, tmp_path: Path) -> None:
    hospital = attacker.place.hospitals[OTHER]
    kept = (hospital.tls / "node.key").read_bytes()
    (hospital.tls / "node.key").unlink()
    try:
        new_node_key(hospital.tls / "node.key")
        with pytest.raises(SottovoceError, match="node"):
            connect(hospital)
        assert "/v1/fleet/activate-node][ApiError" in (attacker.place.home.run / "superlink.log").read_text()
    finally:
        write_whole(hospital.tls / "node.key", kept, mode=0o600)


def test_a_request_with_a_field_that_the_schema_has_not_is_refused_and_logged(attacker: Attacker) -> None:
    hospital = attacker.place.hospitals[OTHER]
    pair = TlsFolder(hospital.tls).current()
    assert pair is not None
    pinned = (attacker.place.home.pki / "ca.crt").read_bytes()
    credentials = grpc.ssl_channel_credentials(pinned, pair.key.encode(), pair.certificate.encode())
    data = METHODS["ListOffers"].request().SerializeToString() + b"\xf8\x7f\x01"  # field 2047, a number
    with (
        grpc.secure_channel(
            attacker.place.home.consortium_address, credentials, [("grpc.enable_http_proxy", 0)]
        ) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.unary_unary(METHODS["ListOffers"].path)(data, timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    (said,) = [one for one in attacker.events("refused") if one["code"] == "INVALID_ARGUMENT"]
    assert (said["who"], said["call"]) == (OTHER, "ListOffers")


def test_an_invitation_is_used_once_and_in_its_time(attacker: Attacker, tmp_path: Path) -> None:
    used = attacker.place.made.root / f"{SITE}.invitation"
    with pytest.raises(SottovoceError, match="used"):
        set_up(tmp_path / "thief", site=SITE, invitation=used, data={})
    (said,) = [one for one in attacker.events("refused") if one["call"] == "Enrol"]
    assert said["who"] == SITE
    short = tmp_path / "short.invitation"
    write_whole(short, invitation(attacker.place.home, "late", hours=0.5 / 3600).encode())
    time.sleep(1.1)
    with pytest.raises(SottovoceError, match="over"):
        set_up(tmp_path / "late", site="late", invitation=short, data={})
    with Registry.open(attacker.place.home.registry) as registry:
        assert registry.member("late") is None


@needs_front
def test_a_hospital_s_certificate_reaches_no_control_route_through_the_front(attacker: Attacker) -> None:
    tls = attacker.place.hospitals[OTHER].tls
    routes = ["/v1/control/start-run", "/v1/runtime/pull", "/flwr.proto.Control/StartRun"]
    with through_the_front(attacker, tls / "site.crt", tls / "site.key") as client:
        assert [client.post(route, content=b"").status_code for route in routes] == [403] * 3
    log = (attacker.place.home.run / "front" / "error.log").read_text()
    assert all(
        f'forbidden by rule, client: 127.0.0.1, server: , request: "POST {route} ' in log for route in routes
    )


@needs_front
def test_a_certificate_of_another_authority_is_refused_and_logged_by_the_front(
    attacker: Attacker, tmp_path: Path
) -> None:
    other, key = Authority.create(tmp_path, name="another"), tmp_path / "site.key"
    (tmp_path / "site.crt").write_text(other.issue(new_request(key), name=SITE, role="site", hours=1))
    with through_the_front(attacker, tmp_path / "site.crt", key) as client:
        assert client.post("/v1/fleet/activate-node", content=b"").status_code == 400
    log = attacker.place.home.run / "front" / "access.log"

    def is_logged() -> bool:  # nginx writes the line after the answer
        return any(
            json.loads(line)["certificate"].startswith("FAILED") for line in log.read_text().splitlines()
        )

    wait_for(is_logged, "a line of the front's log", 60)


def through_the_front(attacker: Attacker, certificate: Path, key: Path) -> httpx.Client:
    context = ssl.create_default_context(cafile=str(attacker.place.home.pki / "ca.crt"))
    context.load_cert_chain(certificate, key)
    return httpx.Client(
        verify=context, base_url=f"https://{attacker.place.home.fleet_address}", trust_env=False
    )


def test_who_is_revoked_is_refused_at_the_next_request_on_both_lines(attacker: Attacker) -> None:
    place = attacker.place
    hospital = place.hospitals[OTHER]
    connect(hospital).close()
    with ConsortiumClient(hospital, patience_seconds=1) as client:
        client.offers()
        with Registry.open(place.home.registry) as registry:
            registry.revoke(OTHER, person="Ada Example", reason="a test")
        with pytest.raises(SottovoceError, match="revoked"):
            client.offers()
    until(lambda: OTHER not in place.nodes, what="the end of its node")
    with pytest.raises(SottovoceError):
        connect(hospital)
    assert [one["who"] for one in attacker.events("refused")][-1] == OTHER
    assert attacker.events("revoked")


def test_after_all_of_it_the_approved_study_runs_and_its_ledger_is_whole(attacker: Attacker) -> None:
    place = attacker.place
    state = place.wait(place.begin(attacker.study, "honest"), seconds=300)
    assert (state.state, state.reason) == ("done", "")
    with SiteLedger.open(place.hospitals[SITE].ledger) as ledger:
        assert all(not one.open for one in ledger.budget.state.releases.values())
    assert attacker.n_reserved == 2  # an update and counts, once
