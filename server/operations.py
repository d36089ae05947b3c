"""What an operator of the coordinator does: found a federation, offer a study, begin a run, revoke a hospital.

Guarantees:
  - A run begins only when every hospital of its offer has approved it, by a signature of its own that is checked here.
  - A study is offered to hospitals that take part now, as many as it says; with them their identities are pinned.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from sottovoce.common.config import canonical
from sottovoce.common.errors import DeploymentError, RunError
from sottovoce.common.folds import n_folds
from sottovoce.common.pki import Authority, new_request
from sottovoce.common.pretrained import looking_in
from sottovoce.common.rosters import sound
from sottovoce.common.secagg.session import MIN_SITES, Member, Roster
from sottovoce.common.study import Study, load, loads
from sottovoce.common.transfer import initial_of
from sottovoce.server.consortium.offers import sign_offer
from sottovoce.server.deployed_run import ENDS, DeployedRun, Plan, State
from sottovoce.server.home import CoordinatorHome
from sottovoce.server.registry import Registry
from sottovoce.server.rounds import ALL_SPEAKERS

WAIT_SECONDS = 0.5

NEW_SERVER = """\
# A coordinator's settings. They are no part of any study.
format = 1
name = "{name}"

# Names and addresses by which hospitals reach this machine; the first stands in invitations. With loopback names alone
# nothing listens to the outside.
hosts = [{hosts}]

fleet_port = {fleet}        # Flower's SuperLink: rounds of studies
consortium_port = {consortium}   # our own service: enrolment, studies, approvals, witnesses, released models
front_port = {front}        # nginx before the SuperLink, with mutual TLS: what hospitals use instead; 0 for none
metrics_port = {metrics}      # Prometheus, on the loopback interface; 0 for none
certificate_hours = 720.0  # how long a hospital's certificate lasts; its agent renews it at two thirds
"""


def found(folder: Path, text: str) -> tuple[CoordinatorHome, str]:
    """Makes a coordinator's folder with its keys, its authority and its registry; returns the authority's fingerprint.

    Raises:
        DeploymentError, CertificateError: there is one already, or it cannot be made.
    """
    home = CoordinatorHome.create(folder, text)
    authority = Authority.create(home.pki, name=home.settings.name)
    request = new_request(home.pki / "server.key")
    certificate = authority.issue_server(
        request, hosts=home.server_hosts, hours=home.settings.certificate_hours
    )
    (home.pki / "server.crt").write_text(certificate)
    (home.pki / "crl.pem").write_text(authority.revocation_list(()))
    Registry.create(home.registry).close()
    return home, authority.fingerprint


def offer(home: CoordinatorHome, study_file: Path, sites: Sequence[str]) -> tuple[Study, tuple[str, ...]]:
    """Offers a study to sites (to all that take part, where none is named).

    Raises:
        StudyError: the study cannot be run.
        DeploymentError: the sites are not those that the study is for.
        WeightsError: the initial file that the study names is not here, or is not what it should be.
    """
    study, text = load(study_file), study_file.read_text(encoding="utf-8")
    with looking_in(home.weights):
        initial_of(study)  # without it no run could begin
    registry, offered_at = Registry.open(home.registry), int(time.time())
    active = {
        member.name: member
        for member in registry.sites()
        if member.role == "site" and member.revoked_at is None
    }
    chosen = tuple(sorted(sites or active))
    if strangers := sorted(set(chosen) - active.keys()):
        raise DeploymentError(
            f"Expected hospitals that take part; {', '.join(strangers)} does not. `server status` names all."
        )
    if len(chosen) != study.federation.n_sites:
        raise DeploymentError(
            f"Expected federation.n_sites = {study.federation.n_sites} hospitals for this study; came "
            f"{len(chosen)}: {', '.join(chosen) or 'none'}. Name them with --site, or change the study."
        )
    roster = b""
    if len(chosen) >= MIN_SITES:
        members = tuple(Member(site=site, public_key=active[site].identity) for site in chosen)
        roster = canonical(sound(Roster(coordinator=home.key.public_hex, members=members))).encode()
    signature = sign_offer(home.key, study=study.digest(), sites=chosen, roster=roster, offered_at=offered_at)
    registry.offer(text, study.digest(), chosen, roster, signature, offered_at=offered_at)
    return study, chosen


def begin(
    home: CoordinatorHome,
    digest: str,
    *,
    name: str | None = None,
    seed: int | None = None,
    fold: int = ALL_SPEAKERS,
    wait_seconds: float = 0.0,
    on_wait: Callable[[Sequence[str]], None] | None = None,
) -> DeployedRun:
    """Begins a run of an offered study; waits so long for approvals that are missing.

    Raises:
        DeploymentError: the study was not offered, or not everybody has approved it.
        RunError: there is a run of this name, or the study has no such seed or fold.
    """
    registry = Registry.open(home.registry)
    found_offer = registry.offered(digest)
    if found_offer is None:
        raise DeploymentError(
            f"Expected an offered study; {digest[:16]}… is none. Use `sottovoce server offer`."
        )
    study = loads(found_offer.text)
    seed = study.evaluation.seeds[0] if seed is None else seed
    if seed not in study.evaluation.seeds:
        raise RunError(f"--seed: expected one of the study's, {study.evaluation.seeds}; came {seed}.")
    if not ALL_SPEAKERS <= fold < n_folds(study.evaluation.folds):
        raise RunError(
            f"--fold: expected -1 (nobody withheld) to {n_folds(study.evaluation.folds) - 1}; came {fold}."
        )
    end, told = time.monotonic() + wait_seconds, None
    while missing := sorted(set(found_offer.sites) - registry.approved(digest)):
        if time.monotonic() > end:
            raise DeploymentError(
                f"Expected an approval by every hospital; missing: {', '.join(missing)}. "
                "Each uses `sottovoce client approve`; or wait with --wait SECONDS."
            )
        if on_wait is not None and missing != told:
            on_wait(missing)
            told = missing
        time.sleep(WAIT_SECONDS)
    plan = Plan(
        format=1,
        name=name or study.name,
        study_digest=digest,
        seed=seed,
        fold=fold,
        sites=tuple(found_offer.sites),
    )
    return DeployedRun.create(home, found_offer.text, plan, found_offer.roster)


def take_up(run: DeployedRun) -> None:
    """Lets a run that failed or was stopped go on from its checkpoint. Raises: RunError for one that is done."""

    def waiting(state: State) -> State:
        if state.state == "done":
            raise RunError(f"{run.folder}: expected a run that failed or was stopped; this one is done.")
        return replace(state, state="waiting", reason="") if state.is_over else state

    run.change(waiting)


def follow(run: DeployedRun, on_state: Callable[[State], None]) -> State:
    """Waits for the end of a run and tells each change of its state."""
    last = None
    while True:
        state = run.state
        if state != last:
            on_state(state)
            last = state
        if state.state in ENDS:
            return state
        time.sleep(WAIT_SECONDS)


def offered_digest(home: CoordinatorHome, said: str) -> str:
    """Returns the digest of an offered study, named by its file or the digest's start. Raises: DeploymentError."""
    path = Path(said)
    digest = load(path).digest() if path.suffix == ".toml" or path.is_file() else said.lower()
    found = [one.study for one in Registry.open(home.registry).offers() if one.study.startswith(digest)]
    if len(found) != 1 or len(digest) < 6:
        raise DeploymentError(
            f"Expected the study file, or at least six digits of the digest, of one offered study; {said[:80]!r} "
            f"is that of {len(found)}. `sottovoce server status` names all."
        )
    return found[0]
