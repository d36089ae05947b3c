"""The front: real nginx, a real SuperLink behind it, a stock SuperNode and hostile clients before it."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from flwr.common import constant
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore import constant as supercore
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.superlink.routers.fleet.router import router

import sottovoce.server.front as front_module
from sottovoce.common.errors import DeploymentError
from sottovoce.common.pki import Authority, Role, new_node_key, peer_of
from sottovoce.common.processes import environment
from sottovoce.server.front import HEADERS, ROUTES, Front, configuration
from sottovoce.server.home import CoordinatorHome, ServerSettings
from sottovoce.server.superlink import SuperLink
from tests.fakes.fronts import (
    NGINX,
    WAIT_SECONDS,
    Place,
    answer_once,
    asked,
    fleet,
    free_ports,
    fronted,
    lines,
    listens,
    place,
    running,
    site_proxy,
    supernode,
    until,
)

ROOT = Path(__file__).parents[2]
PULL = "/v1/fleet/pull-messages"

# Counted here, so that a run without nginx says how much it did not show.
_TESTS = Path(__file__).read_text().count("\n@needs_nginx\n")
needs_nginx = pytest.mark.skipif(
    NGINX is None,
    reason=f"nginx is not here (Debian: nginx-light): {_TESTS} claims about the front are not shown",
)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, Front, SuperLink]]:
    at = place(tmp_path_factory.mktemp("front"))
    superlink = SuperLink(at.home).start()
    try:
        with fronted(at) as front:
            yield at, front, superlink
    finally:
        superlink.control.close()
        superlink.stop()


@pytest.fixture(scope="module")
def at(federation: tuple[Place, Front, SuperLink]) -> Place:
    return federation[0]


@pytest.fixture(scope="module")
def front(federation: tuple[Place, Front, SuperLink]) -> Front:
    return federation[1]


@pytest.fixture(scope="module")
def superlink(federation: tuple[Place, Front, SuperLink]) -> SuperLink:
    return federation[2]


@pytest.fixture(scope="module")
def hospital(at: Place) -> Iterator[httpx.Client]:
    with at.client(at.certify("hospital-a", "site")) as client:
        yield client


def test_routes_and_headers_are_those_of_the_pinned_flower() -> None:
    fleet = {route.path.rpartition("/")[2] for route in router.routes}  # type: ignore[attr-defined]
    assert set(ROUTES) | {"register-node", "unregister-node"} == fleet
    assert set(HEADERS) == {
        supercore.FLEET_HTTP_PUBLIC_KEY_HEADER,
        supercore.FLEET_HTTP_SIGNATURE_HEADER,
        constant.TIMESTAMP_HEADER,
        supercore.FLWR_PACKAGE_NAME_METADATA_KEY,
        supercore.FLWR_PACKAGE_VERSION_METADATA_KEY,
        supercore.FLWR_COMPONENT_NAME_METADATA_KEY,
    }


@needs_nginx
def test_a_hospital_reaches_every_route_that_its_node_needs(front: Front, hospital: httpx.Client) -> None:
    for route in ROUTES:
        status, line = asked(front, hospital, f"/v1/fleet/{route}")
        assert (status, line["superlink"]) == (401, "401")  # the SuperLink's own word: no node's signature


ELSEWHERE = [
    "/v1/control/start-run",
    "/v1/control/register-node",
    "/v1/control/list-runs",
    "/v1/control/stop-run",
    "/v1/runtime/acquire-task",
    "/v1/runtime/pull-messages",
    "/v1/runtime/responses",
    "/v1/fleet/register-node",
    "/v1/fleet/unregister-node",
    "/v1/fleet/",
    "/v1/fleet/pull-messages/",
    "/v1/fleet/pull-messages?run=1",
    "/v1/fleet/%2e%2e/control/start-run",
    "/v1/fleet/pull-messages/..%2f..%2fcontrol/start-run",
    "/v1/fleet/..;/control/start-run",
    "/V1/FLEET/PULL-MESSAGES",
    "/docs",
    "/openapi.json",
    "/health",
    "/refused",
    "/",
]


@needs_nginx
def test_a_hospital_reaches_nothing_else(front: Front, hospital: httpx.Client) -> None:
    for path in ELSEWHERE:
        status, line = asked(front, hospital, path)
        assert status in {403, 404}, path
        assert (line["superlink"], line["path"]) == ("", path.partition("?")[0])


@needs_nginx
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"])
def test_nothing_but_post_enters(front: Front, hospital: httpx.Client, method: str) -> None:
    status, line = asked(front, hospital, PULL, method=method)
    assert status in {400, 403, 405}
    assert line["superlink"] == ""


@needs_nginx
def test_nobody_enters_without_a_certificate_of_the_consortium(
    at: Place, front: Front, tmp_path: Path
) -> None:
    strangers = Authority.create(tmp_path / "others", name="Consortium")  # the same name, another key
    for files, why in ((None, "NONE"), (at.certify("hospital-a", "site", by=strangers), "FAILED:")):
        with at.client(files) as client:
            for path in (PULL, "/v1/control/list-runs", "/docs"):
                status, line = asked(front, client, path)
                assert (status, line["superlink"], line["certificate"][: len(why)]) == (400, "", why)


@needs_nginx
@pytest.mark.parametrize("role", ["auditor", "admin", "coordinator", "invitation"])
@pytest.mark.parametrize("name", ["person", "x,OU=site", "OU=site", "x,OU=site,CN=y", 'x\\,OU=site+CN="y"'])
def test_only_a_site_enters_whatever_it_is_called(at: Place, front: Front, role: Role, name: str) -> None:
    with at.client(at.certify(name, role)) as client:
        status, line = asked(front, client, PULL)
    assert (status, line["certificate"], line["superlink"]) == (403, "SUCCESS", "")


@needs_nginx
@pytest.mark.parametrize(
    "name", ["hospital, of Saint Mary", "Clínica Ñandú", 'the "old" + new=site', "a\\b", "x,OU=admin"]
)
def test_a_site_enters_whatever_it_is_called(at: Place, name: str) -> None:
    with at.client(at.certify(name, "site")) as client:
        assert client.post(PULL).status_code == 401


@needs_nginx
def test_a_servers_certificate_asks_for_nothing(at: Place) -> None:
    with at.client((at.home.pki / "server.crt", at.home.pki / "server.key")) as client:
        assert client.post(PULL).status_code == 400


@needs_nginx
def test_a_revoked_certificate_is_refused_at_the_next_request(at: Place, front: Front) -> None:
    leaf, key = at.certify("hospital-r", "site")
    with at.client((leaf, key)) as before, at.client(at.certify("hospital-s", "site")) as other:
        assert before.post(PULL).status_code == 401
        at.revoke(peer_of(leaf.read_text()).serial)
        front.reload()
        try:
            status, line = asked(front, before, PULL)  # also by the connection that was open
            assert (status, line["certificate"]) == (400, "FAILED:certificate revoked")
            assert other.post(PULL).status_code == 401
        finally:
            at.revoke()
            front.reload()


@needs_nginx
def test_an_oversized_body_is_refused_before_the_superlink_has_it(
    at: Place, front: Front, hospital: httpx.Client
) -> None:
    most = at.home.settings.max_message_bytes
    assert hospital.post(PULL, content=b"x" * most).status_code == 401
    in_pieces = (b"x" * 10_000 for _ in range(most // 10_000 + 2))
    for body in (b"x" * (most + 1), in_pieces):
        with at.client(at.certify("hospital-b", "site")) as client:
            assert client.post(PULL, content=body).status_code == 413


@needs_nginx
def test_a_site_cannot_hold_all_connections(at: Place) -> None:
    context = at.trusting()
    context.load_cert_chain(*at.certify("greedy", "site"))
    question = f"POST {PULL} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n".encode()
    address = ("127.0.0.1", at.home.settings.front_port)
    with ExitStack() as held:
        for _ in range(front_module.CONNECTIONS_PER_SITE):
            line = context.wrap_socket(socket.create_connection(address), server_hostname="localhost")
            held.enter_context(line).sendall(question)
        with (
            at.client(at.certify("greedy", "site")) as again,
            at.client(at.certify("modest", "site")) as other,
        ):
            # Flower's nodes wait and try again after a 503. nginx counts a line once it has read its question.
            until(lambda: again.post(PULL).status_code == 503, "all lines to be counted")
            assert other.post(PULL).status_code == 401


@needs_nginx
def test_bodies_headers_and_queries_are_in_no_file(front: Front, hospital: httpx.Client) -> None:
    secret = "planted-canary"
    hospital.post(PULL, content=secret.encode() * 5000, headers={"x-note": secret, "user-agent": secret})
    hospital.post(f"/v1/control/start-run?{secret}", content=secret.encode() * 100)
    _, line = asked(front, hospital, PULL, headers={"flwr-signature": secret})
    assert line["superlink"] == "401"
    logged = [path for path in front.folder.rglob("*") if path.is_file() and path.name != "error.log"]
    assert not [path for path in logged if secret.encode() in path.read_bytes()]
    assert secret * 2 not in (front.folder / "error.log").read_text()


@needs_nginx
def test_a_reload_under_a_stream_of_requests_fails_none(
    at: Place, front: Front, superlink: SuperLink, tmp_path: Path
) -> None:
    """With new connections each time, and with kept ones by Flower's own connection code, as nodes have them."""
    files, over, answered = at.certify("hospital-a", "site"), threading.Event(), list[int]()
    node = Node(node_id=superlink.control.register(new_node_key(tmp_path / "node.key")))

    def anew() -> None:
        while not over.is_set():
            with at.client(files) as client:
                answered.append(client.post(PULL).status_code)

    def kept() -> None:
        retry = make_simple_http_retry_invoker()
        with fleet(at, files, tmp_path / "node.key") as client:
            while not over.is_set():
                retry.invoke(
                    client.SendNodeHeartbeat, SendNodeHeartbeatRequest(node=node, heartbeat_interval=30)
                )
                answered.append(401)

    before = ssl.get_server_certificate(("127.0.0.1", at.home.settings.front_port))
    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(stream) for stream in (anew, anew, kept, kept)]
        try:
            for n in range(4):
                at.serve()
                front.reload()
                until(lambda: len(answered) > 12 * (n + 1), "requests between two reloads")  # noqa: B023
        finally:
            over.set()
        for stream in streams:
            stream.result()
    assert set(answered) == {401}
    assert len(answered) > 40
    assert ssl.get_server_certificate(("127.0.0.1", at.home.settings.front_port)) != before


@needs_nginx
def test_a_list_that_cannot_be_read_changes_nothing(at: Place, front: Front, hospital: httpx.Client) -> None:
    whole = (at.home.pki / "crl.pem").read_bytes()
    (at.home.pki / "crl.pem").write_bytes(whole[:200])
    try:
        with pytest.raises(DeploymentError, match=r"crl\.pem"):
            front.reload()
    finally:
        (at.home.pki / "crl.pem").write_bytes(whole)
    assert hospital.post(PULL).status_code == 401


@needs_nginx
def test_a_node_that_merely_asks_does_not_fill_the_log(
    at: Place, superlink: SuperLink, front: Front, tmp_path: Path
) -> None:
    node_id = superlink.control.register(new_node_key(tmp_path / "node.key"))
    before = len(lines(front))
    with fleet(at, at.certify("patient", "site"), tmp_path / "node.key") as client:
        for _ in range(20):
            client.SendNodeHeartbeat(
                SendNodeHeartbeatRequest(node=Node(node_id=node_id), heartbeat_interval=30)
            )
        client._client.post(f"{at.url}/docs")
    until(lambda: len(lines(front)) >= before + 2, "the lines")
    assert [line["path"] for line in lines(front)[before:]] == ["/v1/fleet/send-node-heartbeat", "/docs"]


@needs_nginx
def test_a_log_that_has_grown_is_put_aside(
    front: Front, hospital: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital.post(PULL)
    monkeypatch.setattr(front_module, "MAX_LOG_BYTES", 100)
    front.tidy()
    assert (front.folder / "access.log.1").exists()
    asked(front, hospital, PULL)
    assert len(lines(front)) == 1


@needs_nginx
def test_a_stock_supernode_takes_part_through_the_proxy_at_its_site(
    at: Place, front: Front, superlink: SuperLink, tmp_path: Path
) -> None:
    superlink.control.register(new_node_key(tmp_path / "node.key"))
    (port,) = free_ports(1)
    with ExitStack() as processes:
        processes.enter_context(running(site_proxy(at, tmp_path, port), tmp_path / "proxy.txt"))
        until(lambda: listens(port), "the proxy")
        context = ssl.create_default_context(cafile=str(tmp_path / "tls" / "loopback.crt"))
        with httpx.Client(verify=context, trust_env=False) as client:
            assert client.post(f"https://127.0.0.1:{port}/v1/control/list-runs").status_code == 403
        processes.enter_context(running(supernode(tmp_path, port), tmp_path / "node.txt"))

        def seen(route: str) -> bool:
            passed = [
                line["path"]
                for line in lines(front)
                if "CN=stock" in line["subject"] and line["status"] == 200
            ]
            return f"/v1/fleet/{route}" in passed

        until(lambda: seen("activate-node"), "the SuperNode to come")
        front.reload()  # of a kept connection answered questions are not logged; this one begins anew
        until(lambda: seen("pull-messages"), "the SuperNode to ask for messages")


@needs_nginx
def test_the_superlink_is_known_by_its_certificate(tmp_path: Path) -> None:
    at = place(tmp_path)
    other = place(tmp_path / "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(other.home.pki / "server.crt", other.home.pki / "server.key")
    with socket.create_server(("127.0.0.1", at.home.settings.fleet_port)) as listener, fronted(at):
        fake = threading.Thread(target=lambda: answer_once(context, listener), daemon=True)
        fake.start()
        with at.client(at.certify("hospital-a", "site")) as client:
            assert client.post(PULL).status_code == 502
    fake.join(WAIT_SECONDS)


@needs_nginx
def test_nginx_ends_with_the_coordinator_and_a_new_one_ends_what_was_left(tmp_path: Path) -> None:
    at = place(tmp_path)
    code = (
        "import sys, time; from pathlib import Path; from sottovoce.server.home import CoordinatorHome; "
        "from sottovoce.server.front import Front; front = Front(CoordinatorHome.open(Path(sys.argv[1]))).start(); "
        "print(front.process_id, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(at.home.folder)]
    paths = environment(PYTHONPATH=str(ROOT / "src"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=paths, text=True) as coordinator:
        assert coordinator.stdout is not None
        master = int(coordinator.stdout.readline())
        coordinator.kill()
    until(lambda: not Path(f"/proc/{master}").exists(), "nginx to end with its coordinator")
    until(lambda: not listens(at.home.settings.front_port), "its workers to end")

    with fronted(at) as front:
        workers = list(front_module._workers(front.process_id))
        os.kill(front.process_id, signal.SIGKILL)
        until(lambda: not front.is_alive, "nginx to be dead")
        assert listens(at.home.settings.front_port)  # workers without their first process go on
        with fronted(at) as second:
            assert second.is_alive
            assert not [worker for worker in workers if Path(f"/proc/{worker}/exe").exists()]


@needs_nginx
def test_what_is_missing_is_one_sentence(tmp_path: Path) -> None:
    at = place(tmp_path)
    with (
        socket.create_server(("127.0.0.1", at.home.settings.front_port)),
        pytest.raises(DeploymentError, match="Set another front_port"),
    ):
        Front(at.home).start()
    (at.home.pki / "crl.pem").unlink()
    with pytest.raises(DeploymentError, match=r"crl\.pem not there"):
        Front(at.home).start()
    with pytest.raises(DeploymentError, match="does not"):
        Front(at.home).reload()


def test_a_front_needs_a_port(tmp_path: Path) -> None:
    home = CoordinatorHome(
        tmp_path, ServerSettings(format=1, name="c", hosts=("a",), fleet_port=1, consortium_port=2)
    )
    with pytest.raises(DeploymentError, match="front_port is 0"):
        configuration(home)


def test_it_listens_to_the_outside_only_where_hospitals_come_from_there(tmp_path: Path) -> None:
    for number, (hosts, listen) in enumerate(
        {'"localhost"': "127.0.0.1:", '"192.0.2.1", "localhost"': "0.0.0.0:"}.items()
    ):
        assert f"listen {listen}" in configuration(place(tmp_path / str(number), hosts=hosts).home)


def test_a_folder_whose_name_would_be_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="sign in its name"):
        configuration(place(tmp_path / 'x";include $y').home)
