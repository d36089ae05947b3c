"""A private study as a user runs it: stamped everywhere, through real ledgers, with the same bits after a crash."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sottovoce.common.ledger.entries import Approval, Commit, Reserve
from sottovoce.common.ledger.recompute import recompute
from sottovoce.common.ledger.verify import entries_of, verify
from sottovoce.common.privacy.budget import PldAccountant
from sottovoce.common.run_files import read_run
from sottovoce.common.study import loads
from sottovoce.simulations.simulate import stamp_of

STUDY = """
format = 1
name = "tiny"
purpose = "medical"
corpora = [{ name = "voices", synthetic = { n_speakers = 12, utterances_per_emotion = 2, n_sites = 3 } }]
labels = { classes = ["neutral", "happy", "sad", "angry"] }
streams = [{ name = "statistics", parts = [{ kind = "mfcc" }, { kind = "energy" }], pooling = "statistics" }]
normalisation = { scheme = "speaker" }
training = { learning_rate = 0.01 }
model = { kind = "mlp", stream = "statistics", hidden = 8 }
federation = { n_sites = 3, rounds = 4, partition = { kind = "corpus_sites" } }
evaluation = { folds = { kind = "by_patient_hash", k = 2 }, every_rounds = 2 }

[privacy]
mode = "local"
clip_norm = 1.0
noise_multiplier = 1.5
sampling_prob = 0.5
n_patients_public = 12
expected_patients = 3.0
steps_per_round = 3
delta = 0.03
small_population = true
counts_noise_multiplier = 2.0
seeded_noise = true
"""
STAMP = "SIMULATED NOISE, NOT PRIVATE; this study would cost epsilon"
SITES = ("site-1", "site-2", "site-3")
PRIVATE_CELLS = ("seed0-fold0-federated", "seed0-fold1-federated")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = str(tmp_path_factory.mktemp("cache"))
    return {**os.environ, "SOTTOVOCE_CACHE": cache, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "tiny.toml"
    path.write_text(STUDY)
    return path


def simulate(environment: dict[str, str], *arguments: str | Path) -> str:
    command = [sys.executable, "-m", "sottovoce", "simulate", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(
    environment: dict[str, str], study: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, simulate(environment, study, "--out", out, "--twins", "--workers", "1")


def digests(run: Path) -> dict[tuple[int, str], str | None]:
    return {(cell.fold, cell.arm): cell.weights_sha256 for cell in read_run(run / "run.json").cells}


def test_every_artefact_of_seeded_noise_says_that_it_is_not_private(run: tuple[Path, str]) -> None:
    folder, printed = run
    assert STAMP in " ".join(printed.split())
    assert read_run(folder / "run.json").stamp.startswith(STAMP)
    assert json.loads((folder / "metrics.json").read_text())["privacy"].startswith(STAMP)
    assert STAMP in (folder / "report.html").read_text()
    for site in SITES:
        entries = entries_of((folder / "ledgers" / PRIVATE_CELLS[0] / site / "ledger.jsonl").read_bytes())
        (approval,) = [entry.body for entry in entries if isinstance(entry.body, Approval)]
        assert approval.noise == "seeded"


@pytest.mark.parametrize("cell", PRIVATE_CELLS)
@pytest.mark.parametrize("site", SITES)
def test_every_ledger_verifies_and_its_figures_are_recomputed(
    run: tuple[Path, str], cell: str, site: str
) -> None:
    folder = run[0] / "ledgers" / cell / site
    key = (folder / "public-keys.txt").read_text().split()[1]
    ledger, head = (folder / "ledger.jsonl").read_bytes(), (folder / "head").read_text()
    verdict = verify(ledger, head=head, seen=[(folder / "seen.txt").read_text()], public_key=key)
    assert verdict.ok, verdict.findings
    entries = entries_of(ledger)
    assert recompute(entries, PldAccountant())["ok"]
    reserved = [entry.body for entry in entries if isinstance(entry.body, Reserve)]
    assert [one.round for one in reserved if one.what == "update"] == [1, 2, 3, 4]
    assert [one.round for one in reserved if one.what == "evaluation_counts"] == [2, 4]
    assert sum(isinstance(entry.body, Commit) for entry in entries) == len(reserved)


def test_a_site_s_checkpoint_reaches_the_coordinator(run: tuple[Path, str]) -> None:
    # A twin that must fail: the ledger without its last entries is no longer the one that was seen.
    folder = run[0] / "ledgers" / PRIVATE_CELLS[0] / "site-2"
    lines = (folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    shorter = verify(b"".join(lines[:-6]), seen=[(folder / "seen.txt").read_text()])
    assert any(finding.step == 8 and "rolled back" in finding.what for finding in shorter.findings)


def test_no_private_key_no_withdrawal_and_no_feature_stays_in_a_run_s_folder(run: tuple[Path, str]) -> None:
    folder = run[0]
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert not {name for name in names if "signing" in name or "digest-key" in name or name.endswith(".npy")}
    assert not (folder / "work").exists()
    found = {path.name for path in (folder / "ledgers" / PRIVATE_CELLS[0] / "site-1").iterdir()}
    assert found == {"ledger.jsonl", "head", "policy.json", "public-keys.txt", "seen.txt"}


def test_no_round_of_a_private_federation_states_a_loss(run: tuple[Path, str]) -> None:
    lines = [json.loads(line) for line in (run[0] / "rounds.jsonl").read_text().splitlines()]
    private = [line for line in lines if line["arm"] == "federated"]
    assert private
    assert all(line.get("loss") is None for line in private)
    assert all(line["loss"] > 0 for line in lines if line["arm"] == "federated without privacy")


def test_a_killed_private_run_goes_on_to_the_same_bits_and_the_burn_is_in_the_ledger(
    environment: dict[str, str], study: Path, run: tuple[Path, str], tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "sottovoce", "simulate", str(study), "--out", str(out), "--twins"]
    with subprocess.Popen(
        [*command, "--workers", "2"], env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as victim:
        ledger = out / "work" / "ledgers" / PRIVATE_CELLS[1] / "site-2" / "ledger.jsonl"
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and not (ledger.exists() and b'"round":2' in ledger.read_bytes()):
            time.sleep(0.002)
        victim.send_signal(signal.SIGKILL)
    assert not (out / "metrics.json").exists(), "it was over before it was killed: the test proved nothing"
    simulate(environment, "--resume", out, "--workers", "1")
    assert digests(out) == {**digests(run[0]), **{k: v for k, v in digests(out).items() if v is None}}
    assert (out / "metrics.json").read_text() == (run[0] / "metrics.json").read_text()
    for cell in PRIVATE_CELLS:
        for site in SITES:
            ledger_bytes = (out / "ledgers" / cell / site / "ledger.jsonl").read_bytes()
            assert verify(ledger_bytes, head=(out / "ledgers" / cell / site / "head").read_text()).ok


def test_a_stamp_says_how_often_a_run_with_secret_noise_spent_it() -> None:
    secret = STUDY.replace("seeded_noise = true\n", "")
    assert "this run made 2" in stamp_of(loads(secret))
    assert "this run made" not in stamp_of(loads(secret.replace("k = 2 }", "k = 2 }, only_folds = [0]")))
    assert "this run made" not in stamp_of(loads(STUDY))


def test_with_secret_noise_the_figure_is_real_and_no_seed_leads_to_the_weights(
    environment: dict[str, str], run: tuple[Path, str], tmp_path: Path
) -> None:
    text = STUDY.replace("seeded_noise = true\n", "").replace("k = 2 }", "k = 2 }, only_folds = [0]")
    (tmp_path / "secret.toml").write_text(text)
    printed = simulate(environment, tmp_path / "secret.toml", "--out", tmp_path / "secret", "--workers", "1")
    assert "NOT PRIVATE" not in printed
    assert read_run(tmp_path / "secret" / "run.json").stamp.startswith("epsilon ")
    assert digests(tmp_path / "secret")[0, "federated"] != digests(run[0])[0, "federated"]
