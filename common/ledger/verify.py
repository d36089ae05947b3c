"""Judges a ledger without trusting the site: is it whole, is it this site's, did it keep its own rules?

Each line is judged by steps 1 to 5 (`reader.py`), the whole by 6 to 10:

 1. Form: a line of the one format, whose entry is in its one encoding.
 2. Chain: the next index, naming the hash of the entry before.
 3. Time: never before the entry before.
 4. Rules: an entry that may come next, signatures of persons and new keys included.
 5. Signature: the site's key in force signed the Merkle root of everything up to here.
 6. Identity: the first key is the one that the auditor was given.
 7. Head: the newest checkpoint beside the ledger is that of its last entry.
 8. Seen: every checkpoint that others hold is contained (else: rolled back, rewritten, or two ledgers).
 9. Policy: the policy file is the one in force.
10. Attention: what no rule forbids and a person should look at; caps raised after spending first.

Guarantees:
  - `verify` never raises, whatever the bytes; what is wrong is a finding with its step and entry.
  - Any change of any byte of the ledger, its head or its policy is found at the entry or file where it is,
    except a cut at the end together with the head, and a rewriting with the site's own key; step 8 finds
    both, from a later checkpoint.
  - No figure is believed here: `recompute` computes them again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sottovoce.common.config import as_plain
from sottovoce.common.errors import LedgerError
from sottovoce.common.ledger import checkpoint as checkpoints
from sottovoce.common.ledger.entries import (
    Approval,
    Burn,
    CapChange,
    Denial,
    Entry,
    KeyRotation,
    Moved,
    Recovery,
    Withdrawal,
)
from sottovoce.common.ledger.reader import LineRefused, Reader, lines_of

STEPS = {
    1: "form: every line in the one format and encoding",
    2: "chain: every entry names the one before",
    3: "time: never backwards",
    4: "rules: every entry was allowed where it stands",
    5: "signatures: the key in force signed every entry",
    6: "identity: the first key is the expected one",
    7: "head: the newest checkpoint is of the last entry",
    8: "seen: checkpoints that others hold are contained",
    9: "policy: the policy file is the one in force",
    10: "attention: what a person should look at",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something wrong (steps 1 to 9), or something to look at (step 10), and where: an entry or a file."""

    step: int
    where: str
    what: str
    entry: int | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of a verification. `ok`: nothing is wrong; `attention` may still want a person."""

    n_entries: int
    instance: str
    site: str
    root: str
    findings: tuple[Finding, ...]
    attention: tuple[Finding, ...]
    pinned: bool
    n_seen: int
    policy_given: bool

    @property
    def ok(self) -> bool:
        """Says whether nothing is wrong."""
        return not self.findings

    def naming(self, seen: Sequence[object]) -> "Verdict":
        """Returns the verdict with the names that people know their checkpoints by, in the order they were given."""
        names = {f"checkpoint {number}": str(name) for number, name in enumerate(seen)}
        named = (replace(finding, where=names.get(finding.where, finding.where)) for finding in self.findings)
        return replace(self, findings=tuple(named))

    def plain(self) -> dict[str, Any]:
        """Returns the verdict as plain data, steps with their results included."""
        failed = {finding.step for finding in self.findings}
        reached = min(failed) if failed & set(range(1, 6)) else None
        steps = [
            {"step": step, "what": what, "result": self._result(step, failed, reached)}
            for step, what in STEPS.items()
        ]
        table: dict[str, Any] = as_plain(self)
        return {"ok": self.ok, "steps": steps, **table}

    def _result(self, step: int, failed: set[int], reached: int | None) -> str:
        if step == 10:
            return f"{len(self.attention)} to look at"
        if step in failed:
            return "FAILED"
        if step == 6 and not self.pinned:
            return "not asked: no public key was given"
        if step == 8 and not self.n_seen:
            return "not asked: no checkpoint was given"
        if step == 9 and not self.policy_given:
            return "not asked: no policy was given"
        if step in (7, 9) and reached is not None:
            return f"not judged: the ledger breaks off at entry {self.n_entries}"
        # A line is refused at the first step that fails; later lines were not judged.
        return "passed" if reached is None else f"passed for the first {self.n_entries} entries"


def verify(
    ledger: bytes,
    *,
    head: str | None = None,
    seen: Sequence[str] = (),
    public_key: str | None = None,
    policy: str | None = None,
) -> Verdict:
    """Judges a ledger's bytes. `policy` is the canonical text of a policy file; `seen` are signed checkpoints."""
    reader, findings, attention = Reader(), [], _Attention()
    for index, line in enumerate(lines_of(ledger)):  # 1 to 5
        try:
            entry = reader.take(line)
        except LineRefused as refusal:
            what = f"{refusal}{_TORN if _covers_all(reader, head) else ''}"
            findings.append(Finding(step=refusal.step, where=f"entry {index}", entry=index, what=what))
            break
        attention.take(reader, entry)
    if not reader.hashes and not findings:
        findings.append(Finding(step=1, where="entry 0", entry=0, what="expected a ledger; it is empty"))
    findings += _identity(reader, public_key)  # 6
    whole = not any(finding.step <= 5 for finding in findings)
    if whole:  # a ledger that breaks off has another head, and says so once
        findings += _head(reader, head)  # 7
    for number, note in enumerate(seen):  # 8
        findings += _seen(reader, note, f"checkpoint {number}")
    if policy is not None and whole:  # 9
        findings += _policy(attention.policy_text, policy)
    return Verdict(
        n_entries=reader.state.size,
        instance=reader.state.instance,
        site=reader.state.site,
        root=reader.frontier.root().hex(),
        findings=tuple(findings),
        attention=attention.ordered(),  # 10
        pinned=public_key is not None,
        n_seen=len(seen),
        policy_given=policy is not None,
    )


def entries_of(ledger: bytes) -> list[Entry]:
    """Returns the entries of a ledger that is whole. Raises: LedgerError at the first line that is not."""
    reader, entries = Reader(), []
    for index, line in enumerate(lines_of(ledger)):
        try:
            entries.append(reader.take(line, check_signature=False))
        except LineRefused as refusal:
            raise LedgerError(f"The ledger cannot be believed from entry {index} on: {refusal}.") from None
    return entries


def _identity(reader: Reader, public_key: str | None) -> Iterator[Finding]:
    first = reader.signers[0] if reader.signers else ""
    if public_key is not None and first and first != public_key:
        what = f"expected the key {public_key[:16]}…; the ledger began with {first[:16]}…"
        yield Finding(step=6, where="entry 0", entry=0, what=what)


def _head(reader: Reader, head: str | None) -> Iterator[Finding]:
    if head is None:
        yield Finding(
            step=7, where="head", what="expected the newest checkpoint beside the ledger; none came"
        )
        return
    try:
        note = checkpoints.parse(head)
    except LedgerError as error:
        yield Finding(step=7, where="head", what=str(error))
        return
    size, had = reader.state.size, note.checkpoint.size
    if had > size:
        what = f"the ledger ends after {size} entries; its head says that it had {had}"
        yield Finding(step=7, where=f"entry {size}", entry=size, what=what)
    elif had < size and reader.has(note):
        what = (
            f"the head covers {had} of {size} entries; the site's next start mends it, if the rest is its own"
        )
        yield Finding(step=7, where="head", what=what)
    elif not reader.has(note):
        yield Finding(step=7, where="head", what="the head is not the checkpoint of the last entry")


# A crash in mid-write leaves this. So does whoever appends something, and wins nothing by it.
_TORN = "; the head covers all before, so nothing was done with it: the site's next start cuts it away"


def _covers_all(reader: Reader, head: str | None) -> bool:
    """Says whether the head is the checkpoint of all that could be read."""
    try:
        note = checkpoints.parse(head or "")
    except LedgerError:
        return False
    return note.checkpoint.size == reader.state.size and reader.has(note)


def _seen(reader: Reader, text: str, where: str) -> Iterator[Finding]:
    try:
        note = checkpoints.parse(text)
    except LedgerError as error:
        yield Finding(step=8, where=where, what=str(error))
        return
    point, size = note.checkpoint, reader.state.size
    if point.instance != reader.state.instance:
        yield Finding(step=8, where=where, what="this checkpoint is of another ledger")
    elif point.size > size:
        known = any(map(note.signed_by, set(reader.signers) | {reader.state.public_key}))
        what = f"the ledger had {point.size} entries and has {size}: it was rolled back"
        doubt = "" if known else " (or the checkpoint is forged: its key is not known here)"
        yield Finding(step=8, where=f"entry {size}", entry=size, what=what + doubt)
    elif not reader.has(note):
        what = f"the first {point.size} entries are not those of this checkpoint: rewritten, or a forged checkpoint"
        yield Finding(step=8, where=where, what=what)


def _policy(in_force: str | None, policy: str) -> Iterator[Finding]:
    if in_force is None or policy != in_force:
        yield Finding(step=9, where="policy", what="the policy file is not the policy in force")


class _Attention:
    """Collects what a person should look at, most important first."""

    def __init__(self) -> None:
        self._found: list[tuple[int, Finding]] = []
        self.policy_text: str | None = None

    def take(self, reader: Reader, entry: Entry) -> None:
        body, index = entry.body, entry.index
        if body.kind == "policy":
            self.policy_text = body.text
        if entry.clock_behind_seconds is not None:
            self._add(5, index, f"the clock had jumped back by {entry.clock_behind_seconds:.0f} s")
        match body:
            case CapChange() if body.after > body.before:
                spent = bool(reader.state.spent(body.domain))
                when = "AFTER SPENDING" if spent else "before any spending"
                self._add(
                    0 if spent else 4,
                    index,
                    f"cap of {body.domain!r} raised from {body.before:g} to {body.after:g} {when}, "
                    f"by {body.person}: {body.reason}",
                )
            case CapChange():
                self._add(6, index, f"cap of {body.domain!r} lowered from {body.before:g} to {body.after:g}")
            case Approval() if body.mode == "none":
                self._add(1, index, "a study in mode 'none' was allowed: NOT PRIVATE")
            case Approval() if body.noise == "seeded":
                self._add(1, index, "a study with seeded noise was allowed: SIMULATED NOISE, NOT PRIVATE")
            case Moved():
                self._add(2, index, f"the ledger was moved or restored, says {body.person}: {body.reason}")
            case KeyRotation():
                self._add(3, index, f"the signing key was changed by {body.person}: {body.reason}")
            case Recovery():
                self._add(5, index, f"{body.cut_bytes} bytes of a torn, unacknowledged record were cut away")
            case Burn():
                self._add(6, index, f"release {body.release!r} was burned: {body.reason}")
            case Denial():
                self._add(7, index, f"the site said no: {body.reason}")
            case Withdrawal():
                self._add(7, index, f"a patient of {body.domain!r} withdrew consent")
            case _:
                pass

    def ordered(self) -> tuple[Finding, ...]:
        return tuple(finding for _, finding in sorted(self._found, key=lambda found: found[0]))

    def _add(self, rank: int, index: int, what: str) -> None:
        self._found.append((rank, Finding(step=10, where=f"entry {index}", entry=index, what=what)))
