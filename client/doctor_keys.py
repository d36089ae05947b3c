"""The doctor's look at keys, ledger, policy and certificate. Nothing is changed, and no secret is part of a finding."""

import stat
import time

from sottovoce.client import policy as policies
from sottovoce.client.findings import Findings, fail, warn
from sottovoce.client.home import SETTINGS, Hospital
from sottovoce.client.site_ledger import KEYS, POLICY_FILE, SECURE
from sottovoce.common.errors import CertificateError, KeyFileError, LedgerError, PolicyError
from sottovoce.common.keys import load_node_key
from sottovoce.common.ledger.files import DiskFolder
from sottovoce.common.ledger.reading import read_ledger, readable_entries
from sottovoce.common.ledger.state import State, fold
from sottovoce.common.pki import belongs_to, peer_of, read_pem

NEAR_END_DAYS = 5.0


def key_files(hospital: Hospital) -> Findings:
    """Yields key files that others can read."""
    ledger = hospital.ledger
    paths = [*(ledger / KEYS).glob("*"), *(ledger / SECURE).glob("*.pem"), *hospital.tls.glob("*.key")]
    for path in paths:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield fail(
                "key files",
                f"The key file {path} can be read by other accounts.",
                f"Close it with chmod 600 {path}; if anybody may have copied it, make a new one.",
            )


def identity(hospital: Hospital) -> Findings:
    """Yields what is wrong with the key for envelopes and secure sums."""
    try:
        hospital.identity  # noqa: B018 - reading it is the check
    except KeyFileError as error:
        mend = "Restore the ledger's folder from the backup; a new identity means enrolling again."
        yield fail("identity", str(error), mend)


def state(hospital: Hospital) -> State:
    """Returns what the ledger says. Raises: LedgerError where it is missing or damaged."""
    entries, problem = readable_entries(read_ledger(hospital.ledger).ledger)
    if problem:
        raise LedgerError(f"The ledger is damaged: {problem}.")
    return fold(entries)


def ledger(hospital: Hospital) -> Findings:
    """Yields what is wrong with the site's ledger. Nothing of it is burned or written."""
    if not hospital.ledger.is_dir():
        yield fail(
            "ledger",
            f"Expected a ledger in {hospital.ledger}; there is none.",
            "Run `sottovoce client init`.",
        )
        return
    try:
        said = state(hospital)
    except LedgerError as error:
        mend = "Restore the ledger's folder from the backup; `sottovoce ledger verify` shows the entry."
        yield fail("ledger", str(error), mend)
        return
    if said.site != hospital.site:
        yield fail(
            "ledger",
            f"Expected the ledger of {hospital.site!r}; this one is of {said.site!r}.",
            f"Put the right ledger in place, or mend `site` in {hospital.folder / SETTINGS}.",
        )
    place = DiskFolder(hospital.ledger)
    try:
        place.lock()
        place.unlock()
    except LedgerError:
        yield warn(
            "ledger",
            "Another process works on the ledger now.",
            "Wait for the round under way, or find who holds it with `fuser`.",
        )


def policy(hospital: Hospital) -> Findings:
    """Yields what is wrong with the policy in force."""
    path = hospital.ledger / POLICY_FILE
    if not path.exists():
        yield fail(
            "policy",
            "No policy is in force here: this hospital agrees to nothing yet.",
            "Write one, and adopt it with `sottovoce policy adopt`.",
        )
        return
    try:
        found = policies.load(path)
    except PolicyError as error:
        yield fail("policy", str(error), "Mend the file, and adopt it as a new version.")
        return
    if found.site != hospital.site:
        yield fail(
            "policy",
            f"Expected the policy of {hospital.site!r}; this one is of {found.site!r}.",
            "Adopt this hospital's own policy.",
        )


def node_key(hospital: Hospital) -> Findings:
    """Yields what is wrong with the key for Flower."""
    try:
        load_node_key(hospital.tls / "node.key")
    except KeyFileError as error:
        yield fail(
            "node key", str(error), "Restore tls/node.key, or enrol again with `sottovoce client init`."
        )


def certificate(hospital: Hospital) -> Findings:
    """Yields what is wrong with the certificate that this site shows."""
    leaf, key = hospital.tls / "site.crt", hospital.tls / "site.key"
    enrol = "Enrol again with `sottovoce client init --invitation FILE`."
    if not leaf.exists():
        yield warn(
            "certificate", f"There is no {leaf}: a coordinator behind a front refuses this site.", enrol
        )
        return
    try:
        peer = peer_of(read_pem(leaf))
        if not belongs_to(read_pem(leaf), key):
            yield fail("certificate", f"Expected {leaf} to be of the key beside it; it is of another.", enrol)
    except CertificateError as error:
        yield fail("certificate", str(error), enrol)
        return
    if peer.name != hospital.site:
        yield fail(
            "certificate",
            f"Expected a certificate of {hospital.site!r}; this one is of {peer.name!r}.",
            enrol,
        )
    left = (peer.not_after - time.time()) / 86_400
    if left < 0:
        yield fail("certificate", f"The site's certificate ended {-left:.1f} days ago.", enrol)
    elif left < min(NEAR_END_DAYS, (peer.not_after - peer.not_before) / 86_400 / 5):
        yield warn(
            "certificate",
            f"The site's certificate ends in {left:.1f} days and was not renewed.",
            "Start the agent, which renews it, or see in `sottovoce client status` why it could not.",
        )
