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
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from sottovoce.client import agent_files as files
from sottovoce.client import doctor_keys, doctor_weights
from sottovoce.client import trouble as troubles
from sottovoce.client.findings import Finding, Findings, fail, ok, warn
from sottovoce.client.home import SETTINGS, Hospital
from sottovoce.common.errors import (
    CorpusError,
    DeploymentError,
    LedgerError,
    SottovoceError,
)

# What pyproject.toml pins; a test holds the two together.
VERSIONS = {"flwr": "1.41.0", "torch": "2.13."}
LEAST_FREE_BYTES, FEW_FREE_BYTES = 200_000_000, 2_000_000_000


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
        ("key files", doctor_keys.key_files),
        ("identity", doctor_keys.identity),
        ("ledger", doctor_keys.ledger),
        ("policy", doctor_keys.policy),
        ("node key", doctor_keys.node_key),
        ("certificate", doctor_keys.certificate),
        ("data", _data),
        ("studies", _studies),
        ("features", _features),
        ("weights", doctor_weights.weights),
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
        state = doctor_keys.state(hospital)
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
