"""One folder for the auditor: the ledger, its policy and keys, checkpoints, and the program that checks them.

    ledger.jsonl  head  policy.json  public-keys.txt  seen/*.txt  *.py  README.txt  [digest-key]

Guarantees:
  - The folder needs nothing of this project: `verify_ledger.py` is one file over dp-accounting and cryptography, and
    `distributed_bound.py`, which it needs for a ledger with sums over sites, one over Python alone.
  - The digest key, which opens the HMACs of manifests and releases, goes along only where that is asked for.
  - A ledger that does not verify is exported as it is: an auditor must be able to see it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sottovoce.common.errors import LedgerError
from sottovoce.common.keys import DIGEST_KEY_FILE, DigestKey
from sottovoce.common.ledger.checkpoint import parse
from sottovoce.common.ledger.entries import Genesis, KeyRotation, PolicyVersion
from sottovoce.common.ledger.reader import LineRefused, Reader, lines_of
from sottovoce.common.ledger.reading import read_ledger
from sottovoce.common.ledger.store import HEAD_FILE, LEDGER_FILE

VERIFIER, BOUND = "verify_ledger.py", "distributed_bound.py"

_README = """\
The privacy ledger of one site, and the program that checks it. No network is needed.

  python3 -m venv check && check/bin/pip install dp-accounting cryptography
  check/bin/python verify_ledger.py . --public-key KEY [--seen seen/*.txt]

KEY: the site's first public key, as you got it by another way than this folder.
The file public-keys.txt says which keys the ledger itself names; it vouches for nothing.
Read verify_ledger.py before you run it: it is one file, and an hour is enough. For charges of mode
`distributed` it loads distributed_bound.py, 150 lines more.
"""


def export(
    ledger_folder: Path, out: Path, *, seen: Sequence[str] = (), digest_key: DigestKey | None = None
) -> dict[str, Any]:
    """Writes the folder, and says what is in it.

    Raises:
        LedgerError: there is no ledger, or the folder holds something already.
    """
    found = read_ledger(ledger_folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LedgerError(f"{out}: expected a new or empty folder.")
    files = {LEDGER_FILE: found.ledger, "README.txt": _README.encode()}
    files |= {name: program_text(name) for name in (VERIFIER, BOUND)}
    if found.head is not None:
        files[HEAD_FILE] = found.head.encode(errors="surrogateescape")
    files |= _facts(found.ledger)
    for number, note in enumerate(seen):
        files[f"seen/{number:03}.txt"] = parse(note).text().encode()
    try:
        for name, data in files.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(data)
        if digest_key is not None:
            digest_key.save(out)  # for its owner's eyes only, there too
    except OSError as error:
        raise LedgerError(f"{out}: cannot be written ({error.strerror}).") from None
    names = sorted([*files, *([] if digest_key is None else [DIGEST_KEY_FILE])])
    return {"folder": str(out), "files": names, "bytes": sum(map(len, files.values()))}


def extract(ledger_folder: Path, out: Path) -> None:
    """Writes what may be shown of a ledger to a new folder: entries, head, policy and public keys; no private key."""
    try:
        ledger = (ledger_folder / LEDGER_FILE).read_bytes()
        head = (ledger_folder / HEAD_FILE).read_bytes()
    except OSError as error:
        raise LedgerError(f"{ledger_folder}: expected a ledger ({error.strerror}).") from None
    out.mkdir(parents=True)
    for name, data in {LEDGER_FILE: ledger, HEAD_FILE: head, **_facts(ledger)}.items():
        (out / name).write_bytes(data)


def program_text(name: str) -> bytes:
    """Returns a file of the auditor's: beside this file in an installed package, below deploy/ in a checkout."""
    here = Path(__file__).resolve()
    for path in (here.with_name(name), here.parents[2] / "deploy" / "auditor" / name):
        if path.is_file():
            return path.read_bytes()
    raise LedgerError(f"Expected {name} in this installation; it is missing. Install sottovoce again.")


def _facts(ledger: bytes) -> dict[str, bytes]:
    """The policy in force and the keys, as far as the ledger can be read."""
    reader, keys, policy = Reader(), [], b""
    for line in lines_of(ledger):
        try:
            body = reader.take(line, check_signature=False).body
        except LineRefused:
            break
        if isinstance(body, Genesis | KeyRotation):
            keys.append(f"{reader.state.size - 1} {body.public_key}\n")
        if isinstance(body, PolicyVersion):
            policy = body.text.encode()
    return {"public-keys.txt": "".join(keys).encode(), **({"policy.json": policy} if policy else {})}
