"""Claims of server/contract.py and server/exchange.py: what breaks the contract meets no arithmetic."""

import math
import warnings

import numpy as np
import pytest

from sottovoce.common.errors import RunError, UpdateRefused
from sottovoce.common.flower import Array, Reply, array_record
from sottovoce.common.groups import Tables
from sottovoce.common.weights import Layout
from sottovoce.server.contract import Contract, confusion_counts
from sottovoce.server.exchange import Call, Collected, GridExchange, Share
from sottovoce.simulations.engines.inprocess import InProcessGrid
from tests.fakes.federations import (
    BROKEN,
    N_CLASSES,
    broken_app,
    honest_app,
    nodes_of,
    site_names,
    update_of,
    weights_of,
)

WEIGHTS = weights_of()
LAYOUT = Layout.of(WEIGHTS)
SITES = site_names(3)


def call(round: int = 1, attempt: int = 1) -> Call:
    return Call(
        round=round,
        rounds=5,
        attempt=attempt,
        seed=0,
        fold=0,
        layout=LAYOUT,
        weights=LAYOUT.flatten(WEIGHTS),
        deadline_seconds=60.0,
        max_update_norm=100.0,
    )


def collect(app: object, shares: list[Share] | None = None) -> Collected:
    grid = InProcessGrid(app, nodes_of(3), {})  # type: ignore[arg-type]
    return GridExchange(grid, grid.sites).train(call(), shares or [Share(site=site) for site in SITES])


def honest_sum(sites: list[str], weights: list[float]) -> np.ndarray:
    """The sum in the plainest way."""
    total = np.zeros(LAYOUT.size)
    for site, weight in zip(sites, weights, strict=True):
        returned = {name: array + update_of(site, 1, array.shape, name) for name, array in WEIGHTS.items()}
        total += weight * (LAYOUT.flatten(returned).astype(np.float64) - LAYOUT.flatten(WEIGHTS))
    return total


def test_honest_updates_are_summed_with_their_public_weights() -> None:
    shares = [Share(site=site, weight=weight) for site, weight in zip(SITES, [1.0, 2.0, 0.5], strict=True)]
    collected = collect(honest_app, shares)
    np.testing.assert_array_equal(collected.total, honest_sum(SITES, [1.0, 2.0, 0.5]))
    assert (collected.weight, collected.sites, collected.refused) == (3.5, SITES, {})
    assert (collected.n_bytes_down, collected.n_bytes_up) == (3 * 40, 3 * 40)


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_update_adds_nothing_and_its_reason_is_kept(how: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collected = collect(broken_app(how))
    assert BROKEN[how][1] in collected.refused["site-2"]
    assert collected.sites == ["site-1", "site-3"]
    np.testing.assert_array_equal(collected.total, honest_sum(["site-1", "site-3"], [1.0, 1.0]))


@pytest.mark.parametrize("how", BROKEN)
def test_a_refusal_is_one_short_line_without_any_value(how: str) -> None:
    reason = collect(broken_app(how)).refused["site-2"]
    assert "\n" not in reason
    assert len(reason) < 300
    assert "0.123" not in reason


def test_there_are_at_least_thirty_ways_and_an_honest_site_is_none_of_them() -> None:
    assert len(BROKEN) >= 30
    assert collect(honest_app).refused == {}


def test_what_a_site_says_of_its_examples_does_not_change_its_weight() -> None:
    boasting = broken_app("a metric nobody asked for")
    assert "site-2" in collect(boasting).refused
    metrics = {"loss": 0.5, "n-examples": 2**52, "n-steps": 1}
    update = contract().check("a", Reply(node_id=1, group=call().group, arrays=returned(), metrics=metrics))
    collected = Collected(total=np.zeros(LAYOUT.size))
    collected.add(update, 1.0)
    assert collected.weight == 1.0


def contract(bound: float = 100.0) -> Contract:
    sent = LAYOUT.flatten(WEIGHTS)
    return Contract(group=call().group, layout=LAYOUT, sent=sent, max_update_norm=bound)


def returned(step: float = 0.25) -> dict[str, Array]:
    return dict(array_record({name: np.asarray(array + np.float32(step)) for name, array in WEIGHTS.items()}))


def test_the_norm_bound_is_inclusive_and_of_the_whole_update() -> None:
    metrics = {"loss": 0.5, "n-examples": 1, "n-steps": 1}
    reply = Reply(node_id=1, group=call().group, arrays=returned(), metrics=metrics)
    difference = contract().check("a", reply).difference
    norm = math.sqrt(float(np.sum(difference.astype(np.float64) ** 2)))
    assert norm == pytest.approx(0.25 * math.sqrt(10), rel=1e-6)
    contract(bound=norm * (1 + 1e-12)).check("a", reply)
    with pytest.raises(UpdateRefused, match="norm at most"):
        contract(bound=norm * (1 - 1e-6)).check("a", reply)


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"confusion": [1, 2, 3]},
        {"confusion": [1, 2, 3, -4]},
        {"confusion": [1.0, 2.0, 3.0, 4.0]},
        {"confusion": 4},
        {"confusion": [1, 2, 3, 2**60]},
        {"confusion": [1, 2, 3, 4], "speaker": 7},
    ],
    ids=str,
)
def test_confusion_counts_of_another_form_are_refused(metrics: dict[str, object]) -> None:
    with pytest.raises(UpdateRefused):
        confusion_counts("g", Reply(node_id=1, group="g", metrics=metrics), Tables(n_classes=N_CLASSES))  # type: ignore[arg-type]


def test_confusion_counts_are_summed_over_sites() -> None:
    grid = InProcessGrid(honest_app, nodes_of(3), {})
    evaluated = GridExchange(grid, grid.sites).evaluate(call(), SITES, Tables(n_classes=N_CLASSES))
    np.testing.assert_array_equal(evaluated.counts, [[[3, 6], [9, 12]]])


def test_two_nodes_with_one_name_are_no_roster() -> None:
    grid = InProcessGrid(honest_app, nodes_of(2), {})
    with pytest.raises(RunError, match="'a' is the name of two"):
        GridExchange(grid, {1: "a", 2: "a"})
