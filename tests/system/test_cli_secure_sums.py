"""The commands around secure sums, as they are typed: identities, a roster to sign for, a federation's record."""

import json
from pathlib import Path

import pytest

from sottovoce.common.study import load
from sottovoce.simulations import site_ledgers
from tests.fakes.secure_rounds import Federation
from tests.fakes.sites import DISTRIBUTED, LINEAR, SGD, write_study
from tests.system.test_cli_privacy import sottovoce

POLICY = """
format = 1
site = "{site}"
version = 1
changed_by = "Ada Example"
reason = "a study of three hospitals"
purposes = ["research"]
studies = ["{study}"]
modes = ["distributed"]
allow_non_private = true
max_epsilon_per_study = 100.0
domains = [{{ name = "intake", n_patients = 8, epsilon_cap = 100.0, delta = 0.01, small_population = true }}]
"""


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three hospitals with ledgers, policies and approvers; and a study that none of them has approved."""
    folder = tmp_path_factory.mktemp("hospitals")
    study = write_study(folder / "study.toml", n_sites=3, privacy=DISTRIBUTED, model=LINEAR, training=SGD)
    for site in ("a", "b", "c"):
        assert sottovoce("ledger", "create", folder / site, "--site", site).status == 0
        key = sottovoce("key", "new", folder / f"key-{site}", "--person", "Ada Example")
        policy = folder / f"{site}.toml"
        policy.write_text(
            POLICY.format(site=site, study=load(study).digest()) + key.out.split("policy.toml:\n\n")[1]
        )
        assert sottovoce("policy", "adopt", policy, "--ledger", folder / site).status == 0
    return {"folder": folder, "study": study}


def approve(hospitals: dict[str, Path], site: str, *more: object) -> tuple[int, str]:
    folder = hospitals["folder"]
    (key,) = (folder / f"key-{site}").glob("*.pem")
    done = sottovoce(
        "study", "approve", hospitals["study"], "--ledger", folder / site, "--domain", "intake",
        "--person", "Ada Example", "--key", key, "--yes", *more, width=300,
    )  # fmt: skip
    return done.status, done.out + done.err


def test_a_roster_is_made_of_what_hospitals_print_and_every_approver_signs_for_it(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    said = [sottovoce("ledger", "identity", hospitals["folder"] / site).out.strip() for site in "abc"]
    assert [line[:2] for line in said] == ["a=", "b=", "c="]
    key = json.loads(sottovoce("key", "new", tmp_path / "coordinator", "--json").out)["public_key"]
    sites = [word for line in said for word in ("--site", line)]
    made = sottovoce(
        "study", "roster", "--coordinator", key, *sites, "--out", tmp_path / "roster.json", width=300
    )
    assert made.status == 0
    digest = made.out.split("digest ")[1][:64]

    status, text = approve(hospitals, "a")
    assert status == 2
    assert "Expected a roster beside a study with secure sums" in text
    status, text = approve(hospitals, "a", "--roster", tmp_path / "roster.json")
    assert (status, "GRANTED" in text) == (0, True)
    assert "Secure sums among a, b, c." in text
    shown = json.loads(sottovoce("ledger", "show", hospitals["folder"] / "a", "--json").out)
    assert digest in json.dumps(shown)


def test_a_roster_without_this_hospital_or_with_a_key_twice_is_refused(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    said = [sottovoce("ledger", "identity", hospitals["folder"] / site).out.strip() for site in "abc"]
    one_key = ["--site", said[0], "--site", said[1], "--site", f"c={said[0][2:]}"]
    refused = sottovoce(
        "study", "roster", "--coordinator", "f" * 64, *one_key, "--out", tmp_path / "r.json", width=300
    )
    assert refused.status == 2
    assert "each with a key of its own" in refused.err
    stranger = ["--site", said[0], "--site", said[1], "--site", f"d={said[2][2:]}"]
    assert (
        sottovoce(
            "study", "roster", "--coordinator", "f" * 64, *stranger, "--out", tmp_path / "r.json"
        ).status
        == 0
    )
    status, text = approve(hospitals, "c", "--roster", tmp_path / "r.json")
    assert status == 2
    assert "Expected a roster that names 'c'" in text
    (tmp_path / "r.json").write_text("{}")
    status, text = approve(hospitals, "c", "--roster", tmp_path / "r.json")
    assert (status, "Expected a roster of coordinator and sites" in text) == (2, True)


def test_the_record_of_a_run_is_judged_and_held_against_a_hospitals_ledger(tmp_path: Path) -> None:
    place = Federation(tmp_path, n_sites=4, rounds=1)
    place.run()
    record = place.home / site_ledgers.COORDINATOR / site_ledgers.FEDERATION
    judged = sottovoce(
        "ledger", "federation", record, "--site", place.places["site-1"], "--delta", 0.01, width=200
    )
    assert judged.status == 0, judged.out + judged.err
    assert "update" in judged.out
    torn = tmp_path / "torn.jsonl"
    torn.write_bytes(record.read_bytes().replace(b'"what":"update"', b'"what":"upsate"', 1))
    assert sottovoce("ledger", "federation", torn).status == 1
