"""Claims of the doctor: a sound hospital has no finding, and each seeded fault has its own, with cause and mend."""

import shutil
import socket
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from flwr.proto.fleet_pb2 import ActivateNodeResponse

from sottovoce.client import agent_files, doctor
from sottovoce.client.agent_files import AgentLock, Status, write_stop
from sottovoce.client.doctor import diagnose
from sottovoce.client.findings import Finding
from sottovoce.client.home import Coordinator, Hospital
from sottovoce.client.line import CA, CERTIFICATE, CERTIFICATE_KEY, NODE_KEY
from sottovoce.common.ledger.files import DiskFolder
from sottovoce.common.pki import Authority, new_node_key, new_request
from tests.fakes import hospitals
from tests.fakes.sites import private_study
from tests.fakes.tls_servers import serving

ROOT = Path(__file__).resolve().parents[2]
ENOUGH = (1, 2)  # bytes that the disk of any test machine has free


@dataclass
class Patient:
    """A hospital that is sound, with a coordinator that answers, until a test does something to it."""

    hospital: Hospital
    authority: Authority
    stack: ExitStack
    servers: Path
    _n: int = field(default=0)

    @property
    def folder(self) -> Path:
        return self.hospital.folder

    @property
    def tls(self) -> Path:
        return self.hospital.tls

    def serve(self, **how: object) -> str:
        self._n += 1
        folder = self.servers / str(self._n)
        folder.mkdir(parents=True)
        authority = how.pop("authority", self.authority)
        return self.stack.enter_context(serving(folder, authority, **how))  # type: ignore[arg-type]

    def pin(self, *, fleet: str = "", consortium: str = "") -> None:
        before = self.hospital.coordinator
        self.hospital.pin(
            Coordinator(
                format=1,
                name=before.name,
                public_key=before.public_key,
                fleet=fleet or before.fleet,
                consortium=consortium or before.consortium,
            )
        )

    def certify(self, *, name: str = "site-a", hours: float = 720.0, ago: float = 0.0) -> None:
        (self.tls / CERTIFICATE_KEY).unlink(missing_ok=True)
        request = new_request(self.tls / CERTIFICATE_KEY)
        leaf = self.authority.issue(
            request, name=name, role="site", hours=hours, now=time.time() - ago * 3600
        )
        (self.tls / CERTIFICATE).write_text(leaf)

    def findings(self, **how: tuple[int, int]) -> list[Finding]:
        found = diagnose(self.folder, free_bytes=how.get("free_bytes", ENOUGH))
        for one in found:
            assert bool(one.cause) == bool(one.mend) == (one.level != "ok"), one
            assert "\n" not in one.mend
            assert one.cause == "" or one.cause.endswith((".", "…")) or one.what == "settings", one
        return [one for one in found if one.level != "ok"]


# What a SuperLink answers to the doctor's question, whether it knows this key: an interval of 0 is refused after that.
KNOWN = {"status": 400, "body": b'{"code": 2003, "detail": "Invalid heartbeat interval."}'}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Authority]:
    """A sound hospital's folder, to be copied."""
    folder = tmp_path_factory.mktemp("model")
    authority = Authority.create(folder / "pki", name="Consortium")
    data = folder / "recordings"
    data.mkdir()
    (data / "manifest.csv").write_text("path,label,speaker\na.wav,happy,1\nb.wav,sad,2\n")
    for name in ("a.wav", "b.wav"):
        import soundfile

        soundfile.write(data / name, np.zeros(1600, np.float32), 16_000)
    home = folder / "hospital"
    hospital = hospitals.enrolled(home, "site-a", "0" * 64, settings=f'[data]\nours = "{data}"\n')
    study = hospitals.offer(hospital, private_study(folder / "study.toml"), None)
    hospitals.approve(hospital, study)
    hospital.features(study.digest()).mkdir()
    (hospital.features(study.digest()) / "index.json").write_text("{}")
    (hospital.tls / CA).write_text(authority.certificate_pem)
    new_node_key(hospital.tls / NODE_KEY)
    return home, authority


@pytest.fixture
def patient(model: tuple[Path, Authority], tmp_path: Path) -> Iterator[Patient]:
    home = tmp_path / "hospital"
    shutil.copytree(model[0], home)
    with ExitStack() as stack:
        made = Patient(
            hospital=Hospital.open(home), authority=model[1], stack=stack, servers=tmp_path / "servers"
        )
        made.certify()
        made.pin(fleet=made.serve(**KNOWN), consortium=made.serve())
        lock = AgentLock(made.hospital.run)
        stack.callback(lambda: lock.close() if lock else None)
        Status(made.hospital.run, {}).set(connected=True)
        yield made


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def test_a_sound_hospital_has_no_finding_and_nothing_is_changed(patient: Patient) -> None:
    before = {path: path.stat().st_mtime_ns for path in patient.folder.rglob("*") if path.is_file()}
    assert patient.findings() == []
    after = {path: path.stat().st_mtime_ns for path in patient.folder.rglob("*") if path.is_file()}
    assert before == after


# --- seeded faults ------------------------------------------------------------------------------------------

SEEDS: dict[str, tuple[Callable[[Patient], object], str, str]] = {}


def seed(what: str, cause: str) -> Callable[[Callable[[Patient], object]], Callable[[Patient], object]]:
    """Notes a fault with what the doctor must call it and a part of the cause that it must give."""

    def noted(fault: Callable[[Patient], object]) -> Callable[[Patient], object]:
        SEEDS[fault.__name__] = (fault, what, cause)
        return fault

    return noted


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@seed("settings", "cannot be read")
def settings_missing(patient: Patient) -> None:
    (patient.folder / "hospital.toml").unlink()


@seed("settings", "devise")
def settings_with_an_unknown_key(patient: Patient) -> None:
    rewrite(patient.folder / "hospital.toml", "site =", 'devise = "cuda"\nsite =')


@seed("data ours", "there is none")
def data_folder_missing(patient: Patient) -> None:
    rewrite(patient.folder / "hospital.toml", "recordings", "recordings/elsewhere")


@seed("data ours", "is empty")
def data_folder_empty(patient: Patient) -> None:
    empty = patient.folder.parent / "empty"
    empty.mkdir()
    rewrite(patient.folder / "hospital.toml", patient.hospital.settings.data["ours"], str(empty))


@seed("data ours", "found none")
def data_folder_without_a_corpus(patient: Patient) -> None:
    other = patient.folder.parent / "other"
    other.mkdir()
    (other / "notes.txt").write_text("no recording")
    rewrite(patient.folder / "hospital.toml", patient.hospital.settings.data["ours"], str(other))


@seed("key files", "can be read by other accounts")
def certificate_key_readable_by_others(patient: Patient) -> None:
    (patient.tls / CERTIFICATE_KEY).chmod(0o640)


@seed("key files", "can be read by other accounts")
def ledger_key_readable_by_others(patient: Patient) -> None:
    next((patient.hospital.ledger / "keys").glob("signing-*.pem")).chmod(0o644)


@seed("identity", "identity for secure sums")
def identity_missing(patient: Patient) -> None:
    next((patient.hospital.ledger / "secure").glob("signing-*.pem")).unlink()


@seed("ledger", "there is none")
def ledger_missing(patient: Patient) -> None:
    shutil.rmtree(patient.hospital.ledger)


@seed("ledger", "damaged")
def ledger_damaged(patient: Patient) -> None:
    path = patient.hospital.ledger / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b"site-a", b"site-b"))


@seed("ledger", "Another process")
def ledger_in_use(patient: Patient) -> None:
    folder = DiskFolder(patient.hospital.ledger)
    folder.lock()
    patient.stack.callback(folder.unlock)


@seed("policy", "No policy")
def policy_missing(patient: Patient) -> None:
    (patient.hospital.ledger / "policy.toml").unlink()


@seed("policy", "site-b")
def policy_of_another_site(patient: Patient) -> None:
    rewrite(patient.hospital.ledger / "policy.toml", 'site = "site-a"', 'site = "site-b"')


@seed("node key", "No such file")
def node_key_missing(patient: Patient) -> None:
    (patient.tls / NODE_KEY).unlink()


@seed("node key", "P-384")
def node_key_of_another_curve(patient: Patient) -> None:
    (patient.tls / NODE_KEY).unlink()
    new_request(patient.tls / NODE_KEY)  # a P-256 key


@seed("certificate", "ended")
def certificate_expired(patient: Patient) -> None:
    patient.certify(hours=1.0, ago=48.0)


@seed("certificate", "was not renewed")
def certificate_near_its_end(patient: Patient) -> None:
    patient.certify(hours=720.0, ago=700.0)


@seed("certificate", "of another")
def certificate_of_another_key(patient: Patient) -> None:
    leaf = (patient.tls / CERTIFICATE).read_text()
    patient.certify()
    (patient.tls / CERTIFICATE).write_text(leaf)


@seed("certificate", "hospital-z")
def certificate_of_another_site(patient: Patient) -> None:
    patient.certify(name="hospital-z")


@seed("certificate", "There is no")
def certificate_missing(patient: Patient) -> None:
    (patient.tls / CERTIFICATE).unlink()


@seed("connection", "another authority")
def authority_file_of_another_consortium(patient: Patient) -> None:
    other = Authority.create(patient.folder.parent / "other-pki", name="Consortium")
    (patient.tls / CA).write_text(other.certificate_pem)


@seed("connection", "missing or no certificate")
def authority_file_missing(patient: Patient) -> None:
    (patient.tls / CA).unlink()


@seed("connection", "has not enrolled")
def never_enrolled(patient: Patient) -> None:
    (patient.folder / "coordinator.json").unlink()


def held_port(patient: Patient) -> str:
    """An address where nobody listens, and where nobody else can begin to before the test is over."""
    held = patient.stack.enter_context(socket.socket())
    held.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{held.getsockname()[1]}"


@seed("connection", "was refused")
def port_closed(patient: Patient) -> None:
    patient.pin(fleet=held_port(patient))


@seed("consortium service", "was refused")
def consortium_port_closed(patient: Patient) -> None:
    patient.pin(consortium=held_port(patient))


@seed("connection", "for another name")
def certificate_of_another_host(patient: Patient) -> None:
    patient.pin(fleet=patient.serve(hosts=("elsewhere.example",)))


@seed("connection", "has expired")
def server_certificate_expired(patient: Patient) -> None:
    patient.pin(fleet=patient.serve(now=time.time() - 90_000, hours=1.0))


@seed("connection", "not registered")
def node_not_registered(patient: Patient) -> None:
    patient.pin(fleet=patient.serve(status=412, body=b'{"code": 2004, "detail": ""}'))


@seed("connection", "something else")
def another_service_at_the_port(patient: Patient) -> None:
    patient.pin(fleet=patient.serve(headers={"content-type": "text/html"}, body=b"<html>"))


@seed("clock", "ahead")
def clock_off_by_ten_minutes(patient: Patient) -> None:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() - 600))
    patient.pin(fleet=patient.serve(status=401, date=date))


@seed("clock", "behind")
def clock_off_by_two_minutes(patient: Patient) -> None:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 120))
    patient.pin(fleet=patient.serve(**KNOWN, date=date))


@seed("folder", "is missing")
def run_folder_missing(patient: Patient) -> None:
    shutil.rmtree(patient.hospital.run)


@seed("folder", "open to other accounts")
def folder_open_to_others(patient: Patient) -> None:
    patient.folder.chmod(0o755)


@seed("stop", "was stopped")
def stopped(patient: Patient) -> None:
    write_stop(patient.hospital.run, agent_files.Stop(now=True))


@seed("studies", "not prepared")
def features_not_prepared(patient: Patient) -> None:
    (study,) = patient.hospital.studies.iterdir()
    shutil.rmtree(study / "features")


@seed("studies", "is approved and not here")
def study_missing(patient: Patient) -> None:
    (study,) = patient.hospital.studies.iterdir()
    shutil.rmtree(study)


@seed("agent", "the coordinator to listen")
def agent_not_connected(patient: Patient) -> None:
    Status(patient.hospital.run, {}).set(connected=False, error="Expected the coordinator to listen. Look.")


@pytest.mark.parametrize("name", SEEDS)
def test_a_seeded_fault_is_named_with_cause_and_mend(patient: Patient, name: str) -> None:
    fault, what, cause = SEEDS[name]
    fault(patient)
    found = [one for one in patient.findings() if one.what == what]
    assert found, patient.findings()
    assert cause in found[0].cause


def test_as_many_faults_are_seeded_as_were_promised() -> None:
    assert len(SEEDS) >= 12


def test_a_name_that_does_not_resolve_is_named(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def resolve(host: str, *rest: object, **more: object) -> object:
        if host == "coordinator.invalid":  # what a resolver says: no test asks a real one
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    patient.pin(fleet="coordinator.invalid:443", consortium="coordinator.invalid:444")
    assert [(one.what, "does not" in one.cause) for one in patient.findings()] == [
        ("connection", True),
        ("consortium service", True),
    ]


def test_little_room_on_the_disk_is_a_warning_and_no_room_a_failure(patient: Patient) -> None:
    free = shutil.disk_usage(patient.folder).free
    assert only(patient.findings(free_bytes=(1, 2 * free))).level == "warn"
    assert only(patient.findings(free_bytes=(2 * free, 4 * free))).level == "fail"


def test_a_folder_that_cannot_be_written_is_named(patient: Patient) -> None:
    shutil.rmtree(patient.hospital.studies)
    patient.hospital.studies.symlink_to("/proc/self")  # where not even root may make a file
    assert "cannot be written" in next(one.cause for one in patient.findings() if one.what == "folder")


def test_an_agent_that_does_not_run_is_named(model: tuple[Path, Authority], tmp_path: Path) -> None:
    home = tmp_path / "hospital"
    shutil.copytree(model[0], home)
    assert "The agent is not running." in {one.cause for one in diagnose(home, free_bytes=ENOUGH)}


@pytest.mark.parametrize("library", ["flwr", "torch"])
def test_another_version_of_a_library_is_named(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    facts = tmp_path / "site-packages" / f"{library}-1.0.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {library}\nVersion: 1.0.0\n")
    monkeypatch.syspath_prepend(str(facts.parent))
    found = only(patient.findings())
    assert (found.what, found.level) == (f"{library} version", "fail")
    assert "1.0.0 is installed" in found.cause


def test_the_versions_that_the_doctor_expects_are_those_that_are_pinned() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for name, version in doctor.VERSIONS.items():
        pins = [one for one in wanted if one.startswith(name) and not one[len(name)].isalpha()]
        assert len(pins) == 1
        assert version.rstrip(".") in pins[0]
        assert metadata.version(name).startswith(version)


def test_a_coordinator_that_knows_this_site_is_asked_nothing_else(patient: Patient) -> None:
    body = ActivateNodeResponse(node_id=1).SerializeToString()
    patient.pin(fleet=patient.serve(body=body))
    assert patient.findings() == []


@contextmanager
def silent_port() -> Iterator[str]:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        yield f"127.0.0.1:{mute.getsockname()[1]}"


def test_a_service_that_says_nothing_does_not_hold_the_doctor_up(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sottovoce.client.doctor_line.CONNECT_SECONDS", 0.3)
    with silent_port() as address:
        patient.pin(consortium=address)
        began, before = time.monotonic(), threading.active_count()
        assert only(patient.findings()).what == "consortium service"
        assert time.monotonic() - began < 60
    assert threading.active_count() < before + 20
