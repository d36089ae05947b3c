"""What an audit finds in all it was given: one ledger, or every ledger of a run and what they come to together.

Guarantees:
  - `ok` needs every ledger; a run's needs also that no ledger is missing and that run.json says nothing else.
  - Ledgers with equal facts are one group, and the worst group comes first.
  - What the models of a run cost together, if all of them are published, is one composition over all cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from sottovoce.common.errors import LedgerError
from sottovoce.common.keys import public_key_from
from sottovoce.common.ledger.checkpoint import parse
from sottovoce.common.ledger.entries import AnyCharge
from sottovoce.common.ledger.reader import LineRefused, Reader, lines_of
from sottovoce.common.ledger.rule import Accountant, merged
from sottovoce.common.ledger.state import State
from sottovoce.common.privacy.budget import PldAccountant
from sottovoce.server.audit.document import NO_ANSWER, audit_ledger
from sottovoce.server.audit.facts import NOT_PRIVATE, SIMULATED, CapRaise, DomainFacts, LedgerFacts
from sottovoce.server.audit.sources import LedgerFiles, RunSource, Seen
from sottovoce.server.audit.words import guarantee

PAID_ARM = "federated"


@dataclass(frozen=True, kw_only=True)
class Together:
    """One site's patients over all cells of a run: `spent` is their epsilon if every cell's models are published."""

    site: str
    cells: int
    delta: float
    spent: float


@dataclass(frozen=True, kw_only=True)
class RunPart:
    """What is said of a run as a whole."""

    name: str
    study: str | None
    run_stamp: str | None
    findings: tuple[str, ...]
    cells: tuple[str, ...]
    sites: tuple[str, ...]
    together: tuple[Together, ...]
    uar: tuple[float, float | None, float | None] | None


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The whole document, as audit.json holds it."""

    format: int
    kind: str
    name: str
    ok: bool
    stamp: str | None
    made_by: str
    in_plain_language: tuple[str, ...]
    caps_raised_after_spending: tuple[CapRaise, ...]
    run: RunPart | None
    ledgers: tuple[LedgerFacts, ...]


def audit(
    source: LedgerFiles | RunSource,
    *,
    accountant: Accountant | None = None,
    public_key: str | None = None,
    seen: Sequence[Seen] = (),
) -> Audit:
    """Judges what was found.

    Raises:
        KeyFileError: a public key that is none.
        LedgerError: a public key for a run, whose ledgers have a key each.
    """
    accountant = accountant or PldAccountant()
    public_key = None if public_key is None else public_key_from(public_key)
    if isinstance(source, LedgerFiles):
        facts = audit_ledger(source, accountant=accountant, public_key=public_key, seen=seen)
        return _audit("ledger", source.name, (facts,), None)
    if public_key is not None:
        raise LedgerError(
            "--public-key: expected it with one ledger; each ledger of a run has a key of its own. "
            "Give the folder of one site, RUN/ledgers/CELL/SITE."
        )
    return _audit_run(source, accountant, seen)


def groups(ledgers: Sequence[LedgerFacts]) -> list[list[LedgerFacts]]:
    """Returns ledgers with equal facts together, the worst first."""
    found: dict[str, list[LedgerFacts]] = {}
    for ledger in ledgers:
        found.setdefault(_sameness(ledger), []).append(ledger)
    return sorted(found.values(), key=lambda group: _badness(group[0]), reverse=True)


def headline(ledgers: Sequence[LedgerFacts]) -> DomainFacts | None:
    """Returns the domain that has spent most; one without a figure counts as more than any."""
    domains = [domain for ledger in ledgers for domain in ledger.domains]
    return max(domains, key=_spent, default=None)


def _audit(kind: str, name: str, ledgers: tuple[LedgerFacts, ...], run: RunPart | None) -> Audit:
    stamps = {ledger.stamp for ledger in ledgers}
    stamp = (
        NOT_PRIVATE if NOT_PRIVATE in stamps or not ledgers else SIMULATED if SIMULATED in stamps else None
    )
    ordered = [group[0] for group in groups(ledgers)]
    return Audit(
        format=1,
        kind=kind,
        name=name,
        ok=bool(ledgers) and all(ledger.ok for ledger in ledgers) and not (run and run.findings),
        stamp=stamp,
        made_by=f"sottovoce {metadata.version('sottovoce')}",
        in_plain_language=guarantee(
            ordered[0] if ordered else None,
            n_ledgers=len(ledgers),
            n_findings=len(run.findings) if run else 0,
        ),
        caps_raised_after_spending=tuple(
            raised for ledger in ledgers for raised in ledger.caps_raised_after_spending
        ),
        run=run,
        ledgers=ledgers,
    )


def _audit_run(source: RunSource, accountant: Accountant, seen: Sequence[Seen]) -> Audit:
    notes, findings = _by_instance(source.ledgers, seen)
    ledgers = tuple(
        audit_ledger(files, accountant=accountant, seen=notes[number])
        for number, files in enumerate(source.ledgers)
    )
    part = RunPart(
        name=source.name,
        study=source.facts.study_digest if source.facts else None,
        run_stamp=source.facts.stamp if source.facts else None,
        findings=(*source.problems, *findings, *_contradictions(source, ledgers)),
        cells=tuple(sorted({ledger.cell or "" for ledger in ledgers})),
        sites=tuple(sorted({ledger.name for ledger in ledgers})),
        together=_together(source.ledgers, ledgers, accountant),
        uar=source.uar,
    )
    return _audit("run", source.name, ledgers, part)


def _by_instance(ledgers: Sequence[LedgerFiles], seen: Sequence[Seen]) -> tuple[list[list[Seen]], list[str]]:
    """Gives each checkpoint to the ledger that it names; one that names none is a finding."""
    instances = [_state(files).instance for files in ledgers]
    given: list[list[Seen]] = [[] for _ in ledgers]
    findings = []
    for one in seen:
        instance = parse(one.note).checkpoint.instance  # read_seen has checked the form
        if instance in instances:
            given[instances.index(instance)].append(one)
        else:
            findings.append(f"{one.name}: expected a checkpoint of a ledger of this run; it is of another")
    return given, findings


def _contradictions(source: RunSource, ledgers: Sequence[LedgerFacts]) -> list[str]:
    """What run.json says and the ledgers do not bear out."""
    facts = source.facts
    if facts is None:
        return []
    if not ledgers:
        private = not facts.stamp.startswith(NOT_PRIVATE)
        return ["run.json states a privacy figure, and the run has no ledger"] if private else []
    there = {(ledger.cell, ledger.name) for ledger in ledgers}
    cells = [f"seed{one.seed}-fold{one.fold}-{one.arm}" for one in facts.cells if one.arm == PAID_ARM]
    found = [
        f"expected a ledger of site {site.site} in cell {cell}; there is none"
        for cell in cells
        for site in facts.sites
        if (cell, site.site) not in there
    ]
    for ledger in ledgers:
        if ledger.studies and facts.study_digest not in {study.study for study in ledger.studies}:
            found.append(f"{ledger.folder}: expected an approval of the run's study; there is none")
        if ledger.stamp and NOT_PRIVATE not in facts.stamp:
            found.append(f"{ledger.folder}: {ledger.stamp}; run.json says otherwise")
    return found


def _together(
    files: Sequence[LedgerFiles], ledgers: Sequence[LedgerFacts], accountant: Accountant
) -> tuple[Together, ...]:
    """Composes what each site spent over all cells; at the smallest delta of its domains."""
    spent: dict[str, list[AnyCharge]] = {}
    cells: dict[str, set[str]] = {}
    delta: dict[str, float] = {}
    for one, facts in zip(files, ledgers, strict=True):
        state = _state(one)
        if any(state.without_noise(name) for name in state.domains):
            return ()
        for name, domain in state.domains.items():
            spent.setdefault(one.name, []).extend(state.spent(name))
            cells.setdefault(one.name, set()).add(facts.cell or "")
            delta[one.name] = min(delta.get(one.name, 1.0), domain.opened.delta)
    try:
        return tuple(
            Together(
                site=site,
                cells=len(cells[site]),
                delta=delta[site],
                spent=accountant.epsilon(merged(charges), delta[site]) if charges else 0.0,
            )
            for site, charges in sorted(spent.items())
        )
    except NO_ANSWER:
        return ()  # the ledger whose figures cannot be computed has failed already


def _state(files: LedgerFiles) -> State:
    """The account of a ledger up to its first damage. Judges nothing: `audit_ledger` does."""
    reader = Reader()
    for line in lines_of(files.ledger):
        try:
            reader.take(line, check_signature=False)
        except LineRefused:
            break
    return reader.state


def _sameness(ledger: LedgerFacts) -> str:
    """Equal texts for ledgers that tell the same story; names, keys, hashes and times may differ."""
    story = (
        ledger.ok,
        ledger.stamp,
        ledger.problems,
        ledger.domains,
        [(one.epsilon, one.epsilon_spent, one.delta, one.charges, one.rounds) for one in ledger.studies],
        [(one["where"], one["what"]) for one in ledger.verification["findings"]],
        [one["what"] for one in ledger.verification["attention"]],
    )
    return repr(story)


def _badness(ledger: LedgerFacts) -> tuple[bool, bool, bool, float]:
    top = headline([ledger])
    return (
        not ledger.ok,
        bool(ledger.caps_raised_after_spending),
        ledger.stamp is not None,
        _spent(top) if top else 0.0,
    )


def _spent(domain: DomainFacts) -> float:
    return float("inf") if domain.spent is None else domain.spent
