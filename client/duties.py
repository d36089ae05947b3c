"""What a hospital's agent does at the consortium while it trains: renew, fetch, hand in, witness.

    run_agent(hospital, chores=duties_of(hospital))

Guarantees:
  - An approval that stands in the ledger reaches the coordinator in the end, whenever the line was down.
  - The ledger is read again only when it has grown.
"""

from sottovoce.client.chores import Chore
from sottovoce.client.consortium import ConsortiumClient
from sottovoce.client.home import Hospital
from sottovoce.common.errors import LedgerError
from sottovoce.common.ledger.entries import Approval
from sottovoce.common.ledger.reading import newest_checkpoint, read_ledger, readable_entries

RENEW_SECONDS, OFFER_SECONDS, LEDGER_SECONDS, WITNESS_SECONDS = 5.0, 20.0, 30.0, 60.0


def duties_of(hospital: Hospital, client: ConsortiumClient | None = None) -> tuple[Chore, ...]:
    """Returns a hospital's chores; they share one connection, since one thread does them all."""
    duties = _Duties(hospital, client or ConsortiumClient(hospital))
    return (
        Chore(name="renew the certificate", period_seconds=RENEW_SECONDS, work=duties.renew),
        Chore(name="fetch offers, hand in approvals", period_seconds=OFFER_SECONDS, work=duties.offers),
        Chore(name="hand in the ledger's checkpoint", period_seconds=LEDGER_SECONDS, work=duties.checkpoint),
        Chore(name="witness other ledgers", period_seconds=WITNESS_SECONDS, work=duties.witness),
    )


class _Duties:
    """The client, and what was handed in last."""

    def __init__(self, hospital: Hospital, client: ConsortiumClient) -> None:
        self._hospital, self._client = hospital, client
        self._handed_in = ""

    def renew(self) -> None:
        """Renews the certificate where it is time; else it only looks at a file."""
        self._client.renew()

    def offers(self) -> None:
        """Tells the coordinator of approvals that it has not heard of, and fetches studies that are new."""
        waiting = [one.study for one in self._client.offers() if one.decision != "approved"]
        if waiting:
            approved = _approved(self._hospital)
            for digest in waiting:
                if digest in approved:
                    self._client.send_approval(digest, "approved")
        self._client.fetch_all()  # last: it raises where one of them cannot be kept

    def checkpoint(self) -> None:
        """Hands in the newest checkpoint, if it is another than the last one."""
        newest = newest_checkpoint(read_ledger(self._hospital.ledger))
        if newest != self._handed_in:
            self._client.send_checkpoint()
            self._handed_in = newest

    def witness(self) -> None:
        """Looks at the other sites' ledgers. Raises: LedgerError for one that was refused, so that it is reported."""
        if forks := self._client.witness().forks:
            raise LedgerError(
                " ".join(
                    f"REFUSED the ledger of {one.site!r}: {one.reason} Evidence: {one.evidence}."
                    for one in forks
                )
            )


def _approved(hospital: Hospital) -> frozenset[str]:
    entries, _ = readable_entries(read_ledger(hospital.ledger).ledger)
    return frozenset(one.body.study for one in entries if isinstance(one.body, Approval))
