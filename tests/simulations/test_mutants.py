"""The table of mutants is true: every mutant applies, every test exists, the page tells the same, survivors show."""

import ast
import functools
import re
from pathlib import Path

import pytest

from sottovoce.simulations import mutants
from sottovoce.simulations.mutants import MUTANTS, Mutant, judged

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "pitfalls.md"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_applies_to_the_source_exactly_once(mutant: Mutant) -> None:
    text = (ROOT / mutant.path).read_text()
    assert text.count(mutant.old) == 1
    ast.parse(text.replace(mutant.old, mutant.new))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_named_test_exists(mutant: Mutant) -> None:
    path, name = mutant.test.split("::")
    assert name in functions(path)


@functools.cache
def functions(path: str) -> set[str]:
    return {n.name for n in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(n, ast.FunctionDef)}


def test_names_are_different() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_the_page_of_pitfalls_tells_every_mutant_its_trap_and_its_test() -> None:
    rows = re.findall(
        r"^\| ([TP]\d+) \| (?:void|understated|misread) \|.*\| `(\S+)` \| `(\w+)` \|$", PAGE.read_text(), re.M
    )
    told = {(trap, name, test) for trap, name, test in rows}
    assert told == {(mutant.trap, mutant.name, mutant.test.split("::")[1]) for mutant in MUTANTS}
    assert len(rows) == len(MUTANTS)


def tiny_tree(folder: Path, *, asserted: str) -> Path:
    (folder / "common").mkdir()
    (folder / "common" / "part.py").write_text("LIMIT = 1\nOTHER = 1\n")
    (folder / "tests").mkdir()
    (folder / "tests" / "test_part.py").write_text(
        "import pathlib\n\n\ndef test_limit():\n"
        "    text = (pathlib.Path(__file__).parents[1] / 'common' / 'part.py').read_text()\n"
        f"    assert {asserted!r} in text\n"
    )
    (folder / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    return folder


@pytest.fixture
def plain_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees of one line need no plugins, which take seconds to import."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


def outcome(root: Path, old: str, test: str = "tests/test_part.py::test_limit") -> str:
    mutant = Mutant(
        name="m", trap="P1", what="", path="common/part.py", old=old, new="LIMIT = 2\n", test=test
    )
    (verdict,) = judged([mutant], root)
    return verdict.outcome


@pytest.mark.usefixtures("plain_pytest")
def test_a_mutant_that_a_test_notices_is_killed_and_the_tree_is_untouched(tmp_path: Path) -> None:
    root = tiny_tree(tmp_path, asserted="LIMIT = 1")
    assert outcome(root, "LIMIT = 1\n") == "killed"
    assert (root / "common" / "part.py").read_text() == "LIMIT = 1\nOTHER = 1\n"


@pytest.mark.usefixtures("plain_pytest")
def test_a_mutant_that_nothing_notices_survives(tmp_path: Path) -> None:
    assert outcome(tiny_tree(tmp_path, asserted="OTHER = 1"), "LIMIT = 1\n") == "SURVIVED"


@pytest.mark.usefixtures("plain_pytest")
def test_a_mutant_that_does_not_apply_is_no_kill(tmp_path: Path) -> None:
    assert outcome(tiny_tree(tmp_path, asserted="LIMIT = 1"), "LIMIT = 7\n") == "does not apply"


@pytest.mark.usefixtures("plain_pytest")
def test_a_test_that_fails_anyway_or_is_not_there_is_no_kill(tmp_path: Path) -> None:
    root = tiny_tree(tmp_path, asserted="LIMIT = 3")
    assert outcome(root, "LIMIT = 1\n") == "test does not pass"
    assert outcome(root, "LIMIT = 1\n", test="tests/test_part.py::test_gone") == "test did not run"


def test_a_survivor_makes_the_command_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    survivor = mutants.Verdict(mutant=MUTANTS[0], outcome="SURVIVED")
    monkeypatch.setattr(mutants, "judged", lambda chosen: iter([survivor]))
    assert mutants.main([MUTANTS[0].name]) == 1
    killed = mutants.Verdict(mutant=MUTANTS[0], outcome="killed")
    monkeypatch.setattr(mutants, "judged", lambda chosen: iter([killed]))
    assert mutants.main([MUTANTS[0].name]) == 0
