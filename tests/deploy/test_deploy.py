"""What deploy/ says is what there is: commands, flags, settings, ports, files; nothing runs as root or phones home."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml  # type: ignore[import-untyped] # its types are another package

from sottovoce.cli import app
from sottovoce.client.home import HospitalSettings
from sottovoce.common.settings import settings_from
from sottovoce.server.home import ServerSettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile.*"))
COMPOSE = sorted(DEPLOY.glob("docker-compose*.yml"))
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
TEXTS = [
    *DOCKERFILES,
    *COMPOSE,
    *UNITS,
    *MANIFESTS,
    *sorted((DEPLOY / "nginx").glob("*")),
    *sorted(DEPLOY.glob("*.toml")),
]
SCRIPTS = sorted(DEPLOY.rglob("*.sh"))

# What a tool is told, in a list or on a line: `sottovoce server init HOME --name X`, ["server", "start", "HOME"].
SPOKEN = re.compile(r"sottovoce ((?:server|client|ledger|study|key|policy|privacy|report)\b[^\n`|;#]*)")
ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b")
OUR_OWN = (
    "127.",
    "0.0.0.0",
    "192.0.2.",
    "198.51.100.",
    "203.0.113.",
)  # this machine, and addresses meant for examples


@cache
def command_line() -> click.Command:
    return typer.main.get_command(app)


def check_command(words: list[str]) -> None:
    """Holds words of a command against the command line itself: its subcommands and its options."""
    command: click.Command = command_line()
    rest = list(words)
    while isinstance(command, click.Group):
        assert rest, f"{words}: a command is missing"
        name = rest.pop(0)
        assert name in command.commands, f"sottovoce {' '.join(words)}: no command {name!r}"
        command = command.commands[name]
    options = {option: one for one in command.params if isinstance(one, click.Option) for option in one.opts}
    for word in rest:
        if word.startswith("--"):
            assert word.partition("=")[0] in options, f"sottovoce {' '.join(words)}: no option {word}"


def spoken(text: str) -> Iterator[list[str]]:
    """Yields the commands of ours that a text shows. A line ends in a backslash where it goes on."""
    joined = re.sub(r"\\\n[ #]*", " ", text)
    for found in SPOKEN.finditer(joined):
        said = found.group(1).rstrip(".,:)").replace("…", "")
        yield shlex.split(said) if said.count('"') % 2 == 0 and said.count("'") % 2 == 0 else said.split()


def listed(plain: Any) -> Iterator[list[str]]:
    """Yields the lists of words that a manifest hands to our program."""
    if isinstance(plain, dict):
        for value in plain.values():
            yield from listed(value)
    elif isinstance(plain, list):
        words = [str(one) for one in plain if isinstance(one, str)]
        if words[:1] == ["sottovoce"]:
            words = words[1:]
        if len(words) > 1 and words[0] in {"server", "client"}:
            yield words
        for value in plain:
            yield from listed(value)


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", [*TEXTS, *SCRIPTS], ids=lambda path: path.name)
def test_every_command_shown_is_one_of_ours(path: Path) -> None:
    for words in spoken(path.read_text()):
        check_command(words)


@pytest.mark.parametrize("path", [*COMPOSE, *MANIFESTS], ids=lambda path: path.name)
def test_every_command_of_a_manifest_is_one_of_ours(path: Path) -> None:
    found = [words for document in documents(path) for words in listed(document)]
    assert found, "a manifest that starts nothing proves nothing"
    for words in found:
        check_command(words)


def test_a_command_that_is_none_of_ours_is_noticed() -> None:
    for words in (["server", "begin", "HOME"], ["server", "start", "HOME", "--insecure"], ["client"]):
        with pytest.raises(AssertionError):
            check_command(words)


def test_the_examples_are_settings() -> None:
    server = settings_from(
        ServerSettings, (DEPLOY / "server.example.toml").read_text(), "server.example.toml"
    )
    hospital = settings_from(
        HospitalSettings, (DEPLOY / "hospital.example.toml").read_text(), "hospital.example.toml"
    )
    for settings, name in ((server, "server.example.toml"), (hospital, "hospital.example.toml")):
        said = tomllib.loads((DEPLOY / name).read_text())
        assert set(said) == set(type(settings).__dataclass_fields__), "an example shows every setting"
    assert hospital.features_key == "credential:features"
    assert server.front_port, "an example for hospitals has a front"


def test_ports_agree() -> None:
    """Those of the examples, the containers, the cluster and the proxies."""
    settings = settings_from(ServerSettings, (DEPLOY / "server.example.toml").read_text(), "example")
    front, consortium = settings.front_port, settings.consortium_port
    (compose,) = documents(DEPLOY / "docker-compose.yml")
    assert compose["services"]["coordinator"]["ports"] == [f"{front}:{front}", f"{consortium}:{consortium}"]
    assert f"('127.0.0.1', {consortium})" in compose["services"]["coordinator"]["healthcheck"]["test"][3]
    coordinator = documents(DEPLOY / "kubernetes" / "coordinator.yaml")
    (pod,) = [one["spec"]["template"]["spec"] for one in coordinator if one["kind"] == "StatefulSet"]
    assert {port["containerPort"] for port in pod["containers"][0]["ports"]} == {front, consortium}
    (service,) = [one["spec"] for one in coordinator if one["kind"] == "Service"]
    assert {port["port"] for port in service["ports"]} == {front, consortium}
    (policy,) = [one["spec"] for one in coordinator if one["kind"] == "NetworkPolicy"]
    assert {port["port"] for port in policy["ingress"][0]["ports"]} == {front, consortium}
    (policy,) = [
        one["spec"]
        for one in documents(DEPLOY / "kubernetes" / "hospital.yaml")
        if one["kind"] == "NetworkPolicy"
    ]
    assert {port["port"] for port in policy["egress"][0]["ports"]} == {front, consortium}
    exposed = re.search(r"^EXPOSE (.*)$", (DEPLOY / "Dockerfile.coordinator").read_text(), re.M)
    assert exposed is not None
    assert {int(port) for port in exposed.group(1).split()} == {front, consortium}
    for path in (*COMPOSE, *UNITS, *MANIFESTS):
        for port in re.findall(r"--front-port (\d+)", path.read_text()):
            assert int(port) == front, path
    assert f"coordinator.example.org:{front}" in (DEPLOY / "nginx" / "site-proxy.conf").read_text()


def test_nothing_names_a_machine_that_is_not_ours_to_name() -> None:
    for path in (*TEXTS, *SCRIPTS):
        text = path.read_text()
        for address in ADDRESS.findall(text):
            assert address.startswith(OUR_OWN), f"{path.name} names {address}"
        hosts = set(re.findall(r"\b(?:[a-z0-9-]+\.)+(?:com|org|net|io|dev|ai|eu)\b", text))
        standard = {
            "coordinator.example.org",
            "pod-security.kubernetes.io",
            "networking.k8s.io",
            "kubernetes.io",
        }
        assert hosts <= standard, f"{path.name} names {hosts - standard}"
        assert "http://" not in text, path
        assert "https://" not in text.replace("https://coordinator", ""), path


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_is_pinned_and_unprivileged(path: Path) -> None:
    lines = re.sub(r"\\\n", " ", path.read_text()).splitlines()
    said = [(line.split()[0], line.split(None, 1)[1]) for line in lines if line and not line.startswith("#")]
    assert {what.split()[0] for how, what in said if how == "FROM"} == {"${BASE}@${DIGEST}"}
    assert not [
        what for how, what in said if how == "ADD" or "latest" in what or "curl " in what or "wget " in what
    ]
    assert all("--constraint constraints.txt" in what for how, what in said if "pip install" in what)
    users = [what for how, what in said if how == "USER"]
    assert users == ["10001:10001"]
    last_user = max(number for number, (how, _) in enumerate(said) if how == "USER")
    assert not [what for how, what in said[last_user:] if how == "RUN"]
    for how, what in said:
        if how in {"ENTRYPOINT", "CMD"}:
            assert isinstance(json.loads(what), list), "no shell between the engine and us"
    entry, command = (
        json.loads(next(what for how, what in said if how == one)) for one in ("ENTRYPOINT", "CMD")
    )
    assert entry == ["sottovoce"]
    check_command(command)


def test_the_images_sources_make_a_wheel_with_every_part(tmp_path: Path) -> None:
    """What a Dockerfile copies is enough to build, and no more than the repository tracks."""
    for path in DOCKERFILES:
        copied = re.findall(r"^COPY (?!--from)(.*) (\S+)$", path.read_text(), re.M)
        names = [name for sources, _ in copied for name in sources.split()]
        assert {"common/", "client/", "server/", "simulations/", "src/", "pyproject.toml"} <= set(names)
    place = tmp_path / "source"
    place.mkdir()
    for name in names:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place / name)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "out")]
    subprocess.run(command, cwd=place, check=True, capture_output=True)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    listing = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(wheel)], capture_output=True, text=True, check=True
    )
    for needed in ("sottovoce/server/front.conf.template", "sottovoce/client/home.py", "sottovoce/cli.py"):
        assert needed in listing.stdout


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_a_composed_service_has_no_privilege(path: Path) -> None:
    (plain,) = documents(path)
    for service in plain["services"].values():
        assert service["user"] == "10001:10001"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["mem_limit"] == service["memswap_limit"]
        assert service["ulimits"]["core"] == 0
        assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"}
        assert (DEPLOY.parent / service["build"]["dockerfile"]).is_file()
        assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
        assert not re.search(r":latest|image: [^:\n]+\n", path.read_text())
    if "hospital" in path.name:
        (agent,) = plain["services"].values()
        assert "ports" not in agent
        assert all(volume.endswith(":ro") for volume in agent["volumes"] if volume.startswith("$"))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_pod_has_no_privilege_and_one_replica(path: Path) -> None:
    plain = documents(path)
    (workload,) = [one["spec"] for one in plain if one["kind"] == "StatefulSet"]
    pod = workload["template"]["spec"]
    assert workload["replicas"] == 1  # a folder has one writer
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert re.fullmatch(r"[a-z-]+@sha256:[0-9a-f]{64}", container["image"])
    assert "memory" in container["resources"]["limits"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    offered = {volume["name"] for volume in pod["volumes"]} | {
        claim["metadata"]["name"] for claim in workload["volumeClaimTemplates"]
    }
    assert mounted == offered
    (policy,) = [one["spec"] for one in plain if one["kind"] == "NetworkPolicy"]
    assert policy["podSelector"]["matchLabels"] == workload["selector"]["matchLabels"]
    assert workload["template"]["metadata"]["labels"] == workload["selector"]["matchLabels"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["ingress" if "hospital" in path.name else "egress"] == []


HARDENING = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "PrivateTmp": "yes",
    "ProtectHome": "yes",
    "CapabilityBoundingSet": "",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "IPAddressDeny": "any",
    "LimitCORE": "0",
    "MemorySwapMax": "0",
    "UMask": "0077",
    "User": "sottovoce",
}


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_is_closed_to_what_it_does_not_need(path: Path, tmp_path: Path) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(path.read_text())
    service = unit["Service"]
    assert {name: service[name] for name in HARDENING} == HARDENING
    assert re.fullmatch(r"\d+G", service["MemoryMax"])
    program, *words = shlex.split(service["ExecStart"])
    assert program == "/opt/sottovoce/bin/sottovoce"
    check_command(words)
    if "hospital" in path.name:
        assert service["LoadCredentialEncrypted"].startswith("features:")


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here: 2 units are not verified"
)
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_understands_a_unit(path: Path, tmp_path: Path) -> None:
    # The program is not installed here; everything else must be in order.
    unit = tmp_path / path.name
    unit.write_text(path.read_text().replace("/opt/sottovoce/bin/sottovoce", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("ProtectSystem=strict", "ProtectSystem=very"))
    assert subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, check=False).stderr


@pytest.mark.parametrize("path", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_a_script_is_one(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert "set -euo pipefail" in path.read_text()
    assert path.stat().st_mode & 0o111
