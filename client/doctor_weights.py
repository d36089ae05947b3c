"""The doctor's look at public weights that the studies lying here name by their SHA-256.

Guarantees:
  - Nothing is downloaded, and no weights are read but to take their SHA-256; of an initial file the signature too.
"""

from collections.abc import Iterator

from sottovoce.client import doctor_keys
from sottovoce.client.findings import Findings, fail, warn
from sottovoce.client.home import Hospital
from sottovoce.client.offered import digests
from sottovoce.common.errors import LedgerError, WeightsError
from sottovoce.common.pretrained import find, looking_in
from sottovoce.common.study import Study, load
from sottovoce.common.transfer import public_figures


def weights(hospital: Hospital) -> Findings:
    """Yields which weights are not on this machine: a failure where the study is approved."""
    approved = _approved(hospital)
    for digest in digests(hospital):
        study, say = load(hospital.study_file(digest)), fail if digest in approved else warn
        with looking_in(hospital.weights):
            for what, mend in (*_encoders(study), *_initial(study)):
                yield say("weights", f"Study {digest[:16]}…: {what}", mend)


def _encoders(study: Study) -> Iterator[tuple[str, str]]:
    named = {(part.sha256, part.kind) for stream in study.streams for part in stream.encoders}
    for sha256, what in sorted(named):
        try:
            find(sha256, what=what)
        except WeightsError as error:
            cause, _, mend = str(error).partition(" they are in none. ")
            yield f"{cause} they are in none.", mend


def _initial(study: Study) -> Iterator[tuple[str, str]]:
    try:
        public_figures(study)
    except WeightsError as error:
        yield (
            str(error),
            "Get the study's initial file from whoever offers it; it belongs into this home's weights/.",
        )


def _approved(hospital: Hospital) -> set[str]:
    try:
        grants = doctor_keys.state(hospital).grants.values()
    except LedgerError:
        return set()  # the ledger's own check says it
    return {grant.approval.study for grant in grants if not grant.closed}
