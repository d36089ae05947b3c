"""A hospital's own folder: what it is, whom it listens to, and where its keys, studies and features lie.

    hospital = Hospital.open(folder)
    hospital.settings.data["ravdess"], hospital.coordinator.public_key, hospital.identity.public_hex

    hospital.toml          what this hospital's administrator sets: its name, folders of recordings, device
    coordinator.json       whom it enrolled with: pinned name, public key and addresses
    tls/                   ca.crt, site.crt and site.key (mutual TLS), node.key (Flower's node authentication)
    ledger/                the site's ledger: keys, policy, entries, identity for envelopes and secure sums
    studies/DIGEST/        study.toml and offer.json, as the coordinator offered it; features/, computed here
    state/                 what this site keeps of its own between the rounds of a study (client/personal.py)
    weights/               public files that studies name by their SHA-256, put here by the administrator
    run/                   what the agent needs from one start to the next: status, journal, sequence marks, logs

Guarantees:
  - Nothing of this folder is sent anywhere but public halves of keys, certificate requests and signed answers.
  - Folders are made with mode 0700; settings that cannot be used are one error that names every problem.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from sottovoce.client.secure_folder import SecureFolder
from sottovoce.client.site_ledger import SECURE
from sottovoce.common.config import Interval, build, canonical
from sottovoce.common.errors import DeploymentError
from sottovoce.common.files import write_whole
from sottovoce.common.keys import SigningKey
from sottovoce.common.settings import make_folders, read_settings, settings_from

SETTINGS, COORDINATOR_FILE, STATE = "hospital.toml", "coordinator.json", "state"

Port = Annotated[int, Interval(0, 65_535)]
Name = Annotated[str, Interval(1, 120)]


@dataclass(frozen=True, kw_only=True)
class HospitalSettings:
    """`hospital.toml`: what a hospital's administrator decides. None of it is part of a study.

    `data` gives a folder for each corpus name of the studies; a port of 0 is none; seconds are of the agent.
    `features_key` names the key under which features, and models of its own, lie sealed on the disk: a file's path, or
    `credential:NAME` of systemd; `memory_folder` is where features are opened (`client/features_at_rest.py`). With
    `reply_seconds` an answer that was computed from recordings leaves a whole number of so many seconds after its
    question; 0: when it is ready.
    """

    format: Literal[1]
    site: Name
    data: Mapping[str, str] = field(default_factory=dict)
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    workers: Annotated[int, Interval(1, 64)] = 1
    poll_seconds: Annotated[float, Interval(0.02, 60)] = 0.1
    reply_seconds: Annotated[float, Interval(0, 3600)] = 0.0
    metrics_port: Port = 0
    max_message_bytes: Annotated[int, Interval(10_000, 2_000_000_000)] = 512_000_000
    features_key: Name | None = None
    memory_folder: Name = "/dev/shm"


@dataclass(frozen=True, kw_only=True)
class Coordinator:
    """Whom a hospital enrolled with. `fleet` and `consortium` are addresses, `HOST:PORT`."""

    format: Literal[1]
    name: Name
    public_key: Annotated[str, Interval(64, 64)]
    fleet: Name
    consortium: Name


class Hospital:
    """An open hospital folder."""

    def __init__(self, folder: Path, settings: HospitalSettings) -> None:
        self.folder, self.settings = folder, settings

    @classmethod
    def create(cls, folder: Path, text: str) -> "Hospital":
        """Makes the folder with the text of its `hospital.toml`.

        Raises:
            DeploymentError: there is one already, the text cannot be used, or the folder cannot be made.
        """
        hospital = cls(folder, settings_from(HospitalSettings, text, str(folder / SETTINGS)))
        make_folders(folder, SETTINGS, text, inside=(hospital.tls, hospital.studies, hospital.run))
        return hospital

    @classmethod
    def open(cls, folder: Path) -> "Hospital":
        """Opens a folder made by `create`. Raises: DeploymentError with every problem of its settings."""
        mend = "Make a hospital's folder with `sottovoce client init`."
        return cls(folder, read_settings(HospitalSettings, folder / SETTINGS, mend=mend))

    @property
    def site(self) -> str:
        """The name under which this hospital takes part."""
        return self.settings.site

    @property
    def tls(self) -> Path:
        """Certificates and keys of connections."""
        return self.folder / "tls"

    @property
    def ledger(self) -> Path:
        """The site's ledger folder."""
        return self.folder / "ledger"

    @property
    def studies(self) -> Path:
        """What the coordinator offered, by digest."""
        return self.folder / "studies"

    @property
    def run(self) -> Path:
        """What the agent keeps from one start to the next."""
        return self.folder / "run"

    @property
    def state(self) -> Path:
        """What this site keeps of its own between the rounds of a study."""
        return self.folder / STATE

    @property
    def weights(self) -> Path:
        """Public files that studies name by their SHA-256; an installed package may have them too."""
        return self.folder / "weights"

    def study_folder(self, digest: str) -> Path:
        """Where a study lies. Raises: DeploymentError for what is no digest."""
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise DeploymentError(
                f"Expected a study's digest of 64 hexadecimal digits; came {digest[:80]!r}."
            )
        return self.studies / digest

    def study_file(self, digest: str) -> Path:
        """The study as it was offered."""
        return self.study_folder(digest) / "study.toml"

    def features(self, digest: str) -> Path:
        """The features that this site computed for a study (`SiteData`)."""
        return self.study_folder(digest) / "features"

    @property
    def identity(self) -> SigningKey:
        """The key with which this site signs envelopes and takes part in secure sums. Raises: KeyFileError."""
        return SecureFolder(self.ledger / SECURE).key

    @property
    def coordinator(self) -> Coordinator:
        """Whom this hospital enrolled with. Raises: DeploymentError where it has not, or the file is damaged."""
        path, problems = self.folder / COORDINATOR_FILE, list[str]()
        if not path.exists():
            raise DeploymentError(
                f"{self.folder}: this hospital has not enrolled. Use `sottovoce client init --invitation FILE`."
            )
        try:
            found = build(Coordinator, json.loads(path.read_bytes()), COORDINATOR_FILE, problems)
        except (OSError, ValueError, RecursionError):
            found = None
        if found is None:
            raise DeploymentError(
                f"{path}: expected whom this hospital enrolled with; {' '.join(problems) or 'damaged.'}"
            )
        return found

    def pin(self, coordinator: Coordinator) -> None:
        """Keeps whom this hospital enrolled with."""
        write_whole(self.folder / COORDINATOR_FILE, canonical(coordinator).encode())
