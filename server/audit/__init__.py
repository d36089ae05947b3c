"""The auditor's view: audit.html and audit.json, from a ledger's files alone, on the pyramid of NIST SP 800-226.

    top      epsilon and the unit            what is promised, what was spent, of what cap
    middle   what can undermine it           algorithms and accounting, utility, randomness, side channels
    base     what it rests on                trust model, security, data exposure

    write_audit(Path("runs/demo"), out=Path("audit"))

Guarantees:
  - The page is one file: no script, no reference to anything outside; every text of a ledger is escaped.
  - A damaged ledger gives a page that says FAILED, with everything that could be read.
  - The same files, options and version give the same bytes; no date and no path of this machine is in them.
  - Nothing of the ledger's figures is believed: each is computed again and compared.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sottovoce.common.errors import LedgerError
from sottovoce.common.files import write_whole

if TYPE_CHECKING:
    from rich.console import Group

    from sottovoce.server.audit.whole import Audit

HTML_FILE, JSON_FILE = "audit.html", "audit.json"


@dataclass(frozen=True, kw_only=True)
class Written:
    """What came of an audit, and where it lies. `document` is the text of audit.json."""

    audit: "Audit"
    document: str
    page: Path

    @property
    def ok(self) -> bool:
        """Says whether everything that was asked has passed."""
        return self.audit.ok


def write_audit(
    path: Path, *, out: Path | None = None, public_key: str | None = None, seen: Sequence[Path] = ()
) -> Written:
    """Judges a ledger's folder or a run, and writes audit.html and audit.json; into that folder by default.

    Raises:
        LedgerError: `path` is neither, a checkpoint or key cannot be used, or nothing can be written.
    """
    from sottovoce.server.audit.document import plain
    from sottovoce.server.audit.page import render
    from sottovoce.server.audit.sources import find, folder_of, read_seen
    from sottovoce.server.audit.whole import audit

    source = find(path)
    found = audit(source, public_key=public_key, seen=read_seen(seen))
    document = json.dumps(plain(found), indent=1, sort_keys=True, allow_nan=False) + "\n"
    folder = out or folder_of(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / JSON_FILE, document.encode())
        write_whole(folder / HTML_FILE, render(found).encode("utf-8", errors="replace"))
    except OSError as error:
        raise LedgerError(
            f"{folder}: the audit cannot be written there ({error.strerror}). Give another folder with --out."
        ) from None
    return Written(audit=found, document=document, page=folder / HTML_FILE)


def terminal(written: Written) -> "Group":
    """Returns an audit as a terminal shows it: is it valid, how much of what cap, what is weak, where to read on."""
    from sottovoce.server.audit.closing import closing

    return closing(written.audit, written.page)
