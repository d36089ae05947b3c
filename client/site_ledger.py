"""A site's ledger folder: the ledger with its keys and policy, what was released, and who withdrew.

    SiteLedger.create(folder, site="hospital-a")
    with SiteLedger.open(folder) as site:
        site.adopt(Path("policy.toml"))
        site.approve(study, domain="intake-2026", person="Name", key=key)
        released, note = site.release(study, ..., make=train)      # reserve -> make -> keep -> commit

    keys/  ledger.jsonl  head  policy.toml  outbox/  withdrawn.jsonl

Guarantees:
  - `make` runs after its reservation is durable, and what it returns is handed on after its commit is.
  - What is asked for one attempt alone is made once: another attempt is another release, with other coins.
  - Asked again for the same release (study, run, round, model) the same bytes come back and nothing is spent; after a
    crash or a failure a new one is made and charged, if the study's spare rounds still pay for it.
  - A patient who withdrew is out of every later release, of whatever domain, and is on the list before the ledger says
    that somebody did. Who it was stands in `withdrawn.jsonl` alone, which never leaves the site.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

from sottovoce.client import policy as policies
from sottovoce.client.secure_folder import SecureFolder
from sottovoce.common.errors import LedgerError
from sottovoce.common.files import write_whole
from sottovoce.common.keys import SigningKey, load_keys, new_keys
from sottovoce.common.ledger.entries import AnyCharge, Charge, DistributedCharge
from sottovoce.common.ledger.files import DiskFolder
from sottovoce.common.ledger.outbox import Outbox
from sottovoce.common.ledger.store import LEDGER_FILE, Ledger, Move
from sottovoce.common.ledger.terms import MODEL
from sottovoce.common.model_specs import kinds_of
from sottovoce.common.privacy.accountant import Event
from sottovoce.common.privacy.budget import Budget, Denied, Granted, PldAccountant, Request
from sottovoce.common.privacy.distributed_accountant import DistributedEvent
from sottovoce.common.privacy.of_study import counts_of, updates_of
from sottovoce.common.privacy_specs import USUAL_DELTA, NoPrivacy
from sottovoce.common.rosters import sound
from sottovoce.common.secagg.session import Roster
from sottovoce.common.study import Study
from sottovoce.common.sums import COUNTS, UPDATE, roster_digest

KEYS, POLICY_FILE, OUTBOX, WITHDRAWN_FILE = "keys", "policy.toml", "outbox", "withdrawn.jsonl"
SECURE = "secure"  # identity, rosters and marks of secure sums
MOST_TEXT = 300  # of one fact in an approval


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a coordinator asks of a site in a message: in which run (seed and fold), with which weights (digest)."""

    what: str
    run: str
    steps: int
    round: int
    model: str
    attempt: int | None = None  # of a secure sum whose vector is made anew, and charged, in each


@dataclass(frozen=True, kw_only=True)
class Released:
    """What may be sent, with the signed checkpoint that others hold as a witness."""

    data: bytes
    checkpoint: str


class SiteLedger:
    """An open ledger folder. It holds the ledger's lock until `close`."""

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self._folder, self.ledger = folder, ledger
        self._outbox = Outbox(folder / OUTBOX)
        self.budget = Budget(ledger, PldAccountant())  # burns what a crash left open
        releases = self.budget.state.releases
        self._outbox.forget_all_but(key for key, one in releases.items() if one.released is not None)

    @staticmethod
    def create(folder: Path, *, site: str) -> str:
        """Makes keys and an empty ledger, and returns the public key that others are to be told.

        Raises:
            LedgerError, KeyFileError: there is one already, or the folder cannot be written.
        """
        for name in (LEDGER_FILE, KEYS):
            if (folder / name).exists():
                raise LedgerError(
                    f"{folder}: expected a folder without a ledger; {name} is there. Nothing was touched."
                )
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # only the hospital's own account may look in
        signing, digest_key = new_keys(folder / KEYS)
        SecureFolder.create(folder / SECURE)
        with Ledger.create(DiskFolder(folder), site=site, key=signing, digest_key=digest_key):
            return signing.public_hex

    @classmethod
    def open(cls, folder: Path, *, move: Move | None = None, seen: Sequence[str] = ()) -> "SiteLedger":
        """Opens a folder made by `create`; reservations that a crash left open are burned.

        Raises:
            LedgerError, KeyFileError: it is damaged, copied, rolled back, in use, or none.
        """
        if not (folder / KEYS).is_dir():
            raise LedgerError(
                f"{folder}: expected a site's ledger folder; came none. Make one with `sottovoce ledger create`."
            )
        keys, digest_key = load_keys(folder / KEYS)
        ledger = Ledger.open(DiskFolder(folder), keys, digest_key, move=move, seen=seen)
        try:
            return cls(folder, ledger)
        except BaseException:
            ledger.close()
            raise

    def adopt(self, policy_file: Path) -> int:
        """Puts a policy file in force and keeps a copy; returns how many entries that took."""
        n_entries = policies.adopt(policies.load(policy_file), self.ledger)
        write_whole(self._folder / POLICY_FILE, policy_file.read_bytes())
        return n_entries

    def approve(
        self, study: Study, *, domain: str, person: str, key: SigningKey, roster: Roster | None = None
    ) -> Granted | Denied:
        """Reserves a whole study under a person's signature, or denies it.

        Raises:
            LedgerError: as `request`.
        """
        request = self.request(study, domain, roster)
        if roster is None or not study.sums_are_secure:
            return self.budget.approve_with(request, person=person, key=key)
        # The first one before the approval, so that no crash leaves an approval without; a later one only if granted.
        first = not self.secure.has_roster(study.digest())
        if first:
            self.secure.pin(study.digest(), roster)
        answer = self.budget.approve_with(request, person=person, key=key)
        if isinstance(answer, Granted) and not first:
            self.secure.pin(study.digest(), roster)
        return answer

    def request(self, study: Study, domain: str, roster: Roster | None = None) -> Request:
        """Returns what a person is asked to sign for: with secure sums also for who takes part, by their keys.

        Raises:
            LedgerError: a roster is missing, or does not name this site under its own identity.
        """
        request = request_of(study, domain)
        if not study.sums_are_secure:
            return request
        return replace(
            request, facts={**request.facts, "roster": roster_digest(self._checked(study, roster))}
        )

    @property
    def secure(self) -> SecureFolder:
        """Where this site's identity, rosters and marks of secure sums are."""
        return SecureFolder(self._folder / SECURE)

    def roster(self, study: Study) -> Roster:
        """Returns the roster of a study, the one that its approver signed for. Raises: LedgerError for another."""
        roster = self.secure.roster(study.digest())
        signed = self.budget.state.grants[self.grant(study)].approval.facts.get("roster")
        if signed != roster_digest(roster):
            raise LedgerError(
                "Expected the roster that was approved; another is in its place. Nothing is released."
            )
        return roster

    def _checked(self, study: Study, roster: Roster | None) -> Roster:
        if roster is None:
            raise LedgerError(
                "Expected a roster beside a study with secure sums: which sites take part, under which keys."
            )
        sound(roster)
        if len(roster.members) != study.federation.n_sites:
            raise LedgerError(
                f"Expected a roster of the study's {study.federation.n_sites} sites; came {len(roster.members)}."
            )
        if roster.key_of(self.budget.state.site) != self.secure.key.public_hex:
            raise LedgerError(
                f"Expected a roster that names {self.budget.state.site!r} under this site's identity "
                f"{self.secure.key.public_hex[:16]}…; it does not. Give the coordinator what "
                "`sottovoce ledger identity` prints."
            )
        return roster

    def rotate_key(self, *, person: str, reason: str) -> str:
        """Puts a new signing key in force and returns its public half. The old key stays beside it."""
        key = SigningKey.generate()
        key.save(self._folder / KEYS)  # durable before the entry that puts it in force
        self.ledger.rotate(key, person=person, reason=reason)
        return key.public_hex

    def withdraw(self, domain: str, patient: str) -> int:
        """Takes a patient out of all later training; returns how many of the domain have withdrawn."""
        opened = self.budget.state.domains.get(domain)
        if opened is None:
            raise LedgerError(f"Expected a domain of this ledger; {domain!r} is none.")
        gone = self.withdrawn(domain)
        if patient not in gone:
            self._write_withdrawn([*self._withdrawn_rows(), {"domain": domain, "patient": patient}])
            gone = self.withdrawn(domain)
        # A crash between the list and the ledger leaves a longer list: the entry is made up for here.
        while self.budget.state.domains[domain].withdrawals < len(gone):
            self.budget.withdraw(domain)
        return len(gone)

    def withdrawn(self, domain: str) -> frozenset[str]:
        """Returns the patients of a domain who withdrew. Private."""
        return frozenset(row["patient"] for row in self._withdrawn_rows() if row["domain"] == domain)

    def gone(self) -> frozenset[str]:
        """Returns everybody who withdrew, from whichever domain: for the sampler. Private."""
        return frozenset(row["patient"] for row in self._withdrawn_rows())

    def gone_mark(self) -> str:
        """Returns a mark of who withdrew, for names of files: another one after each withdrawal; "" for nobody.

        An HMAC under the site's key: a hash of a list of patients could be guessed.
        """
        gone = json.dumps(sorted(self.gone())).encode()
        return self.ledger.digest_key.digest("withdrawn", gone)[:32] if self.gone() else ""

    def grant(self, study: Study) -> int:
        """Returns the open grant of a study, the newest if there are several.

        Raises:
            LedgerError: nobody has approved the study here.
        """
        digest = study.digest()
        grants = self.budget.state.grants
        found = [index for index, one in grants.items() if one.approval.study == digest and not one.closed]
        if not found:
            raise LedgerError(
                f"Expected an approval of study {digest[:16]}… in this site's ledger; there is none. "
                "Use `sottovoce study approve`."
            )
        return max(found)

    def domain(self, grant: int) -> str:
        """Returns the privacy domain that a grant draws from."""
        return self.budget.state.grants[grant].approval.domain

    def release(
        self, study: Study, ask: Ask, *, manifest: bytes, make: Callable[[frozenset[str]], bytes]
    ) -> Released | Denied:
        """Answers one ask: the bytes of its committed release, or those of a new one that `make` computes.

        `make` is given the patients who withdrew. `manifest` says what it computes from; its HMAC is recorded.
        """
        grant = self.grant(study)
        name = f"{grant}.{ask.what}.{ask.run}.{ask.round}.{ask.model[:16]}"
        name += "" if ask.attempt is None else f".sum-{ask.attempt}"
        tried = [key for key in self.budget.state.releases if key.startswith(f"{name}.")]
        for key in tried:
            kept = self._outbox.get(key)
            if kept is not None and self.budget.may_resend(key, kept):
                return Released(data=kept, checkpoint=self.ledger.checkpoint())
        domain = self.domain(grant)
        key = f"{name}.{len(tried) + 1}"
        reserved = self.budget.reserve(
            release=key,
            grant=grant,
            what=ask.what,
            steps=ask.steps,
            round=ask.round,
            attempt=len(tried) + 1,
            manifest=manifest,
            withdrawals_honoured=min(
                len(self.withdrawn(domain)), self.budget.state.domains[domain].withdrawals
            ),
            model_in=ask.model,
        )
        if isinstance(reserved, Denied):
            return reserved
        try:
            data = make(self.gone())
            if ask.attempt is None:  # else never sent again: the bytes mean something in their attempt alone
                self._outbox.keep(key, data)
        except BaseException as error:
            self.budget.burn(key, f"training ended early: {type(error).__name__}")
            raise
        return Released(data=data, checkpoint=self.budget.commit(key, data))

    def close(self) -> None:
        """Gives the folder back."""
        self.ledger.close()

    def __enter__(self) -> "SiteLedger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _withdrawn_rows(self) -> list[dict[str, str]]:
        path = self._folder / WITHDRAWN_FILE
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            return [
                {"domain": str(row["domain"]), "patient": str(row["patient"])}
                for row in map(json.loads, lines)
            ]
        except (OSError, ValueError, KeyError, TypeError):
            # Training on somebody who withdrew is worse than not training.
            raise LedgerError(
                f"{WITHDRAWN_FILE} of this site is damaged; restore it. Nothing is released."
            ) from None

    def _write_withdrawn(self, rows: Sequence[dict[str, str]]) -> None:
        path = self._folder / WITHDRAWN_FILE
        text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
        try:
            write_whole(path, text.encode(), mode=0o600)
        except OSError as error:
            raise LedgerError(
                f"{WITHDRAWN_FILE} could not be written ({error.strerror}); nothing was recorded."
            ) from None


def request_of(study: Study, domain: str) -> Request:
    """Returns what a study asks of a site's budget; mode `none` asks to be allowed without any."""
    spec = study.privacy
    request = Request(
        study=study.digest(),
        domain=domain,
        purpose=study.purpose,
        purpose_reference=study.purpose_reference,
        mode="none",
        noise="secret",
        delta=USUAL_DELTA,
        charges=(),
        facts={"study": study.name, MODEL: " ".join(kinds_of(study.model)), **_groups(study)},
    )
    if isinstance(spec, NoPrivacy):
        return request
    return replace(
        request,
        mode=spec.mode,
        noise="seeded" if spec.seeded_noise else "secret",
        delta=spec.delta,
        charges=charges_of(study),
        sites_per_patient=spec.max_sites_per_patient,
    )


def _groups(study: Study) -> dict[str, str]:
    """Returns every group that evaluation tells apart, for the approver's signature; nothing where there are none.

    None is left out, whatever their number: what does not fit into one fact goes on in the next. A study bounds both
    the length of a name and of all together (`common/groups.py`).
    """
    parts: list[str] = []
    for name in study.tables.names[1:]:
        if parts and len(parts[-1]) + len(name) + 2 <= MOST_TEXT:
            parts[-1] += f"; {name}"
        else:
            parts.append(name)
    return {f"groups {number}" if number > 1 else "groups": part for number, part in enumerate(parts, 1)}


def charges_of(study: Study) -> tuple[AnyCharge, ...]:
    """Returns what a study will draw from a site's budget: its steps, spare rounds included, and its counts."""
    drawn = ((UPDATE, updates_of(study)), (COUNTS, counts_of(study)))
    return tuple(_charge(what, event) for what, event in drawn if event is not None)


def _charge(what: str, event: Event | DistributedEvent) -> AnyCharge:
    kind = Charge if isinstance(event, Event) else DistributedCharge
    return kind(what=what, **asdict(event))
