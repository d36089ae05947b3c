"""What is wrong with a hospital's installation, with the cause and the mend of each thing in one sentence.

    for finding in diagnose(folder):
        print(finding.level, finding.what, finding.cause, finding.mend)

Guarantees:
  - Nothing is changed: no file of the hospital, no entry of its ledger, no node at the coordinator.
  - Every check that can be made is made, whatever the others found; one that fails by a defect says so as a finding.
  - No finding holds a key, a label or the name of a recording.
"""

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from sottovoce.client import agent_files as files
from sottovoce.client import policy as policies
from sottovoce.client import trouble as troubles
from sottovoce.client.findings import Finding, Findings, fail, ok, warn
from sottovoce.client.home import SETTINGS, Hospital
from sottovoce.client.site_ledger import KEYS, POLICY_FILE, SECURE
from sottovoce.common.errors import (
    CertificateError,
    CorpusError,
    DeploymentError,
    KeyFileError,
    LedgerError,
    PolicyError,
    SottovoceError,
)
from sottovoce.common.keys import load_node_key
from sottovoce.common.ledger.files import DiskFolder
from sottovoce.common.ledger.reading import read_ledger, readable_entries
from sottovoce.common.ledger.state import State, fold
from sottovoce.common.pki import belongs_to, peer_of, read_pem

# What pyproject.toml pins; a test holds the two together.
VERSIONS = {"flwr": "1.41.0", "torch": "2.13."}
LEAST_FREE_BYTES, FEW_FREE_BYTES = 200_000_000, 2_000_000_000
NEAR_END_DAYS = 5.0


def diagnose(
    folder: Path, *, free_bytes: tuple[int, int] = (LEAST_FREE_BYTES, FEW_FREE_BYTES)
) -> list[Finding]:
    """Looks at a hospital's folder, this installation and the way to the coordinator.

    `free_bytes` are the room on the disk below which training cannot go on, and below which it soon cannot.
    """
    found = list(_versions())
    try:
        hospital = Hospital.open(folder)
    except SottovoceError as error:
        mend = f"Mend {folder / SETTINGS}; what it may hold is in deploy/hospital.example.toml."
        return [*found, fail("settings", str(error), mend)]
    found.append(ok("settings"))
    checks: list[tuple[str, Callable[[Hospital], Findings]]] = [
        ("folder", _folder),
        ("disk", lambda one: _disk(one, free_bytes)),
        ("key files", _key_files),
        ("identity", _identity),
        ("ledger", _ledger),
        ("policy", _policy),
        ("node key", _node_key),
        ("certificate", _certificate),
        ("data", _data),
        ("studies", _studies),
        ("features", _features),
        ("stop", _stopped),
        ("agent", _agent),
        ("connection", _connections),
    ]
    for name, check in checks:
        found += _guarded(name, check, hospital)
    return found


def _guarded(name: str, check: Callable[[Hospital], Findings], hospital: Hospital) -> list[Finding]:
    found: list[Finding] = []
    try:
        found.extend(check(hospital))
    except DeploymentError as error:
        found.append(fail(name, *troubles.parts(error)))
    except SottovoceError as error:
        found.append(fail(name, str(error), "Restore the file from its backup, or see docs/runbook.md."))
    except OSError as error:
        found.append(
            fail(
                name, f"A file cannot be read ({error.strerror}).", "Run as the account that owns the folder."
            )
        )
    return found or [ok(name)]


# --- the installation ---------------------------------------------------------------------------------------


def _versions() -> Findings:
    for name, expected in VERSIONS.items():
        try:
            came = metadata.version(name)
        except metadata.PackageNotFoundError:
            came = "none"
        what = f"{name} version"
        if came.startswith(expected):
            yield ok(what)
        else:
            cause = f"Expected {name} {expected.rstrip('.')}; version {came} is installed."
            yield fail(
                what, cause, "Install Sottovoce anew with its own constraints.txt, into an empty environment."
            )


def _folder(hospital: Hospital) -> Findings:
    for place in (hospital.folder, hospital.run, hospital.tls, hospital.studies, hospital.ledger):
        if not place.is_dir():
            if place != hospital.ledger:  # its own check says so
                yield fail(
                    "folder", f"Expected the folder {place}; it is missing.", "Restore it from the backup."
                )
        elif problem := _not_writable(place):
            yield fail(
                "folder",
                f"Expected to write to {place}; it cannot be written ({problem}).",
                "Run as the account that owns it, or mount the disk read-write.",
            )
        elif place.stat().st_mode & 0o077:
            yield warn(
                "folder",
                f"{place} is open to other accounts of this machine.",
                f"Close it: chmod 700 {place}",
            )


def _not_writable(folder: Path) -> str:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def _disk(hospital: Hospital, least: tuple[int, int]) -> Findings:
    free = shutil.disk_usage(hospital.folder).free
    for say, bound in zip((fail, warn), least, strict=True):
        if free < bound:
            cause = (
                f"Expected at least {bound >> 20:,} MiB free on the hospital's disk; {free >> 20:,} MiB are."
            )
            yield say(
                "disk", cause, "Make room: without it the ledger cannot be written, and nothing is trained."
            )
            return


# --- keys, ledger, policy -----------------------------------------------------------------------------------


def _key_files(hospital: Hospital) -> Findings:
    ledger = hospital.ledger
    paths = [*(ledger / KEYS).glob("*"), *(ledger / SECURE).glob("*.pem"), *hospital.tls.glob("*.key")]
    for path in paths:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield fail(
                "key files",
                f"The key file {path} can be read by other accounts.",
                f"Close it with chmod 600 {path}; if anybody may have copied it, make a new one.",
            )


def _identity(hospital: Hospital) -> Findings:
    try:
        hospital.identity  # noqa: B018 - reading it is the check
    except KeyFileError as error:
        mend = "Restore the ledger's folder from the backup; a new identity means enrolling again."
        yield fail("identity", str(error), mend)


def _state(hospital: Hospital) -> State:
    """Returns what the ledger says. Raises: LedgerError where it is missing or damaged."""
    entries, problem = readable_entries(read_ledger(hospital.ledger).ledger)
    if problem:
        raise LedgerError(f"The ledger is damaged: {problem}.")
    return fold(entries)


def _ledger(hospital: Hospital) -> Findings:
    if not hospital.ledger.is_dir():
        yield fail(
            "ledger",
            f"Expected a ledger in {hospital.ledger}; there is none.",
            "Run `sottovoce client init`.",
        )
        return
    try:
        state = _state(hospital)
    except LedgerError as error:
        mend = "Restore the ledger's folder from the backup; `sottovoce ledger verify` shows the entry."
        yield fail("ledger", str(error), mend)
        return
    if state.site != hospital.site:
        yield fail(
            "ledger",
            f"Expected the ledger of {hospital.site!r}; this one is of {state.site!r}.",
            f"Put the right ledger in place, or mend `site` in {hospital.folder / SETTINGS}.",
        )
    place = DiskFolder(hospital.ledger)
    try:
        place.lock()
        place.unlock()
    except LedgerError:
        yield warn(
            "ledger",
            "Another process works on the ledger now.",
            "Wait for the round under way, or find who holds it with `fuser`.",
        )


def _policy(hospital: Hospital) -> Findings:
    path = hospital.ledger / POLICY_FILE
    if not path.exists():
        yield fail(
            "policy",
            "No policy is in force here: this hospital agrees to nothing yet.",
            "Write one, and adopt it with `sottovoce policy adopt`.",
        )
        return
    try:
        policy = policies.load(path)
    except PolicyError as error:
        yield fail("policy", str(error), "Mend the file, and adopt it as a new version.")
        return
    if policy.site != hospital.site:
        yield fail(
            "policy",
            f"Expected the policy of {hospital.site!r}; this one is of {policy.site!r}.",
            "Adopt this hospital's own policy.",
        )


def _node_key(hospital: Hospital) -> Findings:
    try:
        load_node_key(hospital.tls / "node.key")
    except KeyFileError as error:
        yield fail(
            "node key", str(error), "Restore tls/node.key, or enrol again with `sottovoce client init`."
        )


def _certificate(hospital: Hospital) -> Findings:
    leaf, key = hospital.tls / "site.crt", hospital.tls / "site.key"
    enrol = "Enrol again with `sottovoce client init --invitation FILE`."
    if not leaf.exists():
        yield warn(
            "certificate", f"There is no {leaf}: a coordinator behind a front refuses this site.", enrol
        )
        return
    try:
        peer = peer_of(read_pem(leaf))
        if not belongs_to(read_pem(leaf), key):
            yield fail("certificate", f"Expected {leaf} to be of the key beside it; it is of another.", enrol)
    except CertificateError as error:
        yield fail("certificate", str(error), enrol)
        return
    if peer.name != hospital.site:
        yield fail(
            "certificate",
            f"Expected a certificate of {hospital.site!r}; this one is of {peer.name!r}.",
            enrol,
        )
    left = (peer.not_after - time.time()) / 86_400
    if left < 0:
        yield fail("certificate", f"The site's certificate ended {-left:.1f} days ago.", enrol)
    elif left < min(NEAR_END_DAYS, (peer.not_after - peer.not_before) / 86_400 / 5):
        yield warn(
            "certificate",
            f"The site's certificate ends in {left:.1f} days and was not renewed.",
            "Start the agent, which renews it, or see in `sottovoce client status` why it could not.",
        )


# --- data and studies ---------------------------------------------------------------------------------------


def _data(hospital: Hospital) -> Findings:
    if not hospital.settings.data:
        yield warn(
            "data",
            "No folder of recordings is set.",
            f"Name one for each corpus of your studies under [data] in {hospital.folder / SETTINGS}.",
        )
    for name, path in hospital.settings.data.items():
        yield from _corpus(name, Path(path))


def _corpus(name: str, path: Path) -> Findings:
    from sottovoce.common.corpus import scan

    what = f"data {name}"
    if not path.is_dir():
        yield fail(
            what, f"Expected a folder of recordings at {path}; there is none.", "Mount it, or mend the path."
        )
    elif not any(path.iterdir()):
        yield fail(
            what,
            f"The folder {path} is empty.",
            "Mount the share that holds the recordings, or mend the path.",
        )
    else:
        try:
            corpus = scan(path, name=name)
        except CorpusError as error:
            yield fail(
                what, _one_line(error), "See `sottovoce corpus scan`, which names each file's problem."
            )
            return
        if not corpus.utterances:
            cause = f"Expected a corpus in {path}; none of its files is a recording with a label."
            yield fail(what, cause, "See `sottovoce corpus scan`, which names each file's problem.")


def _studies(hospital: Hospital) -> Findings:
    from sottovoce.client.features_at_rest import at_rest

    try:
        state = _state(hospital)
    except LedgerError:
        return  # the ledger's own check says it
    for grant in state.grants.values():
        digest = grant.approval.study
        if grant.closed:
            continue
        if not hospital.study_file(digest).exists():
            yield fail(
                "studies",
                f"Study {digest[:16]}… is approved and not here.",
                "Start the agent, which fetches it from the coordinator.",
            )
        elif at_rest(hospital, digest) == "missing":
            yield fail(
                "studies",
                f"Study {digest[:16]}… is approved and its features are not prepared.",
                f"Run `sottovoce client prepare {hospital.folder} {digest[:16]}`.",
            )


def _features(hospital: Hospital) -> Findings:
    """Says how features lie on the disk, and whether their key and the memory for them are there."""
    from sottovoce.client.features_at_rest import CREDENTIAL, at_rest, features_key, working_memory
    from sottovoce.client.offered import digests

    named = hospital.settings.features_key
    if named is None:
        yield ok("features (UNENCRYPTED on this disk: hospital.toml names no features_key)")
        return
    for digest in digests(hospital):
        if at_rest(hospital, digest) == "plain":
            yield fail(
                "features",
                f"The features of study {digest[:16]}… lie open, though hospital.toml names a key.",
                f"Seal them with `sottovoce client prepare {hospital.folder} {digest[:16]}`.",
            )
    if named.startswith(CREDENTIAL) and not os.environ.get("CREDENTIALS_DIRECTORY"):
        yield ok("features (their key is a credential, which only systemd opens)")
        return
    try:
        features_key(hospital)
        working_memory(hospital, "looked-at")
    except SottovoceError as error:
        mend = "Name a key that can be read, and a folder in memory: features_key, memory_folder in hospital.toml."
        yield fail("features", str(error), mend)


# --- the agent ----------------------------------------------------------------------------------------------


def _stopped(hospital: Hospital) -> Findings:
    if files.stop_of(hospital.run) is not None:
        yield warn(
            "stop",
            "This hospital was stopped by its operator: nothing is trained.",
            "Take up training again with `sottovoce client start --resume`.",
        )


def _agent(hospital: Hospital) -> Findings:
    if not files.is_locked(hospital.run):
        yield warn(
            "agent", "The agent is not running.", "Start it with `sottovoce client start`, or its service."
        )
        return
    said = files.read_status(hospital.run)
    if not said.get("connected"):
        cause = str(said.get("error") or "The agent has not connected yet.")
        yield warn("agent", cause.partition(". ")[0].rstrip(".") + ".", "See the finding on the connection.")


def _connections(hospital: Hospital) -> Findings:
    # Here and not above: an installation with another version of Flower refuses to be imported.
    try:
        from sottovoce.client import doctor_line
    except ImportError as error:
        yield fail(
            "connection",
            f"{str(error).partition('. ')[0]}.",
            "Install Sottovoce anew with its constraints.txt.",
        )
        return
    yield from _guarded("connection", doctor_line.fleet, hospital)
    yield from _guarded("consortium service", doctor_line.consortium, hospital)


def _one_line(error: SottovoceError) -> str:
    return " ".join(str(error).split())[:300]
