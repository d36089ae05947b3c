"""Ledgers for simulated sites: the production ledger, with keys, a policy and an approver that a simulation makes up.

Guarantees:
  - Each federation (seed, fold) has ledgers of its own, as if it were the only one: their figure is the study's.
  - Every reservation, commit, burn and signature is real; only the persons are made up, and their names say so.
  - A run's folder keeps extracts (ledger, head, policy, public keys, what the coordinator saw), never a private key.
"""

import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from sottovoce.client.site_ledger import SiteLedger, charges_of
from sottovoce.common.errors import PrivacyError
from sottovoce.common.files import write_whole
from sottovoce.common.keys import SigningKey
from sottovoce.common.ledger.export import extract
from sottovoce.common.privacy.budget import Denied, PldAccountant
from sottovoce.common.privacy_specs import LocalPrivacy
from sottovoce.common.study import Study

PERSON = "simulated approver (no person)"
DOMAIN = "simulation"
SEEN = "seen.txt"
_POLICY = """\
format = 1
site = "{site}"
version = 1
changed_by = "{person}"
reason = "simulation"
studies = ["{digest}"]
purposes = ["{purpose}"]
modes = ["local"]
max_epsilon_per_study = {cap}
max_sites_per_patient = {n_sites}
allow_non_private = {seeded}
domains = [{{ name = "{domain}", n_patients = {n_patients}, epsilon_cap = {cap}, delta = {delta!r}, \
small_population = {small} }}]
approvers = [{{ name = "{person}", public_key = "{key}" }}]
"""


def open_all(folder: Path, study: Study, sites: Iterable[str]) -> Mapping[str, Path]:
    """Makes a ledger for each site that has none yet, approved for this study; returns their folders."""
    places = {site: folder / site for site in sites}
    for site, place in places.items():
        if not (place / "approved").exists():  # a crash in between: begin this site's ledger anew
            shutil.rmtree(place, ignore_errors=True)
            _make(place, study, site)
            (place / "approved").touch()
    return places


def keep(places: Mapping[str, Path], out: Path, witnessed: Mapping[str, str]) -> None:
    """Copies what may be shown of each ledger, with the newest checkpoint that the coordinator holds of it."""
    for site, place in places.items():
        shutil.rmtree(out / site, ignore_errors=True)
        extract(place, out / site)
        if site in witnessed:
            write_whole(out / site / SEEN, witnessed[site].encode())


def _make(place: Path, study: Study, site: str) -> None:
    SiteLedger.create(place, site=site)
    key = SigningKey.generate()  # it signs once, and is dropped: nobody can approve more under this name
    (place / "first-policy.toml").write_text(_policy(study, site, key.public_hex), encoding="utf-8")
    with SiteLedger.open(place) as ledger:
        ledger.adopt(place / "first-policy.toml")
        answer = ledger.approve(study, domain=DOMAIN, person=PERSON, key=key)
    if isinstance(answer, Denied):
        raise PrivacyError(f"The simulated site {site!r} cannot approve this study: {answer.reason}")


def _policy(study: Study, site: str, key: str) -> str:
    spec = study.privacy
    if not isinstance(spec, LocalPrivacy):
        raise PrivacyError(f"Expected a study of mode local; came mode {spec.mode!r}.")
    epsilon = PldAccountant().epsilon(charges_of(study), spec.delta)
    if not math.isfinite(epsilon):
        raise PrivacyError(
            f"This study has no finite epsilon at delta {spec.delta:g}. Take more noise, or fewer steps."
        )
    return _POLICY.format(
        site=site,
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
