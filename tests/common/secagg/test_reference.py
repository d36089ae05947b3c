"""A second implementation, written from docs/protocol.md, makes the same bytes and refuses the same."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sottovoce.common.errors import SecureSumError
from sottovoce.common.secagg.complaint import REASONS
from sottovoce.common.secagg.coordinator import Coordinator
from sottovoce.common.secagg.session import decode_session
from tests.fakes.secagg import coins_of, remembered_signatures, signing_key
from tests.fakes.secagg_check import Disagreement, check_refusal, check_transcript
from tests.fakes.secagg_deviations import DEVIATIONS
from tests.fakes.secagg_vectors import FOLDER, TRANSCRIPTS, transcript, write_vectors


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with remembered_signatures():
        yield


REFUSALS = json.loads((FOLDER / "refusals.json").read_text())["refusals"]


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_the_reference_agrees_on_every_byte_of_the_vectors(name: str) -> None:
    table = json.loads((FOLDER / f"{name}.json").read_text())
    assert check_transcript(table) == len(table["messages"])


@pytest.mark.parametrize("seed", range(3))
def test_the_reference_agrees_on_fresh_transcripts(seed: int) -> None:
    lost = {seed: ("advert", "deal", "mask", "consent", "reveal")[seed]}
    check_transcript(transcript(4 + seed % 2, lost, name=f"run {seed}", length=7, bound=10**6))


@pytest.mark.parametrize("ring_bits", [8, 16])
def test_the_reference_agrees_on_fresh_transcripts_in_narrow_rings(ring_bits: int) -> None:
    bound = (2 ** (ring_bits - 1) - 1) // 5
    check_transcript(transcript(5, {3: "mask"}, name="narrow", length=7, bound=bound, ring_bits=ring_bits))


def test_one_changed_byte_is_a_disagreement() -> None:
    table = transcript(3, {})
    masked = next(
        line for line in table["messages"] if line["phase"] == "mask" and line["to"] == "coordinator"
    )
    masked["bytes"] = masked["bytes"][:-2] + ("00" if masked["bytes"][-2:] != "00" else "01")
    with pytest.raises(Disagreement):
        check_transcript(table)


def test_the_reference_refuses_what_a_site_must_refuse() -> None:
    of_sites = [table for table in REFUSALS if table["party"] != "coordinator"]
    assert len(of_sites) > 55
    for table in of_sites:
        check_refusal(table)


def test_the_coordinator_refuses_the_vectors_it_must_refuse() -> None:
    of_coordinator = [table for table in REFUSALS if table["party"] == "coordinator"]
    assert len(of_coordinator) > 10
    for table in of_coordinator:
        with pytest.raises(SecureSumError) as refused:
            _fed(table)
        assert (refused.value.reason, refused.value.accused) == (table["reason"], table["accused"])


def _fed(table: dict[str, object]) -> None:
    coordinator = Coordinator(decode_session(str(table["session"]).encode()), key=signing_key("coordinator"))
    for line in table["received"]:  # type: ignore[attr-defined]
        while coordinator.phase != line["phase"]:
            coordinator.advance()
        coordinator.receive(line["from"], bytes.fromhex(line["bytes"]))
    while coordinator.phase != table["phase"]:
        coordinator.advance()
    if table["phase"] == "sum":
        coordinator.finish()
    else:
        coordinator.receive("hospital-01", bytes.fromhex(str(table["message"])))


def test_the_vectors_are_what_their_command_writes(tmp_path: Path) -> None:
    written = {path.name: path.read_text() for path in write_vectors(tmp_path)}
    assert written == {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    assert {table["name"] for table in REFUSALS} == {deviation.name for deviation in DEVIATIONS}


def test_the_page_names_every_reason() -> None:
    page = (FOLDER.parents[2] / "docs" / "protocol.md").read_text()
    assert all(f"`{reason}`" in page for reason in REASONS)


def test_coins_of_the_vectors_are_the_stream_that_the_page_states() -> None:
    import hashlib

    stream = b"".join(hashlib.sha256(f"name {block}".encode()).digest() for block in range(3))
    draw = coins_of("name")
    assert draw(32) + draw(48) + draw(10) == stream[:90]
