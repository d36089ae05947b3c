"""Making a hospital: its folder with settings, its ledger with keys, and its place in a consortium.

    joined = set_up(home, site=None, invitation=Path("hospital-a.invitation"), data={"intake-2026": folder})
    joined.fingerprint               # to compare by telephone

Guarantees:
  - Run again after a crash at any point, with the same invitation, it goes on where it ended; settings, keys and a
    ledger that are there stay as they are.
  - A ledger is there whole or not at all.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sottovoce.client.home import SETTINGS, Hospital
from sottovoce.common.errors import DeploymentError

NEW_HOSPITAL = """\
# A hospital's settings. None of them is part of a study; `sottovoce client doctor` says what is wrong with them.
format = 1
site = {site}             # the name under which this hospital was invited

device = "cpu"              # of local training: cpu, cuda or auto. Another device, other last bits than in simulation
workers = 1                 # processes that prepare features at once
poll_seconds = 0.1          # how often the agent asks the coordinator for work
reply_seconds = 0           # answers leave at whole numbers of so many seconds and tell less of the draw; 0: when ready
metrics_port = 0            # Prometheus, on the loopback interface; 0: none

# The key under which features lie sealed on this disk: a credential of systemd ("credential:NAME"), or the path of a
# file of 32 bytes, mode 0600, on another disk. Without it features lie open, and the disk itself must be encrypted.
# features_key = "credential:features"
memory_folder = "/dev/shm"  # where sealed features are opened: a file system of memory

# A folder of recordings for each corpus name of the studies. They are read, never written, and never sent.
[data]
{data}"""


@dataclass(frozen=True, kw_only=True)
class Joined:
    """A hospital that takes part: what to compare by telephone, and until when its certificate lasts."""

    hospital: Hospital
    coordinator: str
    public_key: str
    fingerprint: str
    identity: str
    not_after: float
    settings_kept: bool


def set_up(home: Path, *, site: str | None, invitation: Path, data: Mapping[str, Path]) -> Joined:
    """Makes the hospital, or goes on making it. `site` is the invitation's name if left out.

    Raises:
        DeploymentError, CertificateError, KeyFileError, LedgerError: each says what to mend.
    """
    from sottovoce.client.consortium import ConsortiumClient
    from sottovoce.common.consortium.invitation import read_invitation

    invited = read_invitation(invitation)
    kept = (home / SETTINGS).exists()
    hospital = Hospital.open(home) if kept else Hospital.create(home, _settings(site or invited.name, data))
    if site is not None and hospital.site != site:
        raise DeploymentError(f"--site: expected {hospital.site!r}, which {home} is for; came {site!r}.")
    _make_ledger(hospital)
    peer = ConsortiumClient.enrol(hospital, invitation)
    return Joined(
        hospital=hospital,
        coordinator=invited.coordinator,
        public_key=invited.public_key,
        fingerprint=invited.fingerprint,
        identity=hospital.identity.public_hex,
        not_after=peer.not_after,
        settings_kept=kept,
    )


def _settings(site: str, data: Mapping[str, Path]) -> str:
    # A JSON string is a string of TOML too.
    lines = [f"{json.dumps(name)} = {json.dumps(str(folder.resolve()))}\n" for name, folder in data.items()]
    return NEW_HOSPITAL.format(
        site=json.dumps(site), data="".join(lines) or '# intake-2026 = "/srv/recordings"\n'
    )


def _make_ledger(hospital: Hospital) -> None:
    from sottovoce.client.site_ledger import SiteLedger

    if hospital.ledger.exists():
        return
    beside = hospital.ledger.with_name("ledger.new")
    shutil.rmtree(beside, ignore_errors=True)  # of a crash: nobody has seen its keys
    SiteLedger.create(beside, site=hospital.site)
    beside.rename(hospital.ledger)
