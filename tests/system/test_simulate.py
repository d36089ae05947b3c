"""`sottovoce simulate` as a user runs it: real processes, real speech synthesis, real crashes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sottovoce.cli import main
from sottovoce.common.run_files import read_run

STUDY = """
format = 1
name = "tiny"
purpose = "research"
corpora = [{ name = "voices", synthetic = { n_speakers = 12, utterances_per_emotion = 2, n_sites = 3 } }]
labels = { classes = ["neutral", "happy", "sad", "angry"] }
streams = [
  { name = "frames", parts = [{ kind = "log_mel", n_mels = 16 }] },
  { name = "statistics", parts = [{ kind = "mfcc" }, { kind = "energy" }], pooling = "statistics" },
]
normalisation = { scheme = "speaker" }
training = { learning_rate = 0.003, batch_size = 8 }
privacy = { mode = "none" }
audio = { clip_seconds = 2.0 }

[model]
kind = "fusion"
level = "feature"
branches = [
  { kind = "mlp", stream = "statistics", hidden = 16, dropout = 0.2 },
  { kind = "cnn", stream = "frames", channels = [8, 8], dropout = 0.2 },
]

[federation]
n_sites = 3
rounds = 6
partition = { kind = "corpus_sites" }

[evaluation]
folds = { kind = "by_speaker", k = 2 }
every_rounds = 3
baselines = ["svm"]
baseline_stream = "statistics"
random_split_that_leaks = true
"""

QUIET = {
    "OMP_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}  # as `main` sets them
N_CELLS = 2 * 6  # two folds of federated, central, local, svm and the two that leak


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        **os.environ,
        "SOTTOVOCE_CACHE": str(tmp_path_factory.mktemp("cache")),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "tiny.toml"
    path.write_text(STUDY)
    return path


def sottovoce(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sottovoce", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done


def here(environment: dict[str, str], patch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    """Runs a command in this process: what a process of its own makes of `main` is seen in every other test here."""
    for name, value in (environment | QUIET).items():
        patch.setenv(name, value)
    patch.setattr(sys, "argv", ["sottovoce", *map(str, arguments)])
    main()


@pytest.fixture(scope="module")
def run(
    environment: dict[str, str], study: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = sottovoce(environment, "simulate", study, "--out", out, "--twins", "--workers", "1")
    return out, done.stdout


def weights(run: Path) -> dict[tuple[int, int, str], str | None]:
    return {
        (cell.seed, cell.fold, cell.arm): cell.weights_sha256 for cell in read_run(run / "run.json").cells
    }


def figures(run: Path) -> str:
    return (run / "metrics.json").read_text()


def test_a_run_ends_in_uar_interval_chance_sites_and_report(run: tuple[Path, str]) -> None:
    folder, printed = run
    assert re.search(r"UAR \d+\.\d\s%\s+\(95 % interval \d+\.\d to \d+\.\d; chance 25\.0\s%\)", printed)
    assert "NOT PRIVATE" in printed
    assert all(f"site-{number}" in printed for number in (1, 2, 3))
    assert str(folder / "report.html") in printed.replace("\n", "")
    assert (folder / "report.html").stat().st_size > 10_000


def test_a_run_folder_holds_what_the_documents_say_and_no_features(run: tuple[Path, str]) -> None:
    folder, _ = run
    names = {path.name for path in folder.iterdir()}
    assert names == {
        ".lock", "study.toml", "local.json", "run.json", "rounds.jsonl", "checkpoints", "predictions",
        "predictions.jsonl", "metrics.json", "report.html",
    }  # fmt: skip
    assert len(read_run(folder / "run.json").cells) == N_CELLS


def test_every_arm_scores_every_recording_once(run: tuple[Path, str]) -> None:
    folder, _ = run
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    by_arm: dict[str, list[str]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], []).append(row["utterance"])
    assert set(by_arm) == {
        "federated", "central", "local", "svm", "central (random split, leaks)", "svm (random split, leaks)",
    }  # fmt: skip
    assert all(sorted(keys) == sorted(set(by_arm["federated"])) for keys in by_arm.values())


def test_counts_that_sites_send_equal_those_of_the_predictions(run: tuple[Path, str]) -> None:
    folder, _ = run
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for arm in ("federated", "central"):
        for fold in (0, 1):
            (last,) = [line for line in lines if (line["arm"], line["fold"], line["round"]) == (arm, fold, 6)]
            counts = [[0] * 4 for _ in range(4)]
            for row in rows:
                if (row["arm"], row["fold"]) == (arm, fold):
                    counts[row["truth"]][max(range(4), key=row["log_probs"].__getitem__)] += 1
            assert last["confusion"] == counts
            assert sum(map(sum, counts)) > 0


def test_no_arm_but_those_that_leak_trained_on_a_speaker_it_is_scored_on(run: tuple[Path, str]) -> None:
    # The pooled twin withholds the same speakers as the sites: same fold for the same speaker in every honest arm.
    folder, _ = run
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    folds: dict[str, set[int]] = {}
    for row in rows:
        if "leaks" not in row["arm"]:
            folds.setdefault(row["speaker"], set()).add(row["fold"])
    assert all(len(found) == 1 for found in folds.values())
    leaking: dict[str, set[int]] = {}
    for row in rows:
        if row["arm"] == "svm (random split, leaks)":
            leaking.setdefault(row["speaker"], set()).add(row["fold"])
    assert any(len(found) == 2 for found in leaking.values())


def test_spreading_a_round_over_processes_gives_the_same_bits_and_json_prints_figures_and_nothing_else(
    environment: dict[str, str], run: tuple[Path, str], tmp_path: Path
) -> None:
    one_arm, out = tmp_path / "one.toml", tmp_path / "spread"
    text = STUDY.replace("random_split_that_leaks = true", "").replace('baselines = ["svm"]', "")
    one_arm.write_text(text.replace("k = 2 }", "k = 2 }\nonly_folds = [0]"))
    done = sottovoce(
        environment, "simulate", one_arm, "--out", out, "--engine", "processes", "--workers", "2", "--json"
    )
    assert weights(out) == {(0, 0, "federated"): weights(run[0])[0, 0, "federated"]}
    assert json.loads(done.stdout)["headline"] == "federated"
    assert done.stderr == ""


def kill_at(share: float, out: Path, total: int, environment: dict[str, str], *arguments: str | Path) -> None:
    """Begins a run, or goes on with one, and kills its process when so much of its rounds is in the book."""
    command = [sys.executable, "-m", "sottovoce", "simulate", *map(str, arguments)]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as victim:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            rounds = out / "rounds.jsonl"
            if rounds.exists() and len(rounds.read_bytes().splitlines()) >= share * total:
                break
            time.sleep(0.005)
        victim.send_signal(signal.SIGKILL)
    assert not (out / "metrics.json").exists(), "it was over before it was killed: the test proved nothing"


def test_a_run_that_is_killed_with_one_worker_and_again_with_two_ends_in_the_bits_of_one_that_was_not(
    environment: dict[str, str],
    study: Path,
    run: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, total = tmp_path / "killed", len((run[0] / "rounds.jsonl").read_text().splitlines())
    kill_at(0.3, out, total, environment, study, "--out", out, "--twins", "--workers", "1")
    with pytest.raises(SystemExit) as refused:
        here(environment, monkeypatch, "simulate", study, "--out", out)
    assert refused.value.code == 2
    assert "--resume" in capsys.readouterr().err
    kill_at(0.6, out, total, environment, "--resume", out, "--workers", "2")
    sottovoce(environment, "simulate", "--resume", out, "--workers", "1")
    assert all(weights(out)[0, fold, "central (random split, leaks)"] for fold in (0, 1)), "the last two"
    assert weights(out).keys() == weights(run[0]).keys()
    assert all(digest in (None, weights(run[0])[cell]) for cell, digest in weights(out).items())
    assert figures(out) == figures(run[0])
    assert len((out / "rounds.jsonl").read_text().splitlines()) == total


def test_rounds_that_a_killed_process_was_never_told_of_are_in_the_book_all_the_same(
    environment: dict[str, str], run: tuple[Path, str], tmp_path: Path
) -> None:
    # A worker had ended its cells; the process that keeps the book was killed before it heard of them.
    out = tmp_path / "deaf"
    shutil.copytree(run[0], out)
    (out / "metrics.json").unlink()
    (out / "rounds.jsonl").write_text("")
    sottovoce(environment, "simulate", "--resume", out)
    assert (out / "rounds.jsonl").read_text() == (run[0] / "rounds.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulate"], "Expected either a STUDY to start or --resume"),
        (["simulate", "absent.toml"], "absent.toml: cannot be read"),
        (["simulate", "--resume", "absent"], "expected a run's folder; there is no such folder"),
        (["simulate", "{study}", "--engine", "rey"], "--engine: expected one of inprocess, processes"),
        (["simulate", "{study}", "--data", "other=/tmp", "--out", "{out}"], "came other"),
        (["simulate", "{study}", "--data", "voices={empty}", "--out", "{out}"], "{empty}"),
        (["corpus", "scan", "{empty}"], "{empty}"),
        (["study", "check", "{bad}"], "rounds"),
        (["report", "{empty}"], "study.toml"),
    ],
)
def test_bad_input_gets_one_clear_error(
    environment: dict[str, str],
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.toml").write_text(STUDY.replace("rounds = 6", "rounds = 'six'"))
    places = {
        "study": study,
        "out": tmp_path / "out",
        "empty": tmp_path / "empty",
        "bad": tmp_path / "bad.toml",
    }
    with pytest.raises(SystemExit) as ended:
        here(environment, monkeypatch, *(argument.format(**places) for argument in arguments))
    assert ended.value.code == 2
    assert said.format(**places) in capsys.readouterr().err.replace("\n", " ")
