"""The commands of a hospital and of its compliance officer, as they are typed: what they say and how they end."""

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from sottovoce.cli import main
from sottovoce.client.site_ledger import SiteLedger
from sottovoce.common.ledger.verify import STEPS
from sottovoce.common.study import load

STUDY = """
format = 1
name = "intake"
purpose = "medical"
corpora = [{ name = "voices" }]
labels = { classes = ["happy", "sad"] }
streams = [{ name = "statistics", parts = [{ kind = "energy" }], pooling = "statistics" }]
normalisation = { scheme = "speaker" }
training = { learning_rate = 0.003 }
model = { kind = "linear", stream = "statistics" }
federation = { n_sites = 2, rounds = 3, partition = { kind = "corpus_sites" } }
evaluation = { folds = { kind = "by_patient_hash", k = 4 } }

[privacy]
mode = "local"
clip_norm = 1.0
noise_multiplier = 8.0
sampling_prob = 0.032
n_patients_public = 2000
expected_patients = 64.0
steps_per_round = 2
delta = 1e-5
"""
PAGE = (Path(__file__).parents[2] / "docs" / "compliance.md").read_text(encoding="utf-8")
COMMANDS = [
    block.splitlines() for block in re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
]
DOMAIN, PERSON, PATIENT = "intake-2026", "Ada Example", "patient-seventeen"


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


def sottovoce(*words: object, typed: str = "", width: int = 80) -> Done:
    """Runs the console command in this process, with a keyboard and a terminal's width."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["sottovoce", *map(str, words)]),
        mock.patch.object(sys, "stdin", io.StringIO(typed)),
        mock.patch.dict("os.environ", {"COLUMNS": str(width)}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    code = ended.value.code
    return Done(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Site:
    """A hospital's files, and everything that the commands which made them have printed."""

    folder: Path
    public_key: str
    printed: str

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger"

    @property
    def approval(self) -> tuple[object, ...]:
        (key,) = (self.folder / "ada").glob("*.pem")
        return ("--ledger", self.ledger, "--domain", DOMAIN, "--person", PERSON, "--key", key)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """From nothing to a ledger with a study, two releases, one of them burned, and a withdrawal."""
    folder, printed = tmp_path_factory.mktemp("hospital"), list[Done]()

    def run(*words: object, typed: str = "") -> Done:
        printed.append(sottovoce(*words, typed=typed))
        assert printed[-1].status == 0, printed[-1]
        return printed[-1]

    study, policy, ledger = folder / "study.toml", folder / "policy.toml", folder / "ledger"
    study.write_text(STUDY)
    approver = run("key", "new", folder / "ada", "--person", PERSON).out.split("policy.toml:\n\n")[1]
    created = json.loads(run("ledger", "create", ledger, "--site", "hospital-a", "--json").out)
    run("policy", "new", policy, "--site", "hospital-a")
    text = policy.read_text().replace("studies = []", f'studies = ["{load(study).digest()}"]')
    policy.write_text(text + approver)
    run("policy", "check", policy)
    run("policy", "adopt", policy, "--ledger", ledger)
    site = Site(folder, created["public_key"], "")
    run("study", "approve", study, *site.approval, typed="y\n")
    _release(ledger)
    run("ledger", "withdraw", ledger, "--domain", DOMAIN, typed=f"{PATIENT}\n")
    (folder / "kept.txt").write_text(run("ledger", "checkpoint", ledger).out)
    run("ledger", "rotate-key", ledger, "--person", PERSON, "--reason", "yearly [red]or so[/red]")
    return Site(folder, created["public_key"], "".join(done.out + done.err for done in printed))


def _release(folder: Path) -> None:
    with SiteLedger.open(folder) as site:
        (grant,) = site.budget.state.grants
        for number in range(2):
            site.budget.reserve(
                release=f"r{number}",
                grant=grant,
                what="update",
                steps=2,
                round=number,
                attempt=1,
                manifest=b"patients",
                withdrawals_honoured=0,
            )
        site.budget.commit("r0", b"weights")
        site.budget.burn("r1", "training ended early")


@pytest.fixture
def copy(made: Site, tmp_path: Path) -> Site:
    shutil.copytree(made.folder, tmp_path / "site")
    return Site(tmp_path / "site", made.public_key, made.printed)


def test_an_officer_verifies_and_recomputes_a_sites_ledger(made: Site) -> None:
    kept = ("--public-key", made.public_key, "--seen", made.folder / "kept.txt")
    verified = sottovoce("ledger", "verify", made.ledger, *kept)
    assert verified.status == 0
    assert verified.out.count("passed") == 9
    assert verified.out.rstrip().endswith("VALID, and it contains every checkpoint that was given.")
    recomputed = sottovoce("ledger", "recompute", made.ledger)
    assert recomputed.status == 0
    assert "SAME: all 2 recorded figures are as computed here." in recomputed.out
    figures = json.loads(sottovoce("ledger", "recompute", made.ledger, "--json").out)
    (study,) = figures["studies"]
    assert study["epsilon_recorded"] == study["epsilon"] > study["epsilon_spent"] > 0
    assert [row["releases"] for row in study["rounds"]] == [1, 2], "a burned release is spent"


def test_an_export_is_judged_alike_by_us_and_by_the_auditors_own_file(made: Site, tmp_path: Path) -> None:
    out = tmp_path / "export"
    exported = sottovoce("ledger", "export", made.ledger, out, "--seen", made.folder / "kept.txt")
    assert exported.status == 0
    assert not (out / "digest-key").exists()
    assert sottovoce("ledger", "verify", out, "--public-key", made.public_key).status == 0
    command = [sys.executable, "verify_ledger.py", ".", "--public-key", made.public_key, "--grid", "0"]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "PASSED: hospital-a, 2 releases")
    opened = sottovoce("ledger", "export", made.ledger, tmp_path / "opened", "--with-digest-key")
    assert opened.status == 0
    assert (tmp_path / "opened" / "digest-key").stat().st_mode & 0o077 == 0


def test_verify_ends_with_1_for_a_bad_ledger_and_2_for_a_bad_question(copy: Site, tmp_path: Path) -> None:
    other = ("--public-key", "ab" * 32)
    assert sottovoce("ledger", "verify", copy.ledger).status == 0
    assert sottovoce("ledger", "verify", copy.ledger, *other).status == 1
    for question in (
        ("ledger", "verify", tmp_path / "nowhere"),
        ("ledger", "verify", copy.folder),
        ("ledger", "verify", copy.ledger, "--public-key", "abc"),
        ("ledger", "verify", copy.ledger, "--seen", copy.folder / "study.toml"),
        ("ledger", "verify", copy.ledger, "--seen", tmp_path / "nothing.txt"),
        ("ledger", "verify", copy.ledger, "--policy", copy.folder / "study.toml"),
    ):
        asked = sottovoce(*question)
        assert (asked.status, asked.out) == (2, "")
        assert asked.err.startswith("error: ")
    assert f"\n  {copy.ledger}" in sottovoce("ledger", "verify", copy.folder).err, (
        "it names what is further down"
    )


def test_a_policy_beside_the_ledger_that_is_not_the_one_in_force_is_found(copy: Site) -> None:
    beside = copy.ledger / "policy.toml"
    for text in (
        beside.read_text().replace("epsilon_cap = 8.0", "epsilon_cap = 9.0"),
        "no policy at all",
        "\0",
    ):
        beside.write_text(text)
        verified = json.loads(sottovoce("ledger", "verify", copy.ledger, "--json").out)
        assert [finding["step"] for finding in verified["findings"]] == [9]
    beside.unlink()
    assert sottovoce("ledger", "verify", copy.ledger).status == 0, "then it was not asked"


def test_damage_is_located_and_nothing_is_recomputed_from_a_part(copy: Site) -> None:
    path = copy.ledger / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"kind":"commit"', b'"kind":"commIt"'))
    verified = sottovoce("ledger", "verify", copy.ledger)
    assert verified.status == 1
    assert "entry 6" in verified.out
    assert "not judged: the ledger breaks off" in " ".join(verified.out.split())
    shown = sottovoce("ledger", "show", copy.ledger)
    assert shown.status == 1
    assert "nothing is believed from entry 6 on" in " ".join(shown.out.split())
    recomputed = sottovoce("ledger", "recompute", copy.ledger)
    assert (recomputed.status, recomputed.out) == (1, "")
    assert sottovoce("ledger", "checkpoint", copy.ledger).status == 2
    assert sottovoce("ledger", "export", copy.ledger, copy.folder / "out").status == 0, (
        "an auditor must see it"
    )


def test_what_a_crash_leaves_is_told_from_what_was_changed(copy: Site) -> None:
    path, head = copy.ledger / "ledger.jsonl", copy.ledger / "head"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"entry":{"bo')
    torn = " ".join(sottovoce("ledger", "verify", copy.ledger).out.split())
    assert "nothing was done with it" in torn
    path.write_bytes(whole[:-20])  # the head had covered this one
    assert "nothing was done with it" not in " ".join(sottovoce("ledger", "verify", copy.ledger).out.split())
    path.write_bytes(whole)
    head.write_text((copy.folder / "kept.txt").read_text())  # one entry short, as between the two writes
    ahead = sottovoce("ledger", "verify", copy.ledger)
    assert ahead.status == 1
    assert "the head covers 9 of 10 entries" in " ".join(ahead.out.split())


def test_a_rollback_shows_from_a_checkpoint_that_others_hold(copy: Site) -> None:
    entries = (copy.ledger / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    kept = copy.folder / "later.txt"
    kept.write_text(sottovoce("ledger", "checkpoint", copy.ledger).out)
    (copy.ledger / "ledger.jsonl").write_bytes(b"".join(entries[:-1]))
    (copy.ledger / "head").write_text((copy.folder / "kept.txt").read_text())
    assert sottovoce("ledger", "verify", copy.ledger).status == 0, "alone nobody can tell"
    seen = sottovoce("ledger", "verify", copy.ledger, "--seen", kept)
    assert seen.status == 1
    assert "rolled back" in seen.out


def test_nothing_is_signed_without_a_yes(copy: Site) -> None:
    before = (copy.ledger / "ledger.jsonl").read_bytes()
    assert sottovoce("ledger", "move", copy.ledger, "--person", PERSON, "--reason", "a copy").status == 0
    said = sottovoce("study", "approve", copy.folder / "study.toml", *copy.approval, typed="n\n")
    assert said.status == 1
    assert "domain then" in said.out
    assert "Nothing was signed" in said.out
    after = (copy.ledger / "ledger.jsonl").read_bytes()
    assert after.startswith(before)
    assert after[len(before) :].count(b"\n") == 1, "the move alone"


def test_a_study_that_the_policy_does_not_list_is_denied_with_its_reason(copy: Site) -> None:
    sottovoce("ledger", "move", copy.ledger, "--person", PERSON, "--reason", "a copy")
    other = copy.folder / "other.toml"
    other.write_text(STUDY.replace("rounds = 3", "rounds = 4"))
    said = sottovoce("study", "approve", other, *copy.approval, "--yes", "--json")
    assert said.status == 1
    assert "not among the studies" in json.loads(said.out)["reason"]


def test_a_copied_ledger_is_refused_until_a_person_declares_the_move(copy: Site) -> None:
    withdraw = ("ledger", "withdraw", copy.ledger, "--domain", DOMAIN, "--patient", "another")
    refused = sottovoce(*withdraw)
    assert refused.status == 2
    assert "sottovoce ledger move" in refused.err
    move = ("ledger", "move", copy.ledger, "--person", PERSON, "--reason", "new machine", "--json")
    assert json.loads(sottovoce(*move).out) == {"moved": True}
    assert json.loads(sottovoce(*move).out) == {"moved": False}
    assert sottovoce(*withdraw).status == 0


def test_a_ledger_in_use_can_be_read_and_not_written(made: Site) -> None:
    with SiteLedger.open(made.ledger):
        assert sottovoce("ledger", "verify", made.ledger).status == 0
        assert sottovoce("ledger", "checkpoint", made.ledger).status == 0
        refused = sottovoce("ledger", "withdraw", made.ledger, "--domain", DOMAIN, "--patient", "x")
    assert refused.status == 2
    assert "another process works on this ledger" in refused.err


def test_keys_policies_and_ledgers_are_never_written_over(made: Site) -> None:
    before = {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()}
    for command in (
        ("key", "new", made.folder / "ada"),
        ("policy", "new", made.folder / "policy.toml", "--site", "hospital-a"),
        ("ledger", "create", made.ledger, "--site", "hospital-a"),
        ("ledger", "export", made.ledger, made.folder),
    ):
        refused = sottovoce(*command)
        assert refused.status == 2, command
    assert {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()} == before


def test_no_command_prints_a_secret_and_no_ledger_says_who_withdrew(made: Site, tmp_path: Path) -> None:
    shown = (
        sottovoce("ledger", "show", made.ledger, "--json").out + sottovoce("ledger", "show", made.ledger).out
    )
    sottovoce("ledger", "export", made.ledger, tmp_path / "out")
    public = [shown, made.printed, *(path.read_text() for path in (tmp_path / "out").glob("*.*"))]
    secrets = [PATIENT, (made.ledger / "keys" / "digest-key").read_text().strip()]
    for path in [*(made.ledger / "keys").glob("*.pem"), *(made.folder / "ada").glob("*.pem")]:
        secrets.append(path.read_text().splitlines()[1])
    assert len(secrets) == 5
    assert not [secret for secret in secrets for text in public if secret in text]
    assert "a patient of intake-2026 withdrew consent" in shown
    assert (made.ledger / "withdrawn.jsonl").stat().st_mode & 0o077 == 0


def test_text_of_a_ledger_is_printed_as_text_and_fits_80_columns(made: Site) -> None:
    for command in ("show", "verify", "recompute"):
        lines = sottovoce("ledger", command, made.ledger).out.splitlines()
        assert max(map(len, lines)) <= 80, command
    assert "[red]or so[/red]" in sottovoce("ledger", "show", made.ledger, width=200).out


def test_check_and_plan_say_what_a_study_costs_before_it_runs(made: Site) -> None:
    study = made.folder / "study.toml"
    checked = sottovoce("study", "check", study)
    assert "no problems. epsilon 0." in checked.out
    assert "at delta 1e-05 for each patient" in checked.out
    asked = ("--target-epsilon", "0.1", "--spent", made.ledger, "--json")
    plan = json.loads(sottovoce("privacy", "plan", study, *asked).out)
    assert plan["study"]["sentence"] in checked.out
    left = plan["rounds_left"]
    assert (left["domain"], left["misfits"], left["decided_by"]) == (DOMAIN, [], "rdp_filter")
    assert left["rounds"] > 3


def test_a_distributed_study_is_written_checked_and_planned(tmp_path: Path) -> None:
    study = tmp_path / "together.toml"
    asked = ("--patients", 200, "--epsilon", 2, "--mode", "distributed", "--sites", 6)
    assert sottovoce("study", "new", study, *asked).status == 0
    checked = sottovoce("study", "check", study)
    assert "no problems. SIMULATED NOISE, NOT PRIVATE; this study would cost epsilon 2.00" in checked.out
    planned = sottovoce("privacy", "plan", study, "--cap", 2, "--target-epsilon", 4)
    assert planned.status == 0
    assert max(map(len, planned.out.splitlines())) <= 80
    assert "if all others collude" in planned.out
    assert "rounds left: 60 under the cap 2" in planned.out
    study.write_text(re.sub("n_parameters = [0-9]+", "n_parameters = 17", study.read_text()))
    refused = sottovoce("study", "check", study)
    assert refused.status == 2
    assert re.search(r"privacy.n_parameters: expected [0-9]{3,}, .*; came 17", refused.err)


def test_the_officers_four_commands_are_run_as_they_are_written(made: Site, tmp_path: Path) -> None:
    shutil.copytree(made.ledger, tmp_path / "SITE")
    shutil.copy(made.folder / "kept.txt", tmp_path / "SITE" / "seen.txt")
    walk = [line.replace("KEY", made.public_key) for line in COMMANDS[0]]
    assert [words.split()[:3] for words in walk[:3]] == [
        ["sottovoce", "ledger", verb] for verb in ("verify", "recompute", "export")
    ]
    with contextlib.chdir(tmp_path):
        for line in walk[:3]:
            assert sottovoce(*shlex.split(line, comments=True)[1:]).status == 0, line
        offline = [sys.executable, *shlex.split(walk[3], comments=True)[1:], "--grid", "0"]
        assert subprocess.run(offline, capture_output=True, check=False).returncode == 0
    for line in COMMANDS[1]:
        words = shlex.split(line, comments=True)
        said = sottovoce(*words[1:3], "--help", width=120)
        assert said.status == 0, line
        assert not [word for word in words if word.startswith("--") and word not in said.out], line


def test_the_officers_page_shows_the_steps_as_they_are_printed() -> None:
    for step, what in STEPS.items():
        assert f"{step:>2}   {what} " in PAGE


def test_a_study_without_privacy_has_one_clear_line(tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text(STUDY.split("[privacy]")[0].replace("[privacy]", "") + '[privacy]\nmode = "none"\n')
    for command in (("study", "check"), ("privacy", "plan")):
        said = sottovoce(*command, study)
        assert said.status == 0
        assert "NOT PRIVATE: privacy.mode is 'none'" in said.out
        assert len(said.out.splitlines()) == 1
