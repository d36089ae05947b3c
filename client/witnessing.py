"""A site as a witness of other sites' ledgers: it remembers what it saw, and signs only what extends that.

Guarantees:
  - What this site has cosigned it remembers durably before it signs, so no restart makes it sign a second history.
  - A checkpoint that does not extend what was seen is refused, and both signed notes are written to `forks/`: they
    prove to anybody what their signer did.
  - What a coordinator makes up fills no disk: evidence is kept up to `MAX_FORKS_BYTES`, the oldest stays, and at most
    `MAX_SITES` sites are remembered.
  - A site's identity is the one of its first checkpoint seen, and one of a roster that was approved here, where the
    site is in any; another one is refused until such a roster names it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from sottovoce.common.config import Interval, build, canonical
from sottovoce.common.consortium.statements import CheckpointStatement, holds, sha256
from sottovoce.common.errors import DeploymentError, LedgerError
from sottovoce.common.files import write_whole
from sottovoce.common.ledger.checkpoint import parse
from sottovoce.common.ledger.witness import witness
from sottovoce.common.rosters import roster_from
from sottovoce.common.secagg.session import MAX_SITES

MEMORY, FORKS = "witness.json", "forks"
MAX_MEMORY_BYTES = 4_000_000
MAX_FORKS_BYTES = 50_000_000

Hex = Annotated[str, Interval(64, 64)]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A site's checkpoint as it was shown: the note, its ledger's key, the identity's word (hexadecimal) for both."""

    identity: Hex
    note: Annotated[str, Interval(1, 1000)]
    ledger_key: Hex
    signature: Annotated[str, Interval(128, 128)]

    @property
    def size(self) -> int:
        """How long the ledger was."""
        return parse(self.note).checkpoint.size


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the coordinator shows of one site: its newest checkpoint, and steps that lead there from the one kept."""

    site: str
    newest: Seen
    steps: Sequence[tuple[Seen, Sequence[bytes]]]
    more: bool


@dataclass(frozen=True, kw_only=True)
class Fork:
    """A checkpoint that was refused, and where the evidence lies."""

    site: str
    reason: str
    evidence: Path


@dataclass(frozen=True, kw_only=True)
class _Memory:
    format: Literal[1]
    seen: Mapping[str, Seen]
    unsent: tuple[str, ...] = ()


class Memory:
    """What this site saw of the others. One process at a time: its caller holds a lock."""

    def __init__(self, run: Path, *, known: Mapping[str, frozenset[str]]) -> None:
        self._path, self._forks, self._known = run / MEMORY, run / FORKS, known
        found = self._read()
        self.seen, self._unsent = dict(found.seen), set(found.unsent)

    def judge(self, shown: Shown) -> Seen | Fork | None:
        """Returns what may be cosigned now, a fork, or None where there is nothing to. Remembers before it returns."""
        kept = self.seen.get(shown.site)
        try:
            newest = self._followed(shown, kept)
        except LedgerError as error:
            return self._refused(shown, kept, str(error))
        if newest == kept:
            return newest if shown.site in self._unsent else None
        self.seen[shown.site] = newest
        self._unsent.add(shown.site)
        self._write()
        return newest

    def sent(self, site: str) -> None:
        """Notes that the coordinator has the cosignature of what was seen of a site."""
        self._unsent.discard(site)
        self._write()

    def _write(self) -> None:
        memory = _Memory(format=1, seen=self.seen, unsent=tuple(sorted(self._unsent)))
        write_whole(self._path, canonical(memory).encode())

    def _followed(self, shown: Shown, kept: Seen | None) -> Seen:
        kept = self._of_same_identity(shown, kept)
        _check_word(shown.site, shown.newest)
        if kept is None:
            if shown.site not in self.seen and len(self.seen) >= MAX_SITES:
                raise LedgerError(f"Expected at most {MAX_SITES} sites; the coordinator shows more.")
            witness(None, shown.newest.note, (), shown.newest.ledger_key)
            return shown.newest
        here = kept
        for step, proof in shown.steps:
            named = replace(step, identity=kept.identity)
            _check_word(shown.site, named)
            witness(here.note, named.note, proof, named.ledger_key)
            here = named
        if shown.more:
            return here
        if here.note != shown.newest.note:
            raise LedgerError(
                f"Expected a proof that the ledger of {shown.newest.size} entries extends the {here.size} seen before; "
                "came none that leads there. It was rolled back or rewritten, or the coordinator withholds the proof."
            )
        return here

    def _of_same_identity(self, shown: Shown, kept: Seen | None) -> Seen | None:
        """Returns what was seen under the identity that is shown now; None where a person let it begin anew."""
        came, known = shown.newest.identity, self._known.get(shown.site)
        if kept is not None and came == kept.identity:
            return kept
        if known is None and kept is None:
            return None
        if known is None or came not in known:
            raise LedgerError(
                f"Expected {shown.site!r} under the identity that is known here; came {came[:16]}…. If it enrolled "
                "anew, by its own word, approve a roster that names it so."
            )
        return None

    def _refused(self, shown: Shown, kept: Seen | None, reason: str) -> Fork:
        self._forks.mkdir(exist_ok=True, mode=0o700)
        evidence = {
            "site": shown.site,
            "reason": reason,
            "kept": None if kept is None else asdict(kept),
            "shown": asdict(shown.newest),
            "steps": [{**asdict(step), "proof": [one.hex() for one in proof]} for step, proof in shown.steps],
        }
        text = json.dumps(evidence, sort_keys=True, indent=1).encode()
        # Named by what was shown: the same refusal at every look is one file.
        path = self._forks / f"{_file_name(shown.site)}-{sha256(text)[:16]}.json"
        room = MAX_FORKS_BYTES - sum(one.stat().st_size for one in self._forks.iterdir())
        if not path.exists() and len(text) <= room:
            write_whole(path, text)
        return Fork(site=shown.site, reason=reason, evidence=path)

    def _read(self) -> _Memory:
        if not self._path.exists():
            return _Memory(format=1, seen={})
        problems: list[str] = []
        try:
            found = build(_Memory, json.loads(self._path.read_bytes()[:MAX_MEMORY_BYTES]), "", problems)
        except (OSError, ValueError, RecursionError):
            found = None
        if found is None:  # to begin anew in silence would let a fork through
            raise DeploymentError(
                f"{self._path}: what this site saw of other ledgers is damaged. Restore it from a backup; if there is "
                "none, remove it, and tell the other sites that you begin anew as a witness."
            )
        return found


def _check_word(site: str, seen: Seen) -> None:
    said = CheckpointStatement(site=site, ledger_key=seen.ledger_key, note=seen.note)
    if not holds(said, bytes.fromhex(seen.signature), seen.identity):
        raise LedgerError(f"Expected a checkpoint with the word of {site!r} for it; came another.")


def _file_name(site: str) -> str:
    return "".join(sign if sign.isalnum() else "_" for sign in site)


def known_identities(rosters: Path) -> Mapping[str, frozenset[str]]:
    """Returns each site's identities in the rosters that this hospital's approvers pinned."""
    found: dict[str, frozenset[str]] = {}
    for path in sorted(rosters.glob("*.json")):
        for member in roster_from(path.read_bytes()).members:
            found[member.site] = found.get(member.site, frozenset()) | {member.public_key}
    return found
