"""The doctor's look at public weights that the studies lying here name by their SHA-256.

Guarantees:
  - Nothing is downloaded, and no weights are read but to take their SHA-256.
"""

from sottovoce.client import doctor_keys
from sottovoce.client.findings import Findings, fail, warn
from sottovoce.client.home import Hospital
from sottovoce.client.offered import digests
from sottovoce.common.errors import LedgerError, WeightsError
from sottovoce.common.pretrained import find, looking_in
from sottovoce.common.study import load


def weights(hospital: Hospital) -> Findings:
    """Yields which weights are not on this machine: a failure where the study is approved."""
    approved = _approved(hospital)
    for digest in digests(hospital):
        study = load(hospital.study_file(digest))
        named = {(part.sha256, part.kind) for stream in study.streams for part in stream.encoders}
        for sha256, what in sorted(named):
            try:
                with looking_in(hospital.weights):
                    find(sha256, what=what)
            except WeightsError as error:
                cause, _, mend = str(error).partition(" they are in none. ")
                say = fail if digest in approved else warn
                yield say("weights", f"Study {digest[:16]}…: {cause} they are in none.", mend)


def _approved(hospital: Hospital) -> set[str]:
    try:
        grants = doctor_keys.state(hospital).grants.values()
    except LedgerError:
        return set()  # the ledger's own check says it
    return {grant.approval.study for grant in grants if not grant.closed}
