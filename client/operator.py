"""The folder of a person who takes part: an auditor, an admin, an operator of the coordinator.

person = Operator.create(folder, name="Ann")
ConsortiumClient.enrol(person, Path("ann.invitation"))

name   coordinator.json   keys/ (the person's identity)   tls/   run/
"""

import json
from pathlib import Path

from sottovoce.client.home import COORDINATOR_FILE, Coordinator
from sottovoce.common.config import build, canonical
from sottovoce.common.consortium.names import member_name
from sottovoce.common.errors import DeploymentError
from sottovoce.common.files import write_whole
from sottovoce.common.keys import SigningKey, new_approval_key
from sottovoce.common.settings import make_folders

NAME_FILE = "name"


class Operator:
    """An open folder of a person. It is a `Place`, as a hospital's is."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.site = folder, name

    @classmethod
    def create(cls, folder: Path, *, name: str) -> "Operator":
        """Makes the folder and the person's identity. Raises: DeploymentError, KeyFileError."""
        person = cls(folder, member_name(name))
        make_folders(folder, NAME_FILE, f"{person.site}\n", inside=(person.tls, person.run))
        new_approval_key(person.keys)
        return person

    @classmethod
    def open(cls, folder: Path) -> "Operator":
        """Opens a folder made by `create`. Raises: DeploymentError."""
        try:
            return cls(folder, member_name((folder / NAME_FILE).read_text().strip()))
        except (OSError, UnicodeDecodeError):
            raise DeploymentError(f"{folder}: expected a person's folder; came another.") from None

    @property
    def tls(self) -> Path:
        """Certificates and keys of connections."""
        return self.folder / "tls"

    @property
    def run(self) -> Path:
        """What is kept from one start to the next."""
        return self.folder / "run"

    @property
    def keys(self) -> Path:
        """Where the identity lies."""
        return self.folder / "keys"

    @property
    def identity(self) -> SigningKey:
        """The person's key. Raises: DeploymentError where there is none, or several."""
        found = sorted(self.keys.glob("signing-*.pem"))
        if len(found) != 1:
            raise DeploymentError(f"{self.keys}: expected one key; there are {len(found)}.")
        return SigningKey.load(found[0])

    @property
    def coordinator(self) -> Coordinator:
        """Whom this person enrolled with. Raises: DeploymentError."""
        problems: list[str] = []
        try:
            data = json.loads((self.folder / COORDINATOR_FILE).read_bytes())
            found = build(Coordinator, data, COORDINATOR_FILE, problems)
        except (OSError, ValueError, RecursionError):
            found = None
        if found is None:
            raise DeploymentError(
                f"{self.folder}: this person has not enrolled, or {COORDINATOR_FILE} is damaged."
            )
        return found

    def pin(self, coordinator: Coordinator) -> None:
        """Keeps whom this person enrolled with."""
        write_whole(self.folder / COORDINATOR_FILE, canonical(coordinator).encode())
