"""Claims of simulations/bench: what is compared takes turns, and a missed bar is told."""

import io

import pytest
from rich.console import Console

from sottovoce.simulations.bench import __main__ as bench
from sottovoce.simulations.bench import cohort
from sottovoce.simulations.bench.timing import NotMeasured, Peer, Row, Sample, Times, report, take_turns


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


def test_the_cohort_benchmark_compares_equal_weights() -> None:
    result = cohort.measure(n_clients=3, repeats=1)
    apart = [row for row in result["rows"] if "difference" in row["what"]]
    assert len(apart) == 2
    assert all(row["met"] for row in apart)
