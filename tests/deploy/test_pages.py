"""The threat model and the runbook say what is so: tests that exist, commands that exist, files that exist."""

import re
from functools import cache
from pathlib import Path

import pytest

from sottovoce.common.monitoring import Metrics
from tests.deploy.test_deploy import check_command, spoken

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [DOCS / "threat-model.md", DOCS / "runbook.md"]
TEST_NAME = re.compile(r"`(test_\w+)`")


@cache
def existing() -> frozenset[str]:
    texts = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    return frozenset(name for text in texts for name in re.findall(r"^def (test_\w+)\(", text, re.M))


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = set(TEST_NAME.findall((DOCS / "threat-model.md").read_text()))
    assert len(named) > 80
    assert sorted(named - existing() - {"test_every_test_that_the_threat_model_names_exists"}) == []


def test_every_adversary_has_what_holds_and_what_does_not() -> None:
    sections = (DOCS / "threat-model.md").read_text().split("\n## ")[3:-1]
    assert len(sections) == 9
    for section in sections:
        title = section.splitlines()[0]
        assert "**Does not hold.**" in section, title
        rows = [line for line in section.splitlines() if line.startswith("| ") and "---" not in line][1:]
        assert rows, title
        for row in rows:
            assert TEST_NAME.search(row), f"{title}: a row without a test: {row}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_of_a_page_is_one_of_ours(page: Path) -> None:
    for words in spoken(page.read_text()):
        check_command(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(
        r"`(deploy/[\w./-]+|(?:systemd|kubernetes)/[\w.-]*|[\w.-]+\.(?:yml|example\.toml))`", text
    ):
        assert (ROOT / name).exists() or (ROOT / "deploy" / name).exists(), name


def test_every_metric_of_the_runbook_is_served() -> None:
    served = {
        metric.name for part in ("coordinator", "hospital") for metric in Metrics(part)._registry.collect()
    }
    named = set(re.findall(r"`(sottovoce_\w+?)(?:_total)?(?:\{[^}]*\})?`", (DOCS / "runbook.md").read_text()))
    assert named
    assert named <= served


# A sentence that the runbook explains, and the file that says it.
SENTENCES = {
    "the connection was refused": "client/trouble.py",
    "none came in time": "client/trouble.py",
    "came one of another authority": "client/trouble.py",
    "Expected this machine's clock to agree": "client/trouble.py",
    "to know this site's node key": "client/trouble.py",
    "its front answered": "client/trouble.py",
    "This ledger was copied or moved": "common/ledger/store.py",
    "it was cut or rolled back": "common/ledger/store.py",
    "This site has not approved this study": "client/hospital.py",
    "This site released nothing in this round": "client/releases.py",
    "Expected updates of at least": "server/rounds.py",
    "expected to be alone; another process works on this ledger": "common/ledger/files.py",
    "Expected no other agent for this hospital": "client/agent_files.py",
    "nginx cannot use": "server/front.py",
    "for the front to be free": "server/front.py",
}


def test_the_sentences_that_the_runbook_explains_are_said() -> None:
    page = (DOCS / "runbook.md").read_text()
    for sentence, file in SENTENCES.items():
        assert sentence in page, sentence
        assert sentence in (ROOT / file).read_text(), f"{file} no longer says: {sentence}"
