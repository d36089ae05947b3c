"""Claims of verify.py: every change is found, where it is; what a person should look at comes in order."""

import json
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sottovoce.client.policy import adopt
from sottovoce.common.config import canonical
from sottovoce.common.ledger.entries import Recovery
from sottovoce.common.ledger.store import HEAD_FILE, LEDGER_FILE
from sottovoce.common.ledger.verify import STEPS, verify
from sottovoce.common.privacy.budget import Budget, Granted
from tests.fakes.faulty_disk import FaultyDisk, FaultyFolder
from tests.fakes.ledger_mutations import mutations
from tests.fakes.ledgers import ACCOUNTANT, hospital, lived_in, lived_with_sums, reserve

VECTORS = sorted((Path(__file__).parents[2] / "vectors" / "ledger").glob("*.json"))


def parts(disk: FaultyDisk) -> dict[str, Any]:
    policy = hospital().policy(
        version=2, reason="more rounds", domains=(replace(hospital().policy().domains[0], epsilon_cap=4.0),)
    )
    return {
        "ledger": disk.names[LEDGER_FILE].data,
        "head": disk.names[HEAD_FILE].data.decode(),
        "public_key": hospital().key.public_hex,
        "policy": canonical(policy),
    }


def test_a_good_ledger_passes_every_step() -> None:
    disk = lived_in()
    verdict = verify(**parts(disk), seen=[disk.names[HEAD_FILE].data.decode()])
    assert verdict.ok, verdict.findings
    plain = verdict.plain()
    assert [row["result"] for row in plain["steps"][:9]] == ["passed"] * 9
    assert len(plain["steps"]) == len(STEPS) == 10
    json.dumps(plain)


def test_a_cap_raised_after_spending_is_the_first_thing_to_look_at() -> None:
    first = verify(**parts(lived_in())).attention[0]
    assert "AFTER SPENDING" in first.what
    assert "from 3 to 4" in first.what


def test_a_cap_raised_before_any_spending_is_not() -> None:
    disk, at = FaultyDisk(), hospital()
    with at.create(FaultyFolder(disk)) as ledger:
        terms = replace(at.policy().domains[0], epsilon_cap=4.0)
        adopt(at.policy(version=2, domains=(terms,)), ledger)
    (found,) = verify(disk.names[LEDGER_FILE].data).attention
    assert "before any spending" in found.what


def test_steps_that_were_not_asked_say_so() -> None:
    disk = lived_in()
    verdict = verify(disk.names[LEDGER_FILE].data, head=disk.names[HEAD_FILE].data.decode())
    results = {row["step"]: row["result"] for row in verdict.plain()["steps"]}
    assert results[6].startswith("not asked")
    assert results[8].startswith("not asked")
    assert results[9].startswith("not asked")


def test_a_step_that_was_not_judged_is_not_called_passed() -> None:
    given = parts(lived_in())
    broken = verify(**{**given, "ledger": given["ledger"][:-40]}).plain()
    results = {row["step"]: row["result"] for row in broken["steps"]}
    assert results[1] == "FAILED"
    assert results[2].startswith("passed for the first")
    assert results[7].startswith("not judged")
    assert results[9].startswith("not judged")
    other_head = {**given, "public_key": "0" * 64, "head": "none"}
    results = {row["step"]: row["result"] for row in verify(**other_head).plain()["steps"]}
    assert (results[6], results[7]) == ("FAILED", "FAILED"), "a wrong key hides no wrong head"


@pytest.mark.parametrize(("lived", "n_mutations"), [(lived_in, 250), (lived_with_sums, 120)])
def test_every_single_mutation_is_found_at_its_entry(lived: Any, n_mutations: int) -> None:
    """10^5 of them in `simulations/bench/ledger.py`; a seeded few hundred here."""
    given = parts(lived())
    if lived is lived_with_sums:
        del given["policy"]
    source, draw = given.pop("ledger"), random.Random(11)
    for number, (mutated, entry) in enumerate(mutations(source, draw)):
        if number == n_mutations:
            break
        if mutated == source:
            continue
        verdict = verify(mutated, **given)
        assert not verdict.ok, (number, entry)
        located = verdict.findings[0].entry
        assert located is not None
        # A byte put in or taken out where two entries meet belongs to either.
        assert abs(located - entry) <= 1, (number, entry, verdict.findings)


def test_every_changed_bit_of_head_and_policy_is_found_in_its_file() -> None:
    given = parts(lived_in())
    for name, where in (("head", "head"), ("policy", "policy")):
        for position in range(0, len(given[name]), 3):
            text = given[name]
            changed = text[:position] + chr(ord(text[position]) ^ 1) + text[position + 1 :]
            findings = verify(**{**given, name: changed}).findings
            assert findings, position
            assert {finding.where for finding in findings} <= {where, *_sizes(findings)}, position


def _sizes(findings: Any) -> set[str]:
    """A head whose number grew is located at the entry that is missing."""
    return {finding.where for finding in findings if "ends after" in finding.what}


def test_a_rolled_back_ledger_and_a_rewritten_one_are_found_by_a_checkpoint_held_elsewhere() -> None:
    disk, at = FaultyDisk(draw=random.Random(0)), hospital()
    with at.create(FaultyFolder(disk)) as ledger:
        budget = Budget(ledger, ACCOUNTANT)
        granted = at.approve(budget)
        assert isinstance(granted, Granted)
        older = disk.copy()
        reserve(budget, granted.grant)
        note = budget.commit("r0", b"update")
    old = older.names[LEDGER_FILE].data, older.names[HEAD_FILE].data.decode()
    assert verify(old[0], head=old[1]).ok, "alone, nobody can tell"
    (finding,) = verify(old[0], head=old[1], seen=[note]).findings
    assert (finding.step, finding.entry) == (8, 4)
    assert "rolled back" in finding.what
    with at.open(FaultyFolder(older)) as ledger:  # the holder of the key goes another way
        for _ in range(3):
            ledger.append(Recovery(kind="recovery", cut_bytes=7))
    new = older.names[LEDGER_FILE].data, older.names[HEAD_FILE].data.decode()
    assert verify(new[0], head=new[1]).ok, "alone, nobody can tell"
    (finding,) = verify(new[0], head=new[1], seen=[note]).findings
    assert finding.step == 8
    assert "rewritten" in finding.what


def test_verify_never_raises_whatever_the_bytes() -> None:
    draw = random.Random(3)
    for _ in range(200):
        data = draw.randbytes(draw.randrange(300))
        verdict = verify(
            data, head=draw.randbytes(40).decode("latin1"), seen=[""], public_key="zz", policy="{"
        )
        assert not verdict.ok


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_a_vector_ends_as_it_says(path: Path) -> None:
    vector = json.loads(path.read_text())
    verdict = verify(
        vector["ledger"].encode("latin1"),
        head=vector["head"],
        seen=vector["seen"],
        public_key=vector["public_key"],
        policy=vector["policy"],
    )
    found = [[finding.step, finding.where] for finding in verdict.findings]
    assert found == vector["findings"]


def test_there_is_a_vector_for_every_step_and_a_good_one() -> None:
    expected = [json.loads(path.read_text())["findings"] for path in VECTORS]
    assert [] in expected
    assert {finding[0] for findings in expected for finding in findings} == set(range(1, 10))
    with tempfile.TemporaryDirectory() as folder:
        from tests.fakes.ledger_vectors import write_vectors

        names = {path.name for path in write_vectors(Path(folder))}
    assert names == {path.name for path in VECTORS}, "run `python -m tests.fakes.ledger_vectors`"
