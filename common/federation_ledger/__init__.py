"""A coordinator's own record of every attempt at every secure sum of a federation: append-only, chained, signed.

    with FederationLedger.create(path, key=key, roster=roster, study=digest, name="demo") as ledger:
        ledger.opened(session, what="update", event=event)      # before the opening is sent
        ledger.spent(session, dealers=dealers)                  # before anybody is asked for a masked vector
        ledger.summed(session, ...)                             # or: ledger.abandoned(session, ...)

    report = read_federation(path.read_bytes(), coordinator_key=key.public_hex)
    compare_with_site(report, entries_of_a_site)

`store` writes it, `reading` judges it, `compare` holds it against a site's own ledger; `entries` are its lines and
`rules` what may follow what. All of it is public: sites, keys, survivor sets, signatures, digests, bytes.

What it proves: under the coordinator's signature, these attempts; under the sites', who was in each sum. What it
cannot: that no attempt was left out. Each site's ledger can, which has a reservation for every vector that the site
masked: `compare`.
"""

from sottovoce.common.federation_ledger.reading import Report, read_federation
from sottovoce.common.federation_ledger.store import FederationLedger

__all__ = ["FederationLedger", "Report", "read_federation"]
