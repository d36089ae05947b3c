"""Claims of simulations/bench: what is compared takes turns, and a missed bar is told."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sottovoce.common.keys import SigningKey
from sottovoce.common.ledger import checkpoint, reader, state
from sottovoce.simulations.bench import __main__ as bench
from sottovoce.simulations.bench import cohort, ledger
from sottovoce.simulations.bench.remembered import remember_signatures
from sottovoce.simulations.bench.timing import (
    NotMeasured,
    Peer,
    Row,
    Sample,
    Times,
    parts_run,
    report,
    take_turns,
)
from tests.fakes.ledger_schedules import run_schedule


def times_of(*seconds: float) -> Times:
    return Times(tuple(Sample(seconds=s, cpu_seconds=s / 2, page_faults=0) for s in seconds))


def test_a_ratio_is_of_neighbours_so_that_drift_cancels() -> None:
    plain, ours = times_of(1.0, 2.0, 4.0, 8.0, 16.0), times_of(1.1, 2.2, 4.4, 8.8, 17.6)
    assert ours.ratio(plain) == pytest.approx(1.1)
    assert ours.cpu_ratio(plain) == pytest.approx(1.1)
    assert ours.ratio(times_of(16.0, 8.0, 4.0, 2.0, 1.0)) == pytest.approx(1.1)  # the middle one


def test_things_take_turns_in_an_order_that_alternates() -> None:
    order: list[str] = []

    def turn(name: str) -> float:
        order.append(name)
        return 1.0

    times = take_turns({"a": lambda: turn("a"), "b": lambda: turn("b")}, repeats=3, warm_up=1)
    assert "".join(order) == "baabbaab"
    assert len(times["a"].seconds) == 3


def test_a_peer_that_does_not_run_is_not_measured_and_says_so() -> None:
    peer = Peer("python3", "sottovoce.no_such_module")
    with pytest.raises(NotMeasured, match="ended with status 1"):
        peer.turn()
    peer.close()


def test_the_table_shows_what_was_missed_and_what_was_not_measured() -> None:
    rows = [
        Row(what="slow", value=2.0, ratio=2.0, against="plain", bar="at most 1.05", met=False),
        Row(what="elsewhere", value=None, note="not measured: no such thing"),
    ]
    console = Console(file=io.StringIO(), width=160)
    console.print(bench.table_of("rounds", report(rows)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2.00 of plain" in text
    assert "missed" in text
    assert "not measured: no such thing" in text


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["no-such-benchmark"])
    assert "expected names of features, rounds" in capsys.readouterr().err


def proof_of(what: str) -> Any:
    return lambda size: [
        Row(what=f"{what} of {size}", value=0.0, met=True),
        Row(what=what, value=float(size)),
    ]


def test_a_part_runs_at_another_size_or_not_at_all() -> None:
    parts = {"a": (100, proof_of("a")), "b": (100, proof_of("b")), "c": (100, proof_of("c"))}
    rows = parts_run(parts, a=7, b=0)
    assert [row.what for row in rows] == ["a of 7", "a", "c of 100", "c"]
    assert [row.note for row in rows] == ["0 s; a part of the full 100", "", "0 s", ""]
    with pytest.raises(ValueError, match="parts of a, b, c; came d"):
        parts_run(parts, d=1)


def test_parts_that_did_not_run_keep_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(**sizes: int) -> dict[str, Any]:
        return report(parts_run({"a": (100, proof_of("a")), "b": (100, proof_of("b"))}, **sizes))

    monkeypatch.setattr(ledger, "measure", measure)
    out, page = tmp_path / "proofs.json", tmp_path / "proofs.md"
    assert bench.main(["--json", str(out), "--size", "ledger.b=0", "ledger"]) == 0
    arguments = ["--size", "ledger.a=0", "--size", "ledger.b=5", "--page", str(page), "ledger"]
    assert bench.main(["--json", str(out), *arguments]) == 0
    told = [row["what"] for row in json.loads(out.read_text())["ledger"]["rows"]]
    assert told == ["a of 100", "a", "b of 5", "b"]
    assert page.read_text().startswith("# Proofs at length")
    assert "| b of 5 |" in page.read_text()


def test_what_is_remembered_changes_no_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [vars(run_schedule(seed)) for seed in range(4)]
    names = ((state, "verified"), (state, "policy_from"), (state, "canonical"), (checkpoint, "verified"))
    for place, name in (*names, (reader, "verified"), (reader, "decode"), (SigningKey, "sign")):
        monkeypatch.setattr(place, name, getattr(place, name))  # put back when this test is over
    remember_signatures.__wrapped__()
    assert [vars(run_schedule(seed)) for seed in range(4)] == before
    assert reader.decode.cache_info().hits > 0  # type: ignore[attr-defined]


def test_the_cohort_benchmark_compares_equal_weights() -> None:
    result = cohort.measure(n_clients=3, repeats=1)
    apart = [row for row in result["rows"] if "difference" in row["what"]]
    assert len(apart) == 2
    assert all(row["met"] for row in apart)
