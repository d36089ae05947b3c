"""What the README shows is run: every command of its `sh` blocks."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sottovoce.cli import app
from sottovoce.client.site_ledger import SiteLedger
from sottovoce.common.study import load
from sottovoce.simulations import site_ledgers
from tests.fakes.sites import private_study

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
LINES = [shlex.split(line, comments=True) for block in BLOCKS for line in block.splitlines()]
COMMANDS = [words for words in LINES if words]
TARGETS = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def test_the_first_screen_shows_what_leaves_five_commands_and_what_it_is_not_for() -> None:
    first = TEXT.split("\n## ")[0]
    assert "never leaves a hospital" in first
    assert "not for" in first
    assert len(BLOCKS[0].strip().splitlines()) == 5


def test_every_make_target_shown_exists() -> None:
    shown = {command[1] for command in COMMANDS if command[0] == "make"}
    assert {"demo", "test"} <= shown <= set(TARGETS)


def test_every_link_into_the_repository_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {**os.environ, "SOTTOVOCE_CACHE": str(tmp_path_factory.mktemp("cache")), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def corpus(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora") / "voices"
    run(environment, folder.parent, "corpus", "synthesize", folder, "--speakers", 12, "--per-emotion", 1)
    return folder


def run(environment: dict[str, str], place: Path, *arguments: object) -> str:
    command = [sys.executable, "-m", "sottovoce", *map(str, arguments)]
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(
        0, {max(cores)}
    )  # as on a machine with one: no further processes, which import for seconds
    try:
        done = subprocess.run(
            command, env=environment, cwd=place, capture_output=True, text=True, timeout=900, check=False
        )
    finally:
        os.sched_setaffinity(0, cores)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shortened(study: str) -> str:
    """The study as written, with two rounds in one fold."""
    for what, by in (
        (r"^rounds = \d+", "rounds = 2"),
        (r"^\[evaluation\]", "[evaluation]\nonly_folds = [0]"),
    ):
        study, n = re.subn(what, by, study, flags=re.MULTILINE)
        assert n == 1
    return study


def test_the_commands_for_a_folder_of_recordings_work_one_after_the_other(
    environment: dict[str, str], corpus: Path, tmp_path: Path
) -> None:
    scenarios = Path("simulations") / "scenarios"
    (tmp_path / scenarios).mkdir(parents=True)
    for study in (ROOT / scenarios).glob("demo*.toml"):
        (tmp_path / scenarios / study.name).write_text(shortened(study.read_text()))
    ours = [command[1:] for command in COMMANDS if command[0].endswith("sottovoce")]
    on_any_corpus = [
        command for command in ours if "DIR" in command and not any("ravdess" in word for word in command)
    ]
    assert [command[0] for command in on_any_corpus] == ["study", "simulate", "simulate"]
    for command in on_any_corpus:
        if "my.toml" in command and command[0] == "simulate":
            study = tmp_path / "my.toml"
            study.write_text(shortened(study.read_text()))
        run(environment, tmp_path, *(str(corpus) if word == "DIR" else word for word in command))
    assert (tmp_path / "runs" / "my" / "report.html").exists()
    assert (tmp_path / "runs" / "mine" / "report.html").exists()


def test_help_of_every_command_shown_is_there(environment: dict[str, str], tmp_path: Path) -> None:
    runner = CliRunner()
    groups = ("corpus", "study", "privacy", "ledger", "server", "client")
    shown: dict[tuple[str, ...], set[str]] = {}
    for command in COMMANDS:
        if command[0].endswith("sottovoce"):
            words = tuple(command[1 : 3 if command[1] in groups else 2])
            shown.setdefault(words, set()).update(word for word in command if word.startswith("--"))
    assert len(shown) >= 20
    assert "Usage" in run(environment, tmp_path, "--help")  # as a process of its own; the others in this one
    for words, options in sorted(shown.items()):
        told = runner.invoke(
            app, [*words, "--help"], env={"COLUMNS": "200"}
        ).output  # no option's name is cut in two
        assert "Usage" in told, words
        assert [option for option in options if option not in told] == [], words


def test_the_officer_s_first_three_commands_work_on_what_a_run_leaves_behind(
    environment: dict[str, str], tmp_path: Path
) -> None:
    # The fourth is `verify_ledger.py`; tests/deploy holds it to its claims on many ledgers.
    study = load(private_study(tmp_path / "study.toml"))
    places = site_ledgers.open_all(tmp_path / "ledgers", study, ["site-1"])
    with SiteLedger.open(places["site-1"]) as ledger:
        seen = ledger.ledger.checkpoint()
    site_ledgers.keep(places, tmp_path, {"site-1": seen})
    key = (tmp_path / "site-1" / "public-keys.txt").read_text().split()[1]
    names = {
        "SITE": str(tmp_path / "site-1"),
        "KEY": key,
        "SITE/seen.txt": str(tmp_path / "site-1" / "seen.txt"),
    }
    of_ledgers = [command[1:] for command in COMMANDS if command[1] == "ledger"]
    officer = [command for command in of_ledgers if "SITE" in command]
    # The others are run in test_cli_secure_sums.py.
    assert [command[1] for command in of_ledgers] == [
        "identity",
        "federation",
        "verify",
        "recompute",
        "export",
    ]
    for command in officer:
        run(environment, tmp_path, *(names.get(word, word) for word in command))
    assert (tmp_path / "audit" / "verify_ledger.py").is_file()
