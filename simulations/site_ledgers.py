"""Ledgers for simulated sites: the production ledger, with keys, a policy and an approver that a simulation makes up.

Where sums are secure there is also a coordinator's key, a roster of all of them, and the federation's ledger.

Guarantees:
  - Each federation (seed, fold) has ledgers of its own, as if it were the only one: their figure is the study's.
  - Every reservation, commit, burn and signature is real; only the persons are made up, and their names say so.
  - A run's folder keeps extracts (ledger, head, policy, public keys, what the coordinator saw), never a private key.
"""

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sottovoce.client.secure_folder import SecureFolder
from sottovoce.client.site_ledger import SECURE, SiteLedger, charges_of
from sottovoce.common.config import canonical
from sottovoce.common.errors import PrivacyError
from sottovoce.common.federation_ledger import FederationLedger
from sottovoce.common.files import write_whole
from sottovoce.common.keys import SigningKey
from sottovoce.common.ledger.export import extract
from sottovoce.common.privacy.budget import Denied, PldAccountant
from sottovoce.common.privacy_specs import NoPrivacy
from sottovoce.common.rosters import roster_from
from sottovoce.common.secagg.session import Member, Roster
from sottovoce.common.study import Study
from sottovoce.server.exchange import GridExchange
from sottovoce.server.secure import SecureExchange

PERSON = "simulated approver (no person)"
DOMAIN = "simulation"
SEEN = "seen.txt"
COORDINATOR = ".coordinator"  # no site's name begins with a dot
FEDERATION, ROSTER, READY = "federation.jsonl", "roster.json", ".ready"
_POLICY = """\
format = 1
site = "{site}"
version = 1
changed_by = "{person}"
reason = "simulation"
studies = ["{digest}"]
purposes = ["{purpose}"]
modes = ["{mode}"]
max_epsilon_per_study = {cap}
max_sites_per_patient = {n_sites}
allow_non_private = {seeded}
domains = [{{ name = "{domain}", n_patients = {n_patients}, epsilon_cap = {cap}, delta = {delta!r}, \
small_population = {small} }}]
approvers = [{{ name = "{person}", public_key = "{key}" }}]
"""


def open_all(folder: Path, study: Study, sites: Iterable[str]) -> Mapping[str, Path]:
    """Makes a ledger for each site, approved for this study, unless they are there; returns their folders."""
    places = {site: folder / site for site in sites}
    if not (
        folder / READY
    ).exists():  # also after a crash in between: nothing was spent yet, so all begin anew
        shutil.rmtree(folder, ignore_errors=True)
        for site, place in places.items():
            SiteLedger.create(place, site=site)
        roster = _roster(folder, study, {site: place / SECURE for site, place in places.items()})
        for site, place in places.items():
            _approve(place, study, site, roster)
        (folder / READY).touch()
    return places


def identities(folder: Path, study: Study, sites: Iterable[str]) -> Mapping[str, Path]:
    """Makes what secure sums need of sites without a ledger (mode `none`), unless it is there."""
    places = {site: folder / site for site in sites}
    if not (folder / READY).exists():
        shutil.rmtree(folder, ignore_errors=True)
        for place in places.values():
            SecureFolder.create(place)
        if roster := _roster(folder, study, places):
            for place in places.values():
                SecureFolder(place).pin(study.digest(), roster)
        (folder / READY).touch()
    return places


@contextmanager
def coordinated(folder: Path, study: Study, exchange: GridExchange) -> Iterator[SecureExchange]:
    """Opens the coordinator's side of secure sums among the sites of a folder that is ready."""
    (key_file,) = (folder / COORDINATOR).glob("signing-*.pem")
    key = SigningKey.load(key_file)
    roster = roster_from((folder / COORDINATOR / ROSTER).read_bytes())
    with FederationLedger.open(folder / COORDINATOR / FEDERATION, key=key) as record:
        yield SecureExchange(exchange, study, roster=roster, key=key, record=record)


def keep(places: Mapping[str, Path], out: Path, witnessed: Mapping[str, str]) -> None:
    """Copies what may be shown of each ledger, with the newest checkpoint that the coordinator holds of it."""
    for site, place in places.items():
        shutil.rmtree(out / site, ignore_errors=True)
        extract(place, out / site)
        if site in witnessed:
            write_whole(out / site / SEEN, witnessed[site].encode())


def keep_federation(folder: Path, out: Path) -> None:
    """Copies the coordinator's record of all sums, and the roster to read it by."""
    out.mkdir(parents=True, exist_ok=True)
    for name in (FEDERATION, ROSTER):
        write_whole(out / name, (folder / COORDINATOR / name).read_bytes())


def _roster(folder: Path, study: Study, places: Mapping[str, Path]) -> Roster | None:
    """Makes the coordinator's key, roster and ledger; None where the study has no secure sums."""
    if not study.sums_are_secure:
        return None
    home, key = folder / COORDINATOR, SigningKey.generate()
    home.mkdir(parents=True, mode=0o700)
    key.save(home)
    members = [
        Member(site=site, public_key=SecureFolder(place).key.public_hex)
        for site, place in sorted(places.items())
    ]
    roster = Roster(coordinator=key.public_hex, members=tuple(members))
    write_whole(home / ROSTER, canonical(roster).encode())
    FederationLedger.create(
        home / FEDERATION,
        key=key,
        roster=roster,
        study=study.digest(),
        name=study.name,
        simulated=not isinstance(study.privacy, NoPrivacy) and study.privacy.seeded_noise,
    ).close()
    return roster


def _approve(place: Path, study: Study, site: str, roster: Roster | None) -> None:
    key = SigningKey.generate()  # it signs once, and is dropped: nobody can approve more under this name
    (place / "first-policy.toml").write_text(_policy(study, site, key.public_hex), encoding="utf-8")
    with SiteLedger.open(place) as ledger:
        ledger.adopt(place / "first-policy.toml")
        answer = ledger.approve(study, domain=DOMAIN, person=PERSON, key=key, roster=roster)
    if isinstance(answer, Denied):
        raise PrivacyError(f"The simulated site {site!r} cannot approve this study: {answer.reason}")


def _policy(study: Study, site: str, key: str) -> str:
    spec = study.privacy
    if isinstance(spec, NoPrivacy):
        raise PrivacyError("Expected a study of a private mode; came mode 'none'.")
    epsilon = PldAccountant().epsilon(charges_of(study), spec.delta)
    if not math.isfinite(epsilon):
        raise PrivacyError(
            f"This study has no finite epsilon at delta {spec.delta:g}. Take more noise, or fewer steps."
        )
    return _POLICY.format(
        site=site,
        mode=spec.mode,
        person=PERSON,
        digest=study.digest(),
        purpose=study.purpose,
        cap=max(1, math.ceil(epsilon * 100)) / 100,
        n_sites=spec.max_sites_per_patient,
        seeded=str(spec.seeded_noise).lower(),
        domain=DOMAIN,
        n_patients=spec.n_patients_public,
        delta=spec.delta,
        small=str(spec.small_population).lower(),
        key=key,
    )
