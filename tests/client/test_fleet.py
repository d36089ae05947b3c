"""Claims of the line to a coordinator, of the fleet protocol on it, and of the codeless bundle."""

import gzip
import io
import json
import random
import socket
import threading
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import make_message
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse, PullMessagesRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supernode.fleet_http_client import FleetHttpClient

from sottovoce.client import bundle, fleet, line
from sottovoce.client.line import CERTIFICATE, CERTIFICATE_KEY, Line
from sottovoce.client.trouble import CLOCK_TOLERANCE_SECONDS, of_transport, parts
from sottovoce.common.errors import DeploymentError, KeyFileError
from sottovoce.common.flower import adopt_task_identity
from sottovoce.common.inflating import inflated
from sottovoce.common.pki import Authority, new_node_key, new_request
from tests.fakes import superlinks
from tests.fakes.tls_servers import PROTOBUF, serving

APP = "sottovoce.client.hospital:app"


@dataclass
class Site:
    folder: Path
    authority: Authority

    @property
    def tls(self) -> Path:
        return self.folder / "tls"

    def line(self, address: str) -> Line:
        return Line(address, self.tls, stop=threading.Event())

    def call(self, address: str, *, seconds: float = 0.0) -> object:
        """Makes one request and returns the answer."""
        open_line = self.line(address)
        try:
            request = ActivateNodeRequest(public_key=open_line.public_key, heartbeat_interval=10)
            return open_line.call(FleetHttpClient.ActivateNode, request, until=time.monotonic() + seconds)
        finally:
            open_line.close()

    def certify(self, name: str = "site-a") -> None:
        (self.tls / CERTIFICATE_KEY).unlink(missing_ok=True)
        leaf = self.authority.issue(new_request(self.tls / CERTIFICATE_KEY), name=name, role="site", hours=1)
        (self.tls / CERTIFICATE).write_text(leaf)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(folder=tmp_path, authority=Authority.create(tmp_path / "pki", name="Consortium"))
    made.tls.mkdir()
    (made.tls / line.CA).write_text(made.authority.certificate_pem)
    new_node_key(made.tls / line.NODE_KEY)
    return made


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "other", name="Consortium")


def refused(site: Site, address: str) -> DeploymentError:
    with pytest.raises(DeploymentError) as caught:
        site.call(address)
    cause, mend = parts(caught.value)
    assert cause.startswith("Expected"), "an operator is told what was expected"
    assert len(mend) > 20, "and what to do"
    assert "\n" not in str(caught.value)
    return caught.value


# --- one sentence for each failure --------------------------------------------------------------------------


def test_an_answer_of_the_coordinator_comes_through(site: Site) -> None:
    body = ActivateNodeResponse(node_id=7).SerializeToString()
    with serving(site.folder, site.authority, body=body) as address:
        assert site.call(address) == ActivateNodeResponse(node_id=7)


def test_a_name_that_does_not_resolve_is_named_as_that(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)  # what a resolver says: no test asks a real one
    found = refused(site, "coordinator.invalid:443")
    assert found.reason == "name"
    assert "coordinator.invalid:443" in str(found)


def test_a_closed_port_is_named_as_that(site: Site) -> None:
    with socket.socket() as taken:  # and held, so that nobody else listens there meanwhile
        taken.bind(("127.0.0.1", 0))
        assert refused(site, f"127.0.0.1:{taken.getsockname()[1]}").reason == "refused"


def test_silence_is_named_as_that(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "TIMEOUT", 0.2)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        assert refused(site, f"127.0.0.1:{mute.getsockname()[1]}").reason == "timeout"


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"hosts": ("elsewhere.example",)}, "host_name"),
        ({"now": time.time() - 90_000, "hours": 1.0}, "expired"),
        ({"now": time.time() + 90_000, "hours": 1.0}, "clock"),
    ],
)
def test_a_certificate_that_does_not_hold_is_named_as_that(
    site: Site, how: dict[str, object], reason: str
) -> None:
    with serving(site.folder, site.authority, **how) as address:  # type: ignore[arg-type]
        assert refused(site, address).reason == reason


def test_a_certificate_of_another_authority_is_not_gone_on_with(site: Site, other: Authority) -> None:
    with serving(site.folder, other) as address:
        found = refused(site, address)
    assert found.reason == "authority"
    assert "Do not go on" in str(found)


def test_a_client_certificate_that_is_refused_is_named_as_that(site: Site, other: Authority) -> None:
    with serving(site.folder, site.authority, clients=other) as address:
        assert refused(site, address).reason == "client_certificate", "none was shown"
        site.certify()
        assert refused(site, address).reason == "client_certificate", "one of another authority was"
    with serving(site.folder, site.authority, clients=site.authority) as address:
        assert site.call(address) == ActivateNodeResponse()


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"status": 401}, "not_registered"),
        ({"status": 401, "date": "Sun, 06 Nov 1994 08:49:37 GMT"}, "clock"),
        ({"status": 412, "body": b'{"code": 2004, "detail": ""}'}, "not_registered"),
        ({"status": 403}, "front"),
        ({"status": 404, "body": b"<html>secret</html>"}, "front"),
        ({"status": 400, "body": b"No required SSL certificate was sent"}, "client_certificate"),
        ({"status": 413}, "too_large"),
        ({"status": 429}, "busy"),
        ({"status": 502}, "busy"),
        ({"status": 500, "body": b'{"detail": "secret"}'}, "server"),
        ({"status": 426, "body": b'{"code": 1001, "detail": "other"}'}, "version"),
        ({"status": 302, "headers": {"location": "https://elsewhere.example/"}}, "front"),
        ({"headers": {"content-type": "text/html"}, "body": b"<html>secret</html>"}, "answer"),
        ({"body": b"\xff\xff"}, "answer"),
        (
            {"headers": PROTOBUF | {"content-encoding": "gzip"}, "body": gzip.compress(bytes(10_000))},
            "answer",
        ),
    ],
)
def test_a_refusal_over_http_is_named_as_that(site: Site, how: dict[str, object], reason: str) -> None:
    with serving(site.folder, site.authority, **how) as address:  # type: ignore[arg-type]
        found = refused(site, address)
    assert found.reason == reason
    assert "secret" not in str(found), "nothing that a server wrote is repeated"


def test_the_end_of_a_run_is_no_trouble_of_the_site(site: Site) -> None:
    with (
        serving(site.folder, site.authority, status=403, body=b'{"code": 2007, "detail": ""}') as address,
        pytest.raises(DeploymentError) as caught,
    ):
        site.call(address)
    assert caught.value.reason == "run_over"


def test_whatever_breaks_a_connection_has_a_sentence() -> None:
    for error in (
        OSError(101, "x"),
        ConnectionResetError(),
        BrokenPipeError(),
        EOFError(),
        RuntimeError("secret"),
    ):
        assert "secret" not in str(of_transport(error, "a:1"))
        assert of_transport(error, "a:1").reason in {"network", "broken"}


def test_an_answer_without_end_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "MAX_RESPONSE_BYTES", 1000)
    with (
        serving(site.folder, site.authority, body=bytes(100_000)) as address,
        pytest.raises(DeploymentError) as caught,
    ):
        site.call(address)
    assert caught.value.reason == "too_large"


def test_no_proxy_of_the_environment_is_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(site.folder, site.authority) as address:
        site.call(address)


def test_what_may_pass_is_tried_again_until_its_time_is_over(site: Site) -> None:
    with serving(site.folder, site.authority, fail_first=2) as address:
        site.call(address, seconds=120.0)
    with serving(site.folder, site.authority, fail_first=1000) as address:
        began = time.monotonic()
        with pytest.raises(DeploymentError, match="answered 503"):
            site.call(address, seconds=0.5)
        assert time.monotonic() - began < 60.0, "it is over, not tried a thousand times"


def test_a_renewed_certificate_is_shown_from_the_next_request_on(site: Site, other: Authority) -> None:
    site.certify()
    with serving(site.folder, site.authority, clients=site.authority) as address:
        open_line = site.line(address)
        request = PullMessagesRequest()
        open_line.call(FleetHttpClient.PullMessages, request)
        before = open_line._client()
        (site.tls / CERTIFICATE_KEY).unlink()  # a renewal writes one after the other
        leaf = site.authority.issue(
            new_request(site.tls / CERTIFICATE_KEY), name="site-a", role="site", hours=1
        )
        open_line.call(FleetHttpClient.PullMessages, request)
        assert open_line._client() is before, "key and certificate do not belong together yet"
        (site.tls / CERTIFICATE).write_text(leaf)
        open_line.call(FleetHttpClient.PullMessages, request)
        assert open_line._client() is not before
        open_line.close()


def test_files_that_cannot_be_used_are_named(site: Site) -> None:
    site.certify()
    (site.tls / CERTIFICATE_KEY).unlink()
    new_request(site.tls / CERTIFICATE_KEY)
    assert_trouble(lambda: site.line("a:1"), "own_certificate")
    (site.tls / line.CA).write_text("no certificate")
    assert_trouble(lambda: site.line("a:1"), "ca_file")
    (site.tls / line.NODE_KEY).write_text("no key")
    with pytest.raises(KeyFileError, match="P-384"):
        site.line("a:1")


def assert_trouble(call: Callable[[], object], reason: str) -> None:
    with pytest.raises(DeploymentError) as caught:
        call()
    assert caught.value.reason == reason


def test_the_clock_is_compared_with_every_answer(site: Site) -> None:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 600))
    with serving(site.folder, site.authority, date=date) as address:
        open_line = site.line(address)
        open_line.call(FleetHttpClient.PullMessages, PullMessagesRequest())
        assert open_line.clock_off == pytest.approx(600, abs=10)
        assert CLOCK_TOLERANCE_SECONDS < 600
        open_line.close()


# --- the bundle ---------------------------------------------------------------------------------------------

PYPROJECT = f'[tool.flwr.app.components]\nserverapp = "a:b"\nclientapp = "{APP}"\n'.encode()


def zipped(files: list[tuple[str, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return buffer.getvalue()


def check(content: bytes) -> None:
    bundle.check(content, sha256=sha256(content).hexdigest(), app=APP)


def test_the_bundle_that_flower_builds_of_one_file_is_taken() -> None:
    text = superlinks.PYPROJECT.format(app=APP).encode()
    check(superlinks.fab_of({"pyproject.toml": text}))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "files",
    [
        [("client_app.py", b"import os")],
        [("lib.so", b"\x7fELF")],
        [("a.pyc", b"")],
        [("site.pth", b"import os")],
        [("run.sh", b"#!/bin/sh")],
        [("../README.md", b"")],
        [("/README.md", b"")],
        [(".info/../../x", b"")],
        [("README.md", b"1"), ("README.md", b"2")],
        [("readme.md", b"")],
        [("LICENSE/", b"")],
        [("LICENSE", bytes(100_000))],
        [("LICENSE", b"\xff\xfe")],
    ],
)
def test_a_bundle_with_anything_else_is_refused(files: list[tuple[str, bytes]]) -> None:
    with pytest.raises(DeploymentError, match="Refused the run's bundle"):
        check(zipped([("pyproject.toml", PYPROJECT), *files]))
    check(zipped([("pyproject.toml", PYPROJECT)]))  # it is that file that was refused


def test_a_name_that_goes_on_behind_a_zero_byte_is_refused() -> None:
    content = zipped([("pyproject.toml", PYPROJECT), ("README.md?.py", b"import os")])
    with pytest.raises(DeploymentError, match="other file"):
        check(content.replace(b"README.md?.py", b"README.md\0.py"))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[tool",
        PYPROJECT.replace(b"hospital", b"app"),
        b"tool = 1",
        b"[tool.flwr.app.components]",
        b"\xff",
    ],
)
def test_a_bundle_that_names_another_app_is_refused(text: bytes) -> None:
    with pytest.raises(DeploymentError, match="Refused the run's bundle"):
        check(zipped([("pyproject.toml", text)]))


def test_a_bundle_that_is_not_the_runs_or_none_is_refused() -> None:
    good = zipped([("pyproject.toml", PYPROJECT)])
    with pytest.raises(DeploymentError, match="whose digest"):
        bundle.check(good, sha256="0" * 64, app=APP)
    encrypted = bytearray(good)
    encrypted[good.index(b"PK\x01\x02") + 8] |= 1
    for content in (b"", b"PK", good[:-10], bytes(70_000), bytes(encrypted), b"x" * 100):
        with pytest.raises(DeploymentError, match="Refused the run's bundle"):
            check(content)


def test_a_bundle_that_lies_about_its_sizes_is_refused() -> None:
    content = bytearray(zipped([("pyproject.toml", PYPROJECT), ("LICENSE", bytes(5_000_000))]))
    assert len(content) < bundle.MAX_BUNDLE_BYTES, "it must be a bomb"
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = content.rindex(mark) + offset
        content[start : start + 4] = (100).to_bytes(4, "little")
    with pytest.raises(DeploymentError, match="Refused the run's bundle"):
        check(bytes(content))


def test_no_bytes_make_the_check_fail_otherwise() -> None:
    draw, good = random.Random(5), zipped([("pyproject.toml", PYPROJECT), ("LICENSE", b"free")])
    for _ in range(2000):
        content = bytearray(good)
        for _ in range(draw.randint(1, 8)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        with suppress(DeploymentError):
            check(bytes(content))


# --- messages out of objects --------------------------------------------------------------------------------


def message_and_objects(record: RecordDict) -> tuple[Message, dict[str, bytes]]:
    adopt_task_identity()
    message = Message(record, 7, "train", ttl=60)
    objects = {key: value.deflate() for key, value in get_all_nested_objects(message).items()}
    message.metadata.__dict__["_message_id"] = message.object_id
    return make_message(metadata=message.metadata, content=RecordDict()), objects


def echo() -> RecordDict:
    import numpy as np

    arrays = ArrayRecord([np.arange(1000, dtype=np.float32), np.zeros(2000, dtype=np.float32)])
    return RecordDict({"arrays": arrays, "config": ConfigRecord({"body": b"abc"})})


def test_a_message_comes_out_of_its_objects_as_it_went_in() -> None:
    envelope, objects = message_and_objects(echo())
    found = inflated(envelope, dict(objects), max_bytes=100_000)
    content: Any = found.content
    assert content["config"]["body"] == b"abc"
    assert content["arrays"]["0"].numpy().sum() == 499_500
    assert found.metadata.message_id == envelope.metadata.message_id


def test_an_object_with_one_bit_changed_is_refused() -> None:
    envelope, objects = message_and_objects(echo())
    for key, content in objects.items():
        changed = bytes([content[0] ^ 1]) + content[1:]
        with pytest.raises(DeploymentError, match="Refused a message"):
            inflated(envelope, {**objects, key: changed}, max_bytes=100_000)


def test_an_object_that_is_missing_is_refused() -> None:
    envelope, objects = message_and_objects(echo())
    for key in objects:
        with pytest.raises(DeploymentError, match="Refused a message"):
            inflated(envelope, {k: v for k, v in objects.items() if k != key}, max_bytes=100_000)


def test_an_array_that_names_one_piece_a_million_times_is_refused_before_it_is_made() -> None:
    envelope, objects = message_and_objects(echo())
    bomb, name = dict[str, bytes](), dict[str, str]()
    for (
        key,
        content,
    ) in objects.items():  # children come before their parents: rename what changed on the way up
        for old, new in name.items():
            content = content.replace(old.encode(), new.encode())
        if content.startswith(b"Array ") and b"[0]" in content:
            head, _, body = content.partition(b"\0")
            body = body.replace(b'"arraychunk_ids": [0]', b'"arraychunk_ids": [' + b"0," * 999_999 + b"0]")
            content = head.rpartition(b" ")[0] + b" " + str(len(body)).encode() + b"\0" + body
        name[key] = sha256(content).hexdigest()
        bomb[name[key]] = content
    assert set(bomb) != set(objects), "it must be a bomb"
    envelope.metadata.__dict__["_message_id"] = name[envelope.metadata.message_id]
    with pytest.raises(DeploymentError, match=r"more than 100000 bytes"):
        inflated(envelope, bomb, max_bytes=100_000)


def test_metadata_beside_the_objects_cannot_differ_from_theirs() -> None:
    for field, value in (("_run_id", 9), ("_message_type", "evaluate"), ("_ttl", 1e9), ("_dst_node_id", 8)):
        envelope, objects = message_and_objects(echo())
        envelope.metadata.__dict__[field] = value
        with pytest.raises(DeploymentError, match="another message"):
            inflated(envelope, dict(objects), max_bytes=100_000)


# --- at a real SuperLink ------------------------------------------------------------------------------------


@pytest.fixture
def hospital_name() -> str:
    return f"site-{random.randrange(10**9)}"


def test_a_node_that_was_online_when_its_agent_was_killed_is_taken_over(
    superlink: superlinks.Superlink, hospital_name: str
) -> None:
    hospital = superlink.hospital(hospital_name)
    first = fleet.connect(hospital)
    first.close()  # no word of farewell: it counts as online
    assert_trouble(lambda: fleet.connect(hospital), "online")
    with fleet.connect(hospital, node_id=first.node_id) as second:
        assert second.node_id == first.node_id == superlink.nodes[hospital_name]
        assert second.receive() is None
        second.leave()
    with fleet.connect(hospital) as third:
        third.leave()


def test_a_site_that_is_not_registered_or_is_not_any_more_is_told_so(
    superlink: superlinks.Superlink, hospital_name: str
) -> None:
    hospital = superlink.hospital(hospital_name, registered=False)
    assert_trouble(lambda: fleet.connect(hospital), "not_registered")
    node = superlink.register(hospital_name)
    with fleet.connect(hospital) as open_fleet:
        assert open_fleet.is_registered()
        superlink.control.unregister(node)
        assert_trouble(open_fleet.receive, "not_registered")
        assert_trouble(open_fleet.heartbeat, "not_registered")
        assert not open_fleet.is_registered()


def test_a_message_larger_than_the_hospital_allows_is_refused_while_it_comes(
    superlink: superlinks.Superlink, hospital_name: str
) -> None:
    hospital = superlink.hospital(hospital_name, settings="max_message_bytes = 100_000\n")
    run = superlink.echo()
    with fleet.connect(hospital) as open_fleet:
        asked = run.start(open_fleet.node_id, floats=50_000, patience=0.0)
        delivery = superlinks.until(open_fleet.receive)
        with pytest.raises(DeploymentError, match="at most 100000 bytes"):
            open_fleet.pull(delivery, until=time.monotonic() + 60)
        open_fleet.leave()
    run.wait(asked)


def test_the_metadata_of_a_message_survives_a_journal() -> None:
    envelope, _ = message_and_objects(echo())
    fields = json.loads(json.dumps(fleet.fields_of(envelope)))
    assert fleet.fields_of(fleet.envelope_of(fields)) == fleet.fields_of(envelope)
    with pytest.raises(KeyError):
        fleet.envelope_of({})
