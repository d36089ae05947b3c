"""The site's policy file: what this hospital agrees to, in one TOML that a person can sign off.

    policy = load(Path("policy.toml"))
    adopt(policy, ledger)              # before any study; writes the version, new domains and moved caps

Guarantees:
  - Every problem of a file is reported at once; an unknown key is an error.
  - The ledger always holds the canonical text of the policy in force; adopting it twice writes nothing.
  - A crash between a new version and its caps leaves a site that refuses to spend until `adopt` has finished.
  - A domain that a policy no longer lists keeps its entries, and nothing more is released from it.
"""

import tomllib
from pathlib import Path

from sottovoce.common.config import canonical
from sottovoce.common.errors import PolicyError
from sottovoce.common.ledger.entries import CapChange, DomainOpened, PolicyVersion
from sottovoce.common.ledger.store import Ledger
from sottovoce.common.ledger.terms import Policy, policy_from
from sottovoce.common.privacy.filter import KEPT

MAX_POLICY_BYTES = 50_000


def load(path: Path) -> Policy:
    """Reads a policy file. Raises: PolicyError with every problem."""
    text = _text_of(path)
    try:
        return loads(text)
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from None


def loads(text: str) -> Policy:
    """Builds a policy from TOML text. Raises: PolicyError with every problem."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise PolicyError(f"not TOML: {error}") from None
    return policy_from(table)


def adopt(policy: Policy, ledger: Ledger) -> int:
    """Puts a policy in force: writes what of it is not in the ledger yet; returns how many entries that took.

    Raises:
        LedgerError: the policy is of another site, or its version is not above the one in force.
        PolicyError: a domain's public constants were changed; a new enrolment period is a new domain.
    """
    before = ledger.state.size
    _check_domains(policy, ledger)
    if ledger.state.policy != policy:
        ledger.append(
            PolicyVersion(
                kind="policy",
                version=policy.version,
                text=canonical(policy),
                person=policy.changed_by,
                reason=policy.reason,
            )
        )
    for terms in policy.domains:
        domain = ledger.state.domains.get(terms.name)
        if domain is None:
            ledger.append(
                DomainOpened(
                    kind="domain_opened",
                    domain=terms.name,
                    n_patients=terms.n_patients,
                    unit="patient",
                    adjacency="add_or_remove_one",
                    epsilon_cap=terms.epsilon_cap,
                    delta=terms.delta,
                    small_population=terms.small_population,
                    conceded_delta=terms.delta * KEPT,
                )
            )
        elif domain.cap != terms.epsilon_cap:
            ledger.append(
                CapChange(
                    kind="cap_change",
                    domain=terms.name,
                    before=domain.cap,
                    after=terms.epsilon_cap,
                    person=policy.changed_by,
                    reason=policy.reason,
                )
            )
    return ledger.state.size - before


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_POLICY_BYTES + 1)
    except OSError as error:
        raise PolicyError(
            f"{path}: cannot be read ({error.strerror}). Make one with `sottovoce policy new`."
        ) from None
    if len(data) > MAX_POLICY_BYTES:
        raise PolicyError(f"{path}: expected at most {MAX_POLICY_BYTES} bytes; this is no policy.")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise PolicyError(f"{path}: expected UTF-8 text; byte {error.start} is not.") from None


def _check_domains(policy: Policy, ledger: Ledger) -> None:
    for terms in policy.domains:
        domain = ledger.state.domains.get(terms.name)
        if domain is None:
            continue
        old = (domain.opened.n_patients, domain.opened.delta, domain.opened.small_population)
        if old != (terms.n_patients, terms.delta, terms.small_population):
            raise PolicyError(
                f"domains: expected {terms.name!r} with n_patients, delta and small_population as it was opened, "
                f"{old}; a new enrolment period is a new domain."
            )


NEW_POLICY = """\
# What this site agrees to. `sottovoce policy adopt` puts it in force; each version stays in the ledger for ever.
format = 1
site = "hospital-a"
version = 1                      # one more for every change
changed_by = "Name of a person"  # who stands for this version
reason = "first policy"

# Which studies (their digests, from `sottovoce study digest`), and what for. Workplace and education are refused
# whatever stands here, unless the study names a medical or safety reference (EU AI Act, article 5(1)(f)).
studies = []
purposes = ["medical"]
modes = ["local"]                # every number is private before it leaves this site. "distributed": only sums over
                                 # several sites are, and nothing but such sums can be seen (secure sums)
min_sites = 3                    # of mode "distributed": over how many sites a sum must be at least

models = ["linear", "mlp", "cnn", "rnn", "lstm", "attention", "cnn_lstm_attention", "fusion"]
                                 # which kinds of model may be trained here; without this line, any. Not listed:
                                 # "whisper_lora", and "discriminator" and "moments", which make rows nobody said

max_epsilon_per_study = 8.0      # of one approval; the cap of a domain holds for all of them together
max_sites_per_patient = 1        # a patient in k sites gives away k times
allow_non_private = false        # true: mode "none" and seeded noise may run here. For public corpora only.

# A closed enrolment period and its budget, for good. `n_patients` is a public upper bound, not a count of yours.
# delta below 1 / n_patients^1.1, and at most 1e-5 (unless small_population = true, which prints "weak").
[[domains]]
name = "intake-2026"
n_patients = 2000
epsilon_cap = 8.0
delta = 1e-5

# Who may let a study spend; the public half of a key that only this person holds.
# [[approvers]]
# name = "Name of a person"
# public_key = "64 hexadecimal digits"
"""


def new_policy(site: str) -> str:
    """Returns the text of a first policy, with its reasons beside its defaults."""
    if not site.isprintable() or '"' in site or "\\" in site or not 1 <= len(site) <= 120:
        raise PolicyError("Expected a site's name of 1 to 120 printable characters, without quotes.")
    return NEW_POLICY.replace('"hospital-a"', f'"{site}"', 1)


def approver_lines(person: str, public_key: str) -> str:
    """Returns the lines that name a person as an approver. Raises: PolicyError for a name that cannot stand there."""
    if not person.isprintable() or '"' in person or "\\" in person or not 1 <= len(person) <= 120:
        raise PolicyError("Expected a person's name of 1 to 120 printable characters, without quotes.")
    return f'[[approvers]]\nname = "{person}"\npublic_key = "{public_key}"'


def policy_text(path: Path) -> str:
    """Returns the canonical text of a policy file: of TOML as it would be recorded, of JSON as it stands.

    Raises:
        PolicyError: it cannot be read, or is no policy.
    """
    if path.suffix == ".json":
        return _text_of(path)
    return canonical(load(path))


def policy_text_beside(path: Path | None) -> str | None:
    """Returns the text of the file that lies beside a ledger; one that is no policy is the policy of nothing.

    Nobody asked for this file, so it is no error of theirs: the verification says that it is not the one in force.
    """
    if path is None:
        return None
    try:
        return policy_text(path)
    except PolicyError:
        return ""
