"""Hospital folders with everything in them: enrolled, with a ledger, a policy, an approval, a study and features.

hospitals, roster = make_hospitals(folder, study_file, sites, coordinator_key=key.public_hex)
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from sottovoce.client.home import Coordinator, Hospital
from sottovoce.client.site_ledger import SiteLedger
from sottovoce.common import study as studies
from sottovoce.common.keys import SigningKey
from sottovoce.common.privacy.budget import Granted
from sottovoce.common.privacy_specs import NoPrivacy
from sottovoce.common.secagg.session import Member, Roster
from sottovoce.common.study import Study
from sottovoce.simulations import site_ledgers

PERSON, DOMAIN = site_ledgers.PERSON, site_ledgers.DOMAIN
SETTINGS = 'format = 1\nsite = "{site}"\n'
NOT_PRIVATE = """\
format = 1
site = "{site}"
version = {version}
changed_by = "{person}"
reason = "test"
studies = ["{digest}"]
purposes = ["{purpose}"]
modes = ["none"]
max_epsilon_per_study = 1.0
max_sites_per_patient = 1
allow_non_private = true
domains = [{{ name = "{domain}", n_patients = 100, epsilon_cap = 1.0, delta = 1e-6, small_population = true }}]
approvers = [{{ name = "{person}", public_key = "{key}" }}]
"""


def enrolled(folder: Path, site: str, coordinator_key: str, *, settings: str = "") -> Hospital:
    """Makes a hospital that listens to a coordinator and has approved nothing. `settings` is more of its TOML."""
    hospital = Hospital.create(folder, SETTINGS.format(site=site) + settings)
    SiteLedger.create(hospital.ledger, site=site)
    hospital.pin(
        Coordinator(
            format=1,
            name="Fake consortium",
            public_key=coordinator_key,
            fleet="127.0.0.1:1",
            consortium="127.0.0.1:2",
        )
    )
    return hospital


def offer(hospital: Hospital, study_file: Path, data: Path | None) -> Study:
    """Puts a study, and the features of it that a site's data are, where a hospital has them."""
    study = studies.load(study_file)
    digest = study.digest()
    hospital.study_folder(digest).mkdir(parents=True, mode=0o700)
    shutil.copyfile(study_file, hospital.study_file(digest))
    if data is not None:
        shutil.copytree(data, hospital.features(digest))
    return study


def approve(
    hospital: Hospital, study: Study, roster: Roster | None = None, *, also: Study | None = None
) -> None:
    """Adopts a policy that allows this study and no other, or one that was approved `also`; and approves it."""
    key = SigningKey.generate()
    with SiteLedger.open(hospital.ledger) as ledger:
        policy, version = hospital.folder / "policy.toml", 1
        if ledger.budget.state.policy is not None:
            version = ledger.budget.state.policy.version + 1
        text = policy_of(study, hospital.site, key.public_hex, version=version)
        if also is not None:
            text = text.replace(f'"{study.digest()}"', f'"{study.digest()}", "{also.digest()}"')
        policy.write_text(text)
        ledger.adopt(policy)
        answer = ledger.approve(study, domain=DOMAIN, person=PERSON, key=key, roster=roster)
    assert isinstance(answer, Granted), answer


def policy_of(study: Study, site: str, key: str, *, version: int = 1) -> str:
    """Returns the text of a policy for one study, whose approver has this key."""
    if isinstance(study.privacy, NoPrivacy):
        return NOT_PRIVATE.format(
            site=site, version=version, person=PERSON, digest=study.digest(), purpose=study.purpose, domain=DOMAIN,
            key=key,
        )  # fmt: skip
    return site_ledgers._policy(study, site, key).replace("version = 1\n", f"version = {version}\n")


def make_hospital(
    folder: Path,
    site: str,
    study_file: Path,
    data: Path,
    coordinator_key: str,
    roster: Roster | None = None,
) -> Hospital:
    """Makes a hospital that is ready for one study. A study with secure sums wants `make_hospitals`: its roster
    names identities that are made with the folders."""
    hospital = enrolled(folder, site, coordinator_key)
    approve(hospital, offer(hospital, study_file, data), roster)
    return hospital


def make_hospitals(
    folder: Path, study_file: Path, sites: Mapping[str, Path], *, coordinator_key: str
) -> tuple[dict[str, Hospital], Roster | None]:
    """Makes a hospital for each site, by name with the folder of its data; and the roster of secure sums."""
    hospitals = {site: enrolled(folder / site, site, coordinator_key) for site in sites}
    for site, data in sites.items():
        study = offer(hospitals[site], study_file, data)
    roster = roster_of(hospitals, coordinator_key) if study.sums_are_secure else None
    for hospital in hospitals.values():
        approve(hospital, study, roster)
    return hospitals, roster


def roster_of(hospitals: Mapping[str, Hospital], coordinator_key: str) -> Roster:
    """Returns the roster of hospitals, by their own identities."""
    members = [
        Member(site=site, public_key=hospital.identity.public_hex)
        for site, hospital in sorted(hospitals.items())
    ]
    return Roster(coordinator=coordinator_key, members=tuple(members))
