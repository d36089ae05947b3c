"""The empirical audit: what somebody who tries can find out of what leaves a site, beside what is claimed.

    written = write_empirical_audit(Path("study.toml"), out=Path("audit"), data={})

Two parts. `one_run` puts canary patients through the whole private path and turns right guesses into a lower bound on
epsilon, beside the claim and beside the most that it could have proved. The attacks that matter for voices (`sex`,
`linking`, `membership`) are tried on public voices with and without the study's privacy.

An audit can disprove a claim; it never proves one. That is the accounting's work, and the exact tests'.

Guarantees:
  - Canaries are numbers from a formula, and attacked voices are embedded or published: anything else is refused.
  - Seeds of the audit are fixed and stated. The seeds of a study's noise are not among them.
  - audit-empirical.html is one file: no script, no reference to anything outside; every name is escaped.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sottovoce.common.errors import RunError
from sottovoce.common.files import write_whole
from sottovoce.common.progress import OnEvent, silent

if TYPE_CHECKING:
    from rich.console import Group

HTML_FILE, JSON_FILE = "audit-empirical.html", "audit-empirical.json"


@dataclass(frozen=True, kw_only=True)
class Written:
    """What came of an audit, as audit-empirical.json holds it, and where the page lies."""

    document: Mapping[str, Any]
    page: Path

    @property
    def ok(self) -> bool:
        """Says whether no claim was disproved."""
        return not self.document["canaries"]["alarm"]

    @property
    def text(self) -> str:
        """Returns audit-empirical.json."""
        return json.dumps(self.document, indent=1, allow_nan=False) + "\n"


def write_empirical_audit(
    study_file: Path,
    *,
    out: Path | None = None,
    data: Mapping[str, Path],
    n_canaries: int | None = None,
    attacks: bool = True,
    workers: int = 1,
    on_event: OnEvent = silent,
) -> Written:
    """Audits a study and writes audit-empirical.html and .json, into `runs/NAME-audit` by default.

    Raises:
        PrivacyError: the study promises nothing.
        CorpusError: the attacks were asked for and the recordings are not public.
        RunError: nothing can be written.
    """
    from sottovoce.common.study import load
    from sottovoce.simulations.audit.document import audit, plain
    from sottovoce.simulations.audit.page import render

    study = load(study_file)
    found = audit(study, data, n_canaries=n_canaries, attacks=attacks, workers=workers, on_event=on_event)
    document = plain(found)
    folder = out or Path("runs") / f"{study.name}-audit"
    written = Written(document=document, page=folder / HTML_FILE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / JSON_FILE, written.text.encode())
        write_whole(folder / HTML_FILE, render(document).encode("utf-8", errors="replace"))
    except OSError as error:
        raise RunError(
            f"{folder}: the audit cannot be written there ({error.strerror}). Give another folder with --out."
        ) from None
    return written


def terminal(written: Written) -> "Group":
    """Returns an audit as a terminal shows it."""
    from sottovoce.simulations.audit.closing import closing

    return closing(written.document, written.page)
