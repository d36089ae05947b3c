"""The coordinator's own folder: its name and ports, its keys, who takes part, its runs.

    home = CoordinatorHome.open(folder)

    server.toml            what its administrator sets: names, ports, how long certificates last
    keys/                  signing-*.pem, the coordinator's identity: it signs envelopes, offers, secure sums
    pki/                   the authority and the server's own certificate
    registry.sqlite        sites, operators, invitations, studies, approvals, witnessed checkpoints, released models
    runs/NAME/             one run of a study: study.toml, run.json, rounds.jsonl, checkpoints/, ledgers/
    federations/           the record of every attempt at every secure sum, by study
    run/                   logs, process ids, sequence marks

Guarantees:
  - Folders are made with mode 0700; settings that cannot be used are one error that names every problem.
  - Nothing here was computed from a single patient's data but what hospitals released.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from sottovoce.common.config import Interval
from sottovoce.common.errors import KeyFileError
from sottovoce.common.keys import SigningKey
from sottovoce.common.settings import make_folders, read_settings, settings_from

SETTINGS = "server.toml"
MARK, STATUS = "coordinator.pid", "status.json"  # in `run`, of the process that serves this folder

Port = Annotated[int, Interval(0, 65_535)]
Name = Annotated[str, Interval(1, 120)]


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """`server.toml`. `hosts` are names and addresses of this machine, the first of them is in invitations.

    `fleet_port` is the SuperLink's, on the loopback interface where there is a front, `front_port` the proxy's (0: no
    proxy, hospitals reach the SuperLink itself). `certificate_hours` is the life of a hospital's certificate.
    """

    format: Literal[1]
    name: Name
    hosts: Annotated[tuple[Name, ...], Interval(1, 20)]
    fleet_port: Port
    consortium_port: Port
    front_port: Port = 0
    metrics_port: Port = 0
    certificate_hours: Annotated[float, Interval(0.002, 24 * 90)] = 24.0 * 30
    max_message_bytes: Annotated[int, Interval(10_000, 2_000_000_000)] = 512_000_000


class CoordinatorHome:
    """An open coordinator folder."""

    def __init__(self, folder: Path, settings: ServerSettings) -> None:
        self.folder, self.settings = folder, settings

    @classmethod
    def create(cls, folder: Path, text: str) -> "CoordinatorHome":
        """Makes the folder and the coordinator's key. Raises: DeploymentError."""
        home = cls(folder, settings_from(ServerSettings, text, str(folder / SETTINGS)))
        make_folders(
            folder, SETTINGS, text, inside=(home.keys, home.pki, home.runs, home.federations, home.run)
        )
        SigningKey.generate().save(home.keys)
        return home

    @classmethod
    def open(cls, folder: Path) -> "CoordinatorHome":
        """Opens a folder made by `create`. Raises: DeploymentError with every problem of its settings."""
        mend = "Make a coordinator's folder with `sottovoce server init`."
        return cls(folder, read_settings(ServerSettings, folder / SETTINGS, mend=mend))

    @property
    def keys(self) -> Path:
        """Where the coordinator's identity lies."""
        return self.folder / "keys"

    @property
    def pki(self) -> Path:
        """Where the authority and the server's certificate lie."""
        return self.folder / "pki"

    @property
    def server_hosts(self) -> tuple[str, ...]:
        """The names of the server's certificate: the loopback ones too, by which its own parts reach it."""
        return tuple(dict.fromkeys([*self.settings.hosts, "localhost", "127.0.0.1"]))

    @property
    def fleet_address(self) -> str:
        """Where hospitals reach the rounds of studies, HOST:PORT: the front's port, where there is one."""
        return f"{self.settings.hosts[0]}:{self.settings.front_port or self.settings.fleet_port}"

    @property
    def consortium_address(self) -> str:
        """Where hospitals reach the consortium service, HOST:PORT."""
        return f"{self.settings.hosts[0]}:{self.settings.consortium_port}"

    @property
    def registry(self) -> Path:
        """Who takes part, and in what."""
        return self.folder / "registry.sqlite"

    @property
    def runs(self) -> Path:
        """Where runs lie."""
        return self.folder / "runs"

    @property
    def federations(self) -> Path:
        """Where the records of secure sums lie, one for each study: numbers of attempts are never used twice."""
        return self.folder / "federations"

    @property
    def weights(self) -> Path:
        """Public files that studies name by their SHA-256, put here by the operator."""
        return self.folder / "weights"

    @property
    def run(self) -> Path:
        """What processes keep from one start to the next."""
        return self.folder / "run"

    @property
    def key(self) -> SigningKey:
        """The coordinator's identity. Raises: KeyFileError where there is none, or several."""
        found = sorted(self.keys.glob("signing-*.pem"))
        if len(found) != 1:
            raise KeyFileError(f"{self.keys}: expected the coordinator's one key; there are {len(found)}.")
        return SigningKey.load(found[0])
