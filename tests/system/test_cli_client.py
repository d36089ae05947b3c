"""`sottovoce client …` as a hospital's administrator types it, against a consortium on the loopback interface."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from sottovoce.client.consortium import ConsortiumClient
from sottovoce.client.duties import duties_of
from sottovoce.client.home import Hospital
from sottovoce.client.offered import digest_of, open_offer
from sottovoce.client.setup import set_up
from sottovoce.client.site_commands import _left_row, client_app
from sottovoce.client.site_ledger import SiteLedger
from sottovoce.common.errors import DeploymentError, KeyFileError
from sottovoce.common.keys import SigningKey, new_approval_key
from sottovoce.common.study import Study
from tests.fakes.consortium import Consortium, consortium
from tests.fakes.wards import SITES, own_part, study_text, write_corpus

PERSON = "Ada Example"
POLICY = """\
format = 1
site = "north"
version = {version}
changed_by = "Ada Example"
reason = "test"
studies = [{studies}]
purposes = ["medical"]
modes = ["none"]
models = [{models}]
max_epsilon_per_study = 1.0
allow_non_private = true
domains = [{{ name = "intake", n_patients = 100, epsilon_cap = 1.0, delta = 1e-6, small_population = true }}]
approvers = [{{ name = "Ada Example", public_key = "{key}" }}]
"""


def sottovoce(*arguments: object, expect: int = 0) -> Result:
    done = CliRunner().invoke(client_app, [str(one) for one in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == expect, done.output
    return done


def told(*arguments: object, expect: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sottovoce(*arguments, "--json", expect=expect).stdout)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    with consortium(tmp_path_factory.mktemp("consortium")) as one:
        yield one


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    return own_part(write_corpus(folder / "whole"), "north", folder / "north")


@pytest.fixture(scope="module")
def home(made: Consortium, recordings: Path) -> Path:
    """A hospital that joined by the command, and to which two studies are offered."""
    folder = made.root / "north"
    joined = told(
        "init",
        folder,
        "--invitation",
        made.invite("north"),
        "--data",
        f"wards={recordings}",
        "--site",
        "north",
    )
    assert joined["fingerprint"] == made.authority.fingerprint
    assert joined["public_key"] == made.home.key.public_hex
    for site in ("east", "west"):
        made.join(site)
    for name in ("wards", "other"):
        made.offer(SITES, name=name)
    listed = told("offers", folder)
    assert sorted(row["digest"] for row in listed["studies"]) == sorted(listed["new"])
    return folder


@pytest.fixture
def hospital(home: Path) -> Hospital:
    return Hospital.open(home)


def named(hospital: Hospital, name: str) -> str:
    (digest,) = (row["digest"] for row in told("status", hospital.folder)["studies"] if row["name"] == name)
    return str(digest)


def adopt(hospital: Hospital, folder: Path, *, models: str = '"mlp"') -> Path:
    """Puts a policy in force that lists all studies; returns the approver's key."""
    key_file, public = new_approval_key(folder / "person")
    studies = ", ".join(f'"{row["digest"]}"' for row in told("status", hospital.folder)["studies"])
    with SiteLedger.open(hospital.ledger) as ledger:
        before = ledger.budget.state.policy
        text = POLICY.format(
            version=1 if before is None else before.version + 1, studies=studies, key=public, models=models
        )
        (folder / "policy.toml").write_text(text)
        ledger.adopt(folder / "policy.toml")
    return key_file


# --- joining ----------------------------------------------------------------------------------------------


def test_init_writes_settings_with_reasons_and_a_ledger_and_enrols(home: Path, recordings: Path) -> None:
    opened = Hospital.open(home)
    assert opened.settings.data == {"wards": str(recordings)}
    text = (home / "hospital.toml").read_text()
    assert re.search(r"^site = \"north\" +# ", text, re.M)
    assert "never sent" in text
    assert (opened.ledger / "ledger.jsonl").exists()
    assert (home / "coordinator.json").exists()


def test_init_run_again_keeps_settings_keys_and_ledger(made: Consortium, home: Path) -> None:
    identity, ledger = (
        Hospital.open(home).identity.public_hex,
        (home / "ledger" / "ledger.jsonl").read_bytes(),
    )
    (home / "hospital.toml").write_text((home / "hospital.toml").read_text() + "# mine\n")
    again = told("init", home, "--invitation", made.root / "north.invitation")
    assert again["settings_kept"]
    assert again["identity"] == identity
    assert (home / "hospital.toml").read_text().endswith("# mine\n")
    assert (home / "ledger" / "ledger.jsonl").read_bytes() == ledger
    with pytest.raises(DeploymentError, match="--site: expected 'north'"):
        sottovoce("init", home, "--invitation", made.root / "north.invitation", "--site", "south")


def test_init_goes_on_after_a_crash_between_its_steps(
    made: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invitation = made.invite("south")
    folder = tmp_path / "south"

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for step in ("new_keys", "Ledger.create"):  # before keys, and between keys and a ledger
        with monkeypatch.context() as broken:
            broken.setattr(f"sottovoce.client.site_ledger.{step}", dies)
            with pytest.raises(KeyboardInterrupt):
                set_up(folder, site=None, invitation=invitation, data={})
        assert not (folder / "ledger").exists()
    joined = set_up(folder, site=None, invitation=invitation, data={})
    assert joined.hospital.site == "south"
    assert {path.name for path in folder.iterdir()} >= {"hospital.toml", "ledger", "tls", "coordinator.json"}
    assert not (folder / "ledger.new").exists()


def test_data_is_name_and_folder_once_each(made: Consortium, tmp_path: Path) -> None:
    for wrong in (["recordings"], ["a=x", "a=y"], ["=x"], ["a="]):
        options = [part for one in wrong for part in ("--data", one)]
        with pytest.raises(DeploymentError, match="NAME=DIR"):
            sottovoce("init", tmp_path / "new", "--invitation", tmp_path / "none", *options)
    assert not (tmp_path / "new").exists()


# --- studies ----------------------------------------------------------------------------------------------


def test_a_study_is_named_by_its_file_or_the_start_of_its_digest(hospital: Hospital, tmp_path: Path) -> None:
    digest = named(hospital, "wards")
    (tmp_path / "study.toml").write_text(hospital.study_file(digest).read_text())
    for said in (digest, digest[:10], digest[:10].upper(), str(tmp_path / "study.toml")):
        assert digest_of(hospital, said) == digest
    (tmp_path / "study.toml").write_text(study_text(n_sites=7))
    for wrong in ("", digest[:3], "f" * 64 if digest[0] != "f" else "0" * 64, str(tmp_path / "study.toml")):
        with pytest.raises(DeploymentError, match="client offers"):
            digest_of(hospital, wrong)


def test_an_ambiguous_digest_is_completed_to_neither(hospital: Hospital) -> None:
    digest = named(hospital, "wards")
    twin = hospital.studies / (digest[:60] + "0000" if not digest.endswith("0000") else digest[:60] + "1111")
    shutil.copytree(hospital.study_folder(digest), twin)
    try:
        with pytest.raises(DeploymentError, match="begins 2 of them"):
            digest_of(hospital, digest[:20])
    finally:
        shutil.rmtree(twin)


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("study.toml", "rounds = 2", "rounds = 3", "its text has digest"),
        ("offer.json", '"sites":["east","north"', '"sites":["evil","north"', "signed by"),
        ("offer.json", "1800000000", "1800000001", "signed by"),
        ("offer.json", "{", "[", "as it was fetched"),
        ("offer.json", '"roster":"', '"roster":"x', "signed by"),
    ],
)
def test_an_offer_whose_files_were_changed_is_not_opened(
    hospital: Hospital, file: str, old: str, new: str, says: str
) -> None:
    digest = named(hospital, "wards")
    assert open_offer(hospital, digest).roster is not None
    path = hospital.study_folder(digest) / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    try:
        with pytest.raises(DeploymentError, match=says):
            open_offer(hospital, digest)
    finally:
        path.write_text(text)


def test_prepare_preview_and_status_say_how_features_lie(hospital: Hospital) -> None:
    digest = named(hospital, "wards")
    assert "will lie UNENCRYPTED" in told("preview", hospital.folder, digest)["at_rest"]
    assert told("prepare", hospital.folder, digest[:12])["at_rest"] == "plain"
    shown = sottovoce("preview", hospital.folder, digest[:12]).stdout
    assert "UNENCRYPTED on the disk" in re.sub(r"\s+", " ", shown)
    assert "For the ethics board" in shown
    rows = {row["digest"]: row for row in told("status", hospital.folder)["studies"]}
    assert (rows[digest]["features"], rows[digest]["approved"]) == ("plain", "no")
    assert "north: the agent is not running" in sottovoce("status", hospital.folder).stdout


def test_a_preview_has_the_offers_hospitals_and_what_the_policy_says(
    hospital: Hospital, tmp_path: Path
) -> None:
    adopt(hospital, tmp_path, models='"lstm"')
    shown = told("preview", hospital.folder, named(hospital, "wards"))
    assert shown["hospitals"] == sorted(SITES)
    assert [line.split()[0] for line in shown["refusals"]] == ["model:"]
    other = tmp_path / "study.toml"  # a study that nobody offered can be looked at too
    other.write_text(study_text(n_sites=2))
    unknown = told("preview", hospital.folder, other)
    assert unknown["hospitals"] == []
    assert [line.split()[0] for line in unknown["refusals"]] == ["study:", "model:"]


def test_an_approval_reaches_the_ledger_and_the_coordinator(
    made: Consortium, hospital: Hospital, tmp_path: Path
) -> None:
    digest, key = named(hospital, "wards"), adopt(hospital, tmp_path)
    answer = told(
        *("approve", hospital.folder, digest[:12], "--domain", "intake", "--person", PERSON),
        *("--key", key, "--yes"),
    )
    assert answer["granted"]
    assert answer["approval"]["facts"]["model"] == "mlp"
    assert [one.site for one in made.registry.approvals(digest) if one.decision == "approved"] == ["north"]
    rows = {row["digest"]: row for row in told("status", hospital.folder)["studies"]}
    assert rows[digest]["approved"] == "yes"


def test_a_second_approval_that_is_denied_takes_the_first_back_from_nobody(
    made: Consortium, hospital: Hospital, tmp_path: Path
) -> None:
    digest, key = named(hospital, "wards"), adopt(hospital, tmp_path)
    asked = ("approve", hospital.folder, digest, "--domain", "intake", "--person", PERSON, "--yes", "--key")
    assert told(*asked, key)["granted"]
    (tmp_path / "stranger").mkdir(mode=0o700)
    stranger = SigningKey.generate().save(tmp_path / "stranger")
    assert not told(*asked, stranger, expect=1)["granted"]
    assert made.registry.approved(digest) == {"north"}


def test_a_denial_is_exit_1_and_a_persons_no_signs_nothing(hospital: Hospital, tmp_path: Path) -> None:
    digest, key = named(hospital, "other"), adopt(hospital, tmp_path, models='"lstm"')
    asked = ("approve", hospital.folder, digest, "--domain", "intake", "--person", PERSON, "--key", key)
    assert "model: expected one of lstm" in told(*asked, "--yes", expect=1)["reason"]
    size = (hospital.ledger / "ledger.jsonl").stat().st_size
    done = CliRunner().invoke(client_app, [str(one) for one in asked], input="n\n")
    assert done.exit_code == 1
    assert "Nothing was signed" in done.output
    assert (hospital.ledger / "ledger.jsonl").stat().st_size == size


def test_an_approval_made_while_the_line_is_down_is_handed_in_later(
    made: Consortium, hospital: Hospital, tmp_path: Path
) -> None:
    digest, key = named(hospital, "other"), adopt(hospital, tmp_path)
    offer = open_offer(hospital, digest)
    with SiteLedger.open(hospital.ledger) as ledger:  # as `approve` does, without the last step
        ledger.approve(
            offer.study, domain="intake", person=PERSON, key=SigningKey.load(key), roster=offer.roster
        )
    said = {one.site: one.decision for one in made.registry.approvals(digest)}
    assert said.get("north") != "approved"
    for duty in duties_of(hospital):
        duty.work()
    said = {one.site: one.decision for one in made.registry.approvals(digest)}
    assert said["north"] == "approved"
    kept = {one.site: one.size for one in made.registry.checkpoints()}
    assert kept["north"] == len((hospital.ledger / "ledger.jsonl").read_bytes().splitlines())


def test_duties_fetch_what_is_new_and_read_a_ledger_only_when_it_has_grown(
    made: Consortium, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    duties = {one.name: one for one in duties_of(hospital)}
    study: Study = made.offer(SITES, name="third")
    duties["fetch offers, hand in approvals"].work()
    assert hospital.study_file(study.digest()).exists()
    handed_in, send = list[int](), ConsortiumClient.send_checkpoint

    def counted(client: ConsortiumClient) -> int:
        handed_in.append(send(client))
        return handed_in[-1]

    monkeypatch.setattr(ConsortiumClient, "send_checkpoint", counted)
    for _ in range(2):
        duties["hand in the ledger's checkpoint"].work()
    assert len(handed_in) == 1


# --- stopping ---------------------------------------------------------------------------------------------


def test_a_stop_holds_until_it_is_taken_back(hospital: Hospital) -> None:
    shown = sottovoce("stop", hospital.folder, "--now").stdout
    assert "takes part no more" in shown
    assert "Nothing had left this hospital" in shown
    assert told("status", hospital.folder)["stopped"]
    with pytest.raises(DeploymentError, match="--resume"):
        sottovoce("start", hospital.folder)
    (hospital.run / "stopped").unlink()


def test_what_left_with_simulated_noise_is_never_shown_as_a_figure_of_privacy() -> None:
    left = {
        "name": "a",
        "study": "b" * 64,
        "what": "update",
        "rounds": (1, 2),
        "n_releases": 2,
        "delta": 0.02,
    }
    shown = {
        "open": _left_row({**left, "epsilon": None, "simulated": False})["epsilon"],
        "secret": _left_row({**left, "epsilon": 3.0, "simulated": False})["epsilon"],
        "seeded": _left_row({**left, "epsilon": 3.0, "simulated": True})["epsilon"],
    }
    assert shown["open"] == "NOT PRIVATE"
    assert shown["secret"] == "3.0000 at 0.02"
    assert shown["seeded"].startswith("SIMULATED NOISE, NOT PRIVATE: it would be 3.0000")


def test_the_doctor_answers_with_its_exit_status(hospital: Hospital) -> None:
    found = told("doctor", hospital.folder, expect=1)  # no SuperLink listens for this hospital
    assert not found["ok"]
    assert {"ok", "fail"} <= {one["level"] for one in found["findings"]}
    assert "Mend what failed" in sottovoce("doctor", hospital.folder, expect=1).stdout


def test_models_are_listed(hospital: Hospital) -> None:
    assert told("models", hospital.folder) == {"models": []}


def test_what_the_user_can_mend_is_one_line_and_exit_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sottovoce", "client", "status", str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "client init" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hospital_without_a_ledger_is_told_so(made: Consortium, hospital: Hospital, tmp_path: Path) -> None:
    other = shutil.copytree(hospital.folder, tmp_path / "copy", symlinks=True)
    shutil.rmtree(other / "ledger")
    copied = Hospital.open(Path(other))
    assert told("status", copied.folder)["studies"][0]["approved"] == "no"
    with pytest.raises(KeyFileError, match="expected one identity"):
        sottovoce(
            *("approve", copied.folder, named(copied, "wards"), "--domain", "intake"),
            *("--person", PERSON, "--key", tmp_path / "none"),
        )
