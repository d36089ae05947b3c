"""Claims of server/rounds.py, over the real in-process grid and client apps that train by a formula."""

import dataclasses
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sottovoce.common import study as studies
from sottovoce.common.errors import QuorumError, RunError
from sottovoce.common.flower import ClientApp, Message
from sottovoce.common.study import Study
from sottovoce.common.sums import quorum_of
from sottovoce.common.weights import Layout, digest
from sottovoce.server import rounds, strategies
from sottovoce.server.exchange import Collected, GridExchange
from sottovoce.server.rounds import Cell, Outcome, RoundRecord, cohort_of, run, run_alone
from sottovoce.simulations.engines.inprocess import InProcessGrid
from tests.fakes.clock import Clock
from tests.fakes.federations import (
    app_of,
    broken_app,
    honest_app,
    honestly,
    nodes_of,
    site_names,
    study_of,
    update_of,
    weights_of,
)

CELL = Cell(seed=0, fold=1, arm="federated")
FEDADAM = studies.FedAdam(kind="fedadam", server_learning_rate=0.1)


def exchange_of(
    app: ClientApp = honest_app, n: int = 4, grid: type[InProcessGrid] = InProcessGrid
) -> GridExchange:
    opened = grid(app, nodes_of(n), {})
    return GridExchange(opened, opened.sites)


def federate(study: Study | None = None, app: ClientApp = honest_app, **more: Any) -> Outcome:
    study = study or study_of()
    return run(exchange_of(app, study.federation.n_sites), study, cell=CELL, weights=weights_of(), **more)


def test_fedavg_equals_the_plain_mean_of_the_sites_weights() -> None:
    outcome = federate(study_of(rounds=3))
    for name, array in weights_of().items():
        expected = array.astype(np.float64)
        for round in (1, 2, 3):
            expected += np.mean([update_of(site, round, array.shape, name) for site in site_names(4)], axis=0)
        np.testing.assert_allclose(outcome.weights[name], expected, atol=2e-6)


def test_site_weights_of_the_study_are_used_in_order_of_the_names() -> None:
    study = study_of(n_sites=3, rounds=1, site_weights=(1.0, 2.0, 5.0))
    outcome = federate(study)
    for name, array in weights_of().items():
        updates = [update_of(site, 1, array.shape, name) for site in site_names(3)]
        expected = array + (updates[0] + 2 * updates[1] + 5 * updates[2]) / 8
        np.testing.assert_allclose(outcome.weights[name], expected, atol=1e-6)


def test_five_runs_end_in_the_same_bits() -> None:
    assert len({federate().digest for _ in range(5)}) == 1
    assert federate().digest == digest(federate().weights)


class ShuffledGrid(InProcessGrid):
    """Works on whatever question comes last: replies arrive in another order."""

    def pull_messages(self, message_ids: Iterable[str], *, timeout: float | None = None) -> Iterable[Message]:
        return super().pull_messages(reversed(list(message_ids)))


def test_the_order_of_arrival_changes_no_bit() -> None:
    shuffled = run(exchange_of(grid=ShuffledGrid), study_of(), cell=CELL, weights=weights_of())
    assert shuffled.digest == federate().digest


def test_the_initial_weights_are_left_as_they_were() -> None:
    weights = weights_of()
    run(exchange_of(), study_of(), cell=CELL, weights=weights)
    assert digest(weights) == digest(weights_of())


def test_init_and_apply_are_pure() -> None:
    algorithm, layout = strategies.of(study_of(strategy=FEDADAM)), Layout.of(weights_of())
    state = rounds.init(algorithm, layout, weights_of())
    collected = Collected(total=np.ones(layout.size), weight=2.0, loss=3.0)
    first, diagnostics = rounds.apply(algorithm, state, collected)
    second, _ = rounds.apply(algorithm, state, collected)
    np.testing.assert_array_equal(first.weights, second.weights)
    np.testing.assert_array_equal(collected.total, np.ones(layout.size))
    assert diagnostics.loss == 1.5
    assert diagnostics.update_norm == pytest.approx(0.5 * layout.size**0.5)


def test_a_bad_update_is_left_out_and_the_round_goes_on() -> None:
    outcome = federate(study_of(rounds=2), broken_app("a NaN"))
    assert [record.sites for record in outcome.rounds] == [("site-1", "site-3", "site-4")] * 2
    assert [(round, site) for round, site, _ in outcome.refused] == [(1, "site-2"), (2, "site-2")]
    for name, array in weights_of().items():
        others = [s for s in site_names(4) if s != "site-2"]
        expected = array + sum(
            np.mean([update_of(s, r, array.shape, name) for s in others], axis=0) for r in (1, 2)
        )
        np.testing.assert_allclose(outcome.weights[name], expected, atol=2e-6)


@pytest.mark.parametrize(("cohort", "quorum"), [(1, 1), (2, 2), (3, 2), (4, 3), (6, 4)])
def test_quorum_without_a_word_is_more_than_half(cohort: int, quorum: int) -> None:
    assert quorum_of(study_of(), cohort) == quorum


def test_quorum_is_the_studys_number() -> None:
    assert quorum_of(study_of(quorum=4), 4) == 4


def test_too_few_updates_end_the_run_with_the_reasons_after_three_attempts() -> None:
    calls: list[str] = []

    def answer(message: Message, context: Any) -> Message:
        calls.append(message.metadata.group_id)
        if context.node_config["site"] == "site-2":
            raise RunError("the disk is full")
        return honestly(message, context)

    with pytest.raises(QuorumError, match=r"at least 4 of 4 sites in round 1; came 3.*site-2.*disk is full"):
        federate(study_of(quorum=4), app_of(answer))
    assert sorted(set(calls)) == [f"round 1 attempt {n}" for n in (1, 2, 3)]


def test_a_second_attempt_that_succeeds_gives_the_same_bits() -> None:
    failed: list[int] = []

    def answer(message: Message, context: Any) -> Message:
        if context.node_config["site"] == "site-2" and len(failed) < 2:
            failed.append(1)
            raise RunError("not yet")
        return honestly(message, context)

    outcome = federate(study_of(quorum=4), app_of(answer))
    assert outcome.rounds[0].attempts == 3
    assert outcome.digest == federate(study_of(quorum=4)).digest


def test_a_late_answer_to_an_earlier_attempt_is_refused() -> None:
    held: list[Message] = []

    def answer(message: Message, context: Any) -> Message:
        reply = honestly(message, context)
        if context.node_config["site"] != "site-2":
            return reply
        held.append(reply)
        if len(held) == 1:
            raise RunError("lost")
        held[0].metadata.__dict__["_reply_to_message_id"] = message.metadata.message_id
        return held[0]

    with pytest.raises(QuorumError, match="expected an answer to round 1 attempt 3"):
        federate(study_of(quorum=4), app_of(answer))


def test_in_one_process_sites_not_begun_at_the_deadline_are_left_out() -> None:
    def answer(message: Message, context: Any) -> Message:
        if context.node_config["site"] == "site-2":
            time.sleep(50.0)  # of the clock below
        return honestly(message, context)

    with Clock():
        outcome = federate(study_of(rounds=1, deadline_seconds=40.0, quorum=2), app_of(answer))
    assert outcome.rounds[0].sites == ("site-1", "site-2")
    assert set(outcome.rounds[0].refused) >= {"site-3", "site-4"}
    assert "deadline" in outcome.rounds[0].refused["site-4"]


def test_a_draw_of_sites_is_public_repeatable_and_fair() -> None:
    study = study_of(n_sites=9, sites_per_round=3)
    names = [f"s{number}" for number in range(9)]
    drawn = [tuple(s.site for s in cohort_of(study, names, seed=0, round=r)) for r in range(1, 301)]
    again = [tuple(s.site for s in cohort_of(study, names[::-1], seed=0, round=r)) for r in range(1, 301)]
    assert drawn == again
    assert all(len(set(cohort)) == 3 and list(cohort) == sorted(cohort) for cohort in drawn)
    counts = [sum(name in cohort for cohort in drawn) for name in names]
    assert min(counts) > 70  # 100 expected, standard deviation 8.2
    assert max(counts) < 130


def test_only_the_drawn_sites_are_asked() -> None:
    outcome = federate(study_of(n_sites=6, sites_per_round=2, rounds=4))
    assert all(len(record.sites) == 2 and record.bytes_down == 2 * 40 for record in outcome.rounds)


def test_evaluation_comes_every_few_rounds_and_at_the_end() -> None:
    outcome = federate(study_of(rounds=5))
    assert [record.round for record in outcome.rounds if record.confusion] == [2, 4, 5]
    assert outcome.rounds[-1].confusion == ((4, 8), (12, 16))


def test_with_nobody_withheld_nothing_is_evaluated() -> None:
    everybody = dataclasses.replace(CELL, fold=-1)
    outcome = run(exchange_of(), study_of(), cell=everybody, weights=weights_of())
    assert all(record.confusion is None for record in outcome.rounds)


def test_the_client_is_told_what_it_needs_and_never_the_attempt() -> None:
    told: list[dict[str, Any]] = []

    def answer(message: Message, context: Any) -> Message:
        told.append(dict(message.content["config"]))
        return honestly(message, context)

    prox = studies.FedProx(kind="fedprox", mu=0.3)
    federate(study_of(rounds=1, strategy=prox), app_of(answer), client_config={"leaking-split": True})
    assert told[0] == {
        "round": 1,
        "rounds": 1,
        "seed": 0,
        "fold": 1,
        "proximal-mu": 0.3,
        "leaking-split": True,
    }


def test_another_number_of_sites_than_the_study_says_is_refused() -> None:
    with pytest.raises(RunError, match=r"Expected federation.n_sites=5 sites; came 4"):
        run(exchange_of(n=4), study_of(n_sites=5), cell=CELL, weights=weights_of())


def test_alone_each_site_keeps_its_own_updates() -> None:
    study = study_of(rounds=2, strategy=FEDADAM, site_weights=(1.0, 2.0, 3.0, 4.0))
    outcomes = run_alone(exchange_of(), study, cell=CELL, weights=weights_of())
    assert list(outcomes) == site_names(4)
    for site, outcome in outcomes.items():
        for name, array in weights_of().items():
            expected = array + update_of(site, 1, array.shape, name) + update_of(site, 2, array.shape, name)
            np.testing.assert_allclose(outcome.weights[name], expected, atol=1e-6)
        assert {record.arm for record in outcome.rounds} == {f"federated@{site}"}


# --- checkpoints ----------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def stop_after(round: int) -> Any:
    def on_round(record: RoundRecord) -> None:
        if record.round == round:
            raise Stop

    return on_round


@pytest.mark.parametrize("strategy", [studies.FedAvg(kind="fedavg"), FEDADAM], ids=lambda s: s.kind)
@pytest.mark.parametrize("last", [1, 3, 5])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, strategy: Any, last: int) -> None:
    study, path = study_of(strategy=strategy), tmp_path / "cell.safetensors"
    with pytest.raises(Stop):
        federate(study, checkpoint=path, on_round=stop_after(last))
    seen: list[int] = []
    resumed = federate(study, checkpoint=path, resume=True, on_round=lambda r: seen.append(r.round))
    assert resumed.digest == federate(study).digest
    assert seen == list(range(last + 1, 6))
    assert [record.round for record in resumed.rounds] == [1, 2, 3, 4, 5]


def test_the_checkpoint_is_there_before_anybody_is_told(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "cell.safetensors"
    there: list[bool] = []
    federate(checkpoint=path, on_round=lambda record: there.append(path.exists()))
    assert there == [True] * 5


def test_a_checkpoint_is_never_run_over_without_resume(tmp_path: Path) -> None:
    path = tmp_path / "cell.safetensors"
    federate(checkpoint=path)
    with pytest.raises(RunError, match="Resume, or remove it"):
        federate(checkpoint=path)


def test_alone_resumes_site_by_site(tmp_path: Path) -> None:
    path, study = tmp_path / "seed0-fold1-local.safetensors", study_of(rounds=3)
    whole = run_alone(exchange_of(), study, cell=CELL, weights=weights_of())
    told: list[str] = []

    def stop(record: RoundRecord) -> None:
        told.append(record.arm)
        if len(told) == 5:
            raise Stop

    with pytest.raises(Stop):
        run_alone(exchange_of(), study, cell=CELL, weights=weights_of(), checkpoint=path, on_round=stop)
    again = run_alone(exchange_of(), study, cell=CELL, weights=weights_of(), checkpoint=path, resume=True)
    assert {site: o.digest for site, o in again.items()} == {site: o.digest for site, o in whole.items()}


def test_records_survive_json() -> None:
    for record in federate().rounds:
        assert RoundRecord.of_table(json.loads(json.dumps(record.as_table()))) == record


def test_a_cells_name_is_a_file_name() -> None:
    assert Cell(seed=3, fold=-1, arm="federated (random split, leaks)").name == (
        "seed3-fold-1-federated-random-split-leaks"
    )
