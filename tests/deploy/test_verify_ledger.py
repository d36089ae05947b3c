"""The auditor's file: alone, short, and of one mind with ours about every vector."""

import ast
import importlib.util
import json
import math
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sottovoce.common.config import as_plain
from sottovoce.common.ledger.entries import DomainOpened
from sottovoce.common.ledger.export import export
from sottovoce.common.ledger.rule import by_the_filter, merged, order_of
from sottovoce.common.ledger.store import HEAD_FILE, LEDGER_FILE
from sottovoce.common.ledger.verify import entries_of
from sottovoce.common.privacy.accountant import Event, epsilon
from sottovoce.common.privacy.filter import Draws, filter_epsilon, fixed_order
from tests.fakes.ledger_vectors import forged
from tests.fakes.ledgers import ACCOUNTANT, charge_of, hospital, lived_in, lived_with_sums, sums_of

ROOT = Path(__file__).parents[2]
PATH = ROOT / "deploy" / "auditor" / "verify_ledger.py"
BOUND_PATH = PATH.with_name("distributed_bound.py")
VECTORS = sorted((ROOT / "tests" / "vectors" / "ledger").glob("*.json"))


def program(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


AUDITOR = program(PATH)
DRAW = {"what": "update", "mechanism": "poisson_gaussian"}


def test_it_is_one_file_below_400_lines_over_two_libraries() -> None:
    text = PATH.read_text()
    assert len(text.splitlines()) < 400
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    # scipy comes with dp-accounting
    assert found - set(sys.stdlib_module_names) == {"cryptography", "dp_accounting", "scipy"}


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_it_finds_in_every_vector_what_we_find(path: Path) -> None:
    vector = json.loads(path.read_text())
    seen = [(f"checkpoint {number}", note) for number, note in enumerate(vector["seen"])]
    _, findings = AUDITOR.judge(
        vector["ledger"].encode("latin1"), vector["head"], seen, vector["policy"], vector["public_key"], 0
    )
    found = [[step, where] for step, where, _ in findings]
    if vector["findings"] and vector["findings"][0][0] == 1:  # it says less about forms; the line is the same
        assert found[0][1] == vector["findings"][0][1]
    else:
        assert found == vector["findings"]


def test_no_bytes_make_it_fall_over() -> None:
    draw, good = random.Random(2), lived_in().names[LEDGER_FILE].data
    for _ in range(150):
        data = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        if bytes(data) != good:
            _, findings = AUDITOR.judge(bytes(data), "", [("x", "junk")], None, "zz", 0)
            assert findings


@pytest.mark.parametrize(
    "numbers",
    [
        {"noise_multiplier": 1.1, "sampling_prob": 0.1, "steps": 40},
        {"noise_multiplier": 4.0, "sampling_prob": 1.0, "steps": 3},
        {"noise_multiplier": 2.0, "sampling_prob": 0.1, "steps": 40, "cap": 150},
        {"noise_multiplier": 2.0, "sampling_prob": 0.1, "steps": 40, "cap": 240},
        {"noise_multiplier": 4.0, "sampling_prob": 0.05, "steps": 5, "records_per_patient": 3},
    ],
)
def test_its_figures_are_ours(numbers: dict[str, Any]) -> None:
    """The same grid here, so that it takes seconds; ten times finer in `simulations/bench/ledger.py`."""
    numbers = {"n_patients": 2000, "records_per_patient": 1, **numbers}
    for cap in (0.5, 3.0, 10.0):
        for kept in ({}, {"conceded_delta": 1e-7}):
            ours = filter_epsilon(
                [Draws(**numbers)], 1e-5, order=fixed_order(cap, 1e-5), kept=kept.get("conceded_delta", 0.0)
            )
            opened = {"delta": 1e-5, "epsilon_cap": cap, **kept}
            assert AUDITOR.filter_epsilon([{**DRAW, **numbers}], opened) == pytest.approx(ours, abs=1e-9)
    ours = epsilon([Event(**{"cap": None, **numbers})], 1e-5, grid=1e-3)
    assert AUDITOR.epsilon_of([{**DRAW, **numbers}], 1e-5, 1e-3) == pytest.approx(ours, abs=1e-4)


def test_an_exported_folder_is_checked_and_recomputed_by_the_file_in_it(tmp_path: Path) -> None:
    disk, folder = lived_in(), tmp_path / "ledger"
    folder.mkdir()
    for name in (LEDGER_FILE, HEAD_FILE):
        (folder / name).write_bytes(disk.names[name].data)
    export(folder, tmp_path / "out", seen=[disk.names[HEAD_FILE].data.decode()])
    good = run(tmp_path / "out", "--grid", "1e-4", "--seen", "seen/000.txt")
    assert good.returncode == 0, good.stdout + good.stderr
    assert good.stdout.startswith("entry 3: epsilon recorded")
    assert "raised from 3.0 to 4.0 AFTER SPENDING" in good.stdout
    (tmp_path / "out" / "head").write_text("no head")
    bad = run(tmp_path / "out", "--grid", "0")
    assert bad.returncode == 1
    assert "WRONG in step 7, head" in bad.stdout


def test_a_recorded_figure_that_is_too_low_is_found() -> None:
    numbers = {"noise_multiplier": 2.0, "sampling_prob": 0.25, "steps": 8}
    charges = [{**DRAW, "n_patients": 2000, "records_per_patient": 1, **numbers}]
    body = {
        "charges": charges,
        "delta": 1e-5,
        "decided_by": "rdp_filter",
        "epsilon": 1.8,
        "domain_epsilon": 9.0,
    }
    found = list(AUDITOR.figures(3, body, {"before": [], "delta": 1e-5, "epsilon_cap": 3.0}, 1e-3))
    assert [finding[:2] for finding in found] == [(10, "entry 3"), (10, "entry 3")]


@pytest.mark.parametrize(("cap_of_the_order", "wrong"), [(3.0, 0), (8.0, 1)])
def test_an_order_that_followed_a_raised_cap_is_found(cap_of_the_order: float, wrong: int) -> None:
    numbers = {"noise_multiplier": 1.5, "sampling_prob": 0.25, "steps": 8}
    charges = [{**DRAW, "n_patients": 2000, "records_per_patient": 1, **numbers}]
    draws = Draws(n_patients=2000, **numbers)  # type: ignore[arg-type]
    recorded = filter_epsilon([draws], 1e-5, order=fixed_order(cap_of_the_order, 1e-5))
    body = {"charges": charges, "delta": 1e-5, "decided_by": "rdp_filter", "domain_epsilon": recorded}
    body["epsilon"] = AUDITOR.epsilon_of(charges, 1e-5, 1e-3)
    raised = {"before": [], "delta": 1e-5, "epsilon_cap": 3.0, "cap": 8.0}
    assert len(list(AUDITOR.figures(9, body, raised, 1e-3))) == wrong


# sums over sites


def test_the_second_file_is_short_and_over_nothing_but_python() -> None:
    text = BOUND_PATH.read_text()
    assert len(text.splitlines()) <= 150
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("seed", range(6))
def test_its_figures_of_sums_are_ours_and_it_never_finds_more(seed: int) -> None:
    draw = random.Random(seed)
    charges: list[Any] = [
        sums_of(
            draw.randrange(1, 50),
            draw.choice([1.0, 3.0, 8.0]),
            sampling_prob=draw.choice([0.02, 0.3, 1.0]),
            cap=draw.choice([None, 700, 1500]),
            n_colluding=draw.randrange(5),
            overflow_prob=draw.choice([0.0, 1e-13, 1e-9]),
        )
        for _ in range(draw.randrange(1, 4))
    ]
    if seed % 2:
        charges.append(charge_of(draw.randrange(1, 9), 4.0))
    tables = [as_plain(charge) for charge in charges]
    if not seed % 2:  # of one mode, as every approval is
        ours = ACCOUNTANT.epsilon(charges, 1e-5)
        theirs = AUDITOR.epsilon_of(tables, 1e-5, 1e-3)
        assert ours == theirs == math.inf or 0.0 <= ours - theirs <= 1e-3
    opened: Any = {"delta": 1e-5, "epsilon_cap": draw.choice([1.0, 3.0, 8.0]), "conceded_delta": 1e-8}
    entry = DomainOpened(
        kind="domain_opened",
        domain="intake",
        n_patients=2000,
        unit="patient",
        adjacency="add_or_remove_one",
        small_population=False,
        **opened,
    )
    ours = by_the_filter(merged(charges), entry, order=order_of(entry))
    theirs = AUDITOR.filter_epsilon(tables, opened)
    assert ours == theirs == math.inf or ours == pytest.approx(theirs, rel=1e-12, abs=1e-9)


def test_a_first_study_that_rdp_allowed_is_held_against_the_least_bound_of_any_order() -> None:
    charge = sums_of(150, 1.0, sampling_prob=0.01)
    table, figure = as_plain(charge), ACCOUNTANT.epsilon([charge], 1e-5)
    body = {"charges": [table], "delta": 1e-5, "decided_by": "rdp", "sites_per_patient": 1, "epsilon": figure}
    domain = {"before": [], "delta": 1e-5, "epsilon_cap": 1.0, "conceded_delta": 1e-8}
    for recorded, wrong in ((figure, []), (0.9 * figure, ["entry 3"])):
        found = AUDITOR.figures(3, {**body, "domain_epsilon": recorded}, domain, 1e-3)
        assert [finding[1] for finding in found] == wrong
    assert AUDITOR.filter_epsilon([table], domain) > figure + 0.01, "the filter is another figure"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    disk, folder = lived_with_sums(), tmp_path_factory.mktemp("site")
    for name in (LEDGER_FILE, HEAD_FILE):
        (folder / name).write_bytes(disk.names[name].data)
    export(folder, folder / "out")
    return folder / "out"


def test_a_ledger_with_sums_is_checked_with_every_number_of_colluders_and_sites(exported: Path) -> None:
    good = run(exported, "--grid", "1e-4")
    assert good.returncode == 0, good.stdout + good.stderr
    said = [line for line in good.stdout.splitlines() if line.startswith("entry 3: ")]
    assert said[0].startswith("entry 3: epsilon recorded")
    wanted = [*(f"if {t} other sites collude" for t in range(4)), "if all other sites collude (4)"]
    wanted.append("for a patient in 2 sites")
    assert [line.split(" ", 4)[4] for line in said[2:]] == wanted
    figures = [float(line.split(" ")[3]) for line in said[2:7]]
    assert figures == sorted(figures)
    recorded = float(said[0].split(" ")[4].rstrip(","))
    assert figures[2] == pytest.approx(recorded, abs=2e-4), "the study's own figure is against two"


def test_without_the_second_file_such_a_ledger_does_not_pass_and_says_why(
    exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "alone")
    (tmp_path / "alone" / "distributed_bound.py").unlink()
    alone = run(tmp_path / "alone", "--grid", "1e-4")
    assert alone.returncode == 1
    assert "distributed_bound.py is not beside this file" in alone.stdout
    assert "Traceback" not in alone.stderr


@pytest.mark.parametrize("name", ["epsilon", "domain_epsilon"])
def test_a_figure_of_sums_that_was_recorded_too_low_is_found(name: str) -> None:
    disk = lived_with_sums()
    entries = entries_of(disk.names[LEDGER_FILE].data)
    changed = [
        replace(entry, body=replace(entry.body, **{name: 0.9 * getattr(entry.body, name)}))
        if entry.index == 3
        else entry
        for entry in entries
    ]
    ledger, head = forged(changed)
    policy = next(entry.body.text for entry in entries if entry.body.kind == "policy")
    _, findings = AUDITOR.judge(ledger, head, [], policy, hospital().key.public_hex, 1e-4)
    assert [finding[:2] for finding in findings] == [(10, "entry 3")]
    assert findings[0][2].startswith(f"{name} is recorded as")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the copy in the folder, away from our code."""
    command = [
        sys.executable,
        "-I",
        "verify_ledger.py",
        ".",
        "--public-key",
        hospital().key.public_hex,
        *arguments,
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
