"""A site that breaks the contract under its own valid envelope: refused, and the round goes on without it."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sottovoce.common.flower import Message, RecordDict
from sottovoce.common.records import MAGIC
from sottovoce.common.weights import Layout
from sottovoce.server.contract import Update
from sottovoce.server.exchange import Call, Collected, GridExchange, Share
from tests.fakes.federations import BROKEN, reply, site_names, update_of, weights_of
from tests.fakes.sealed_sites import BAD, sealed_grid

WEIGHTS = weights_of()
LAYOUT = Layout.of(WEIGHTS)
SITES = site_names(3)
OTHERS = [site for site in SITES if site != BAD]
# What a message says of itself beside its envelope is not believed; and a body has one form of an array.
HARMLESS = (
    "another round",
    "another attempt",
    "the name of another node",
    "a tensor with more behind it",
    "columns first",
)


def metrics(**changes: Any) -> Any:
    def answer(message: Message, arrays: dict[str, Any]) -> Message:
        return reply(message, arrays, {"loss": 0.5, "n-examples": 10, "n-steps": 2} | changes)

    return answer


def empty(message: Message, arrays: dict[str, Any]) -> Message:
    return Message(RecordDict(), reply_to=message)


WEIGHED: dict[str, Any] = {
    "a weight of nothing": metrics(weight=0),
    "a weight below nothing": metrics(weight=-9),
    "a weight of 1e12": metrics(weight=1e12),
    "minus nine examples": metrics(**{"n-examples": -9}),
    "1e12 examples, as a float": metrics(**{"n-examples": 1e12}),
    "an empty reply": empty,
}
SPOILED: dict[str, Any] = {
    **{how: answer for how, (answer, _) in BROKEN.items() if how not in HARMLESS},
    **WEIGHED,
}


def collect(folder: Path, log: list[str], **how: Any) -> Collected:
    call = Call(
        round=1,
        rounds=5,
        attempt=1,
        seed=0,
        fold=0,
        layout=LAYOUT,
        weights=LAYOUT.flatten(WEIGHTS),
        deadline_seconds=60.0,
        max_update_norm=100.0,
    )
    grid = sealed_grid(folder, len(SITES), log.append, **how)
    exchange = GridExchange(grid, dict(enumerate(SITES, start=1)))
    return exchange.train(call, [Share(site=site) for site in SITES])


def honest_sum(sites: list[str]) -> np.ndarray:
    total = np.zeros(LAYOUT.size)
    for site in sites:
        returned = {name: array + update_of(site, 1, array.shape, name) for name, array in WEIGHTS.items()}
        total += LAYOUT.flatten(returned).astype(np.float64) - LAYOUT.flatten(WEIGHTS)
    return total


def test_there_are_at_least_thirty_ways_and_an_honest_site_is_none_of_them(tmp_path: Path) -> None:
    assert len(SPOILED) >= 30
    collected = collect(tmp_path, [])
    assert (collected.sites, collected.refused) == (SITES, {})
    np.testing.assert_array_equal(collected.total, honest_sum(SITES))


@pytest.mark.parametrize("how", SPOILED)
def test_a_broken_update_in_a_valid_envelope_adds_nothing_and_the_round_goes_on(
    tmp_path: Path, how: str
) -> None:
    met, real = list[str](), Collected.add

    def add(self: Collected, update: Update, weight: float) -> None:
        met.append(update.site)
        real(self, update, weight)

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("error")
        patch.setattr(Collected, "add", add)
        collected = collect(tmp_path, [], broken=SPOILED[how])
    assert collected.sites == met == OTHERS
    reason = collected.refused[BAD]
    assert len(reason) < 300
    assert reason.isprintable()
    assert "0.123" not in reason
    np.testing.assert_array_equal(collected.total, honest_sum(OTHERS))


@pytest.mark.parametrize("how", HARMLESS)
def test_what_no_body_can_say_changes_nothing(tmp_path: Path, how: str) -> None:
    collected = collect(tmp_path, [], broken=BROKEN[how][0])
    assert (collected.sites, collected.refused) == (SITES, {})
    np.testing.assert_array_equal(collected.total, honest_sum(SITES))


def test_no_examples_at_all_change_no_weight(tmp_path: Path) -> None:
    collected = collect(tmp_path, [], broken=metrics(**{"n-examples": 0}))
    np.testing.assert_array_equal(collected.total, honest_sum(SITES))
    assert collected.weight == 3.0


@pytest.mark.parametrize(
    "body", [b"", b"\x80\x04N.", MAGIC, MAGIC + b"\xff\xff\xff\xff", b"\0" * 4096], ids=repr
)
def test_a_signed_body_of_no_records_is_refused_with_a_line(tmp_path: Path, body: bytes) -> None:
    log: list[str] = []
    collected = collect(tmp_path, log, body=body)
    assert collected.sites == OTHERS
    assert "(content)" in collected.refused[BAD]
    (line,) = log
    assert "site-2 to train was refused (content)" in line
