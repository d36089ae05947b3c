"""Claims of simulations/engines: one study, one result, wherever the sites run."""

import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from sottovoce.client import app as client_app
from sottovoce.common import models
from sottovoce.common import study as studies
from sottovoce.common.dataset import Example, SiteData, normalise
from sottovoce.common.errors import RunError
from sottovoce.common.flower import Message, Node, RecordDict
from sottovoce.common.folds import fold_of
from sottovoce.common.study import Execution, Normalisation, Study
from sottovoce.common.weights import from_state_dict
from sottovoce.server.exchange import GridExchange
from sottovoce.server.rounds import Cell, Outcome, run, run_alone
from sottovoce.simulations.engines import open_exchange
from sottovoce.simulations.engines.inprocess import InProcessGrid
from sottovoce.simulations.engines.processes import ProcessGrid
from sottovoce.simulations.engines.worker import Receiver, Sender
from tests.fakes.federations import counting_app, honest_app, nodes_of, study_of, weights_of
from tests.fakes.sites import N_CLASSES, WIDTH, write_sites, write_study

CELL = Cell(seed=0, fold=1, arm="federated")
FAKES = "tests.fakes.federations"


def in_process(study: Study, n: int = 4) -> Outcome:
    grid = InProcessGrid(honest_app, nodes_of(n), {})
    return run(GridExchange(grid, grid.sites), study, cell=CELL, weights=weights_of())


def in_processes(
    app: str, study: Study, workers: int, folder: Path | None = None
) -> tuple[Outcome, list[int]]:
    with ProcessGrid(f"{FAKES}:{app}", nodes_of(4, folder), {}, workers=workers) as grid:
        outcome = run(GridExchange(grid, grid.sites), study, cell=CELL, weights=weights_of())
        return outcome, grid.worker_ids


@pytest.fixture(autouse=True)
def _no_process_is_left_behind() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_bits_of_one_process(workers: int) -> None:
    outcome, ids = in_processes("honest_app", study_of(), workers)
    assert len(set(ids)) == workers
    assert outcome.digest == in_process(study_of()).digest


def test_a_worker_killed_at_work_changes_no_bit(tmp_path: Path) -> None:
    outcome, _ = in_processes("crashing_once_app", study_of(rounds=2), 2, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crashed-1", "crashed-2"]
    assert outcome.refused == []
    assert outcome.digest == in_process(study_of(rounds=2)).digest


def test_a_site_whose_worker_always_dies_drops_out_of_the_round() -> None:
    outcome, _ = in_processes("crashing_always_app", study_of(rounds=1), 2)
    assert outcome.rounds[0].sites == ("site-1", "site-3", "site-4")
    assert "ended twice" in outcome.rounds[0].refused["site-2"]


def test_a_site_that_hangs_is_ended_at_the_deadline_and_the_others_count() -> None:
    with ProcessGrid(f"{FAKES}:hanging_app", nodes_of(4), {}, workers=2) as grid:
        list(grid.send_and_receive([Message(RecordDict(), node, "query") for node in grid.sites]))  # warm
        study = study_of(rounds=1, deadline_seconds=2.0)
        outcome = run(GridExchange(grid, grid.sites), study, cell=CELL, weights=weights_of())
    assert outcome.rounds[0].sites == ("site-1", "site-3", "site-4")
    assert "deadline" in outcome.rounds[0].refused["site-2"]


def counts(grid: InProcessGrid | ProcessGrid) -> list[list[int]]:
    exchange = GridExchange(grid, grid.sites)
    told: list[int] = []
    outcome = run(exchange, study_of(rounds=1), cell=CELL, weights=weights_of(), on_round=told.append)  # type: ignore[arg-type]
    assert outcome.refused == []
    return [
        [int(grid._contexts[node].state["calls"]["n"]) for node in grid.sites]  # type: ignore[arg-type]
    ]


def test_a_nodes_state_is_kept_and_follows_it_from_worker_to_worker() -> None:
    with ProcessGrid(f"{FAKES}:counting_app", nodes_of(4), {}, workers=2) as grid:
        assert [counts(grid), counts(grid)] == [[[1, 1, 1, 1]], [[2, 2, 2, 2]]]
    local = InProcessGrid(counting_app, nodes_of(4), {})
    assert [counts(local), counts(local)] == [[[1, 1, 1, 1]], [[2, 2, 2, 2]]]


def test_an_app_that_cannot_be_loaded_is_one_clear_error() -> None:
    with pytest.raises(RunError, match="Expected a Flower ClientApp"):
        ProcessGrid(f"{FAKES}:study_of", nodes_of(1), {}, workers=1)


# --- the real client app --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_sites(tmp_path_factory.mktemp("sites"), 4)


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study") / "study.toml", n_sites=4)


def federate(execution: Execution, sites: dict[str, Path], study_file: Path, cell: Cell = CELL) -> Outcome:
    study = studies.load(study_file)
    weights = from_state_dict(models.build(study.model, {"pooled": WIDTH}, N_CLASSES, 0).state_dict())
    with open_exchange(execution, sites, study_file=study_file) as exchange:
        return run(exchange, study, cell=cell, weights=weights)


def test_the_real_app_gives_the_same_bits_in_every_process(sites: dict[str, Path], study_file: Path) -> None:
    here = [federate(Execution(engine="inprocess"), sites, study_file) for _ in range(2)]
    there = federate(Execution(engine="processes", workers=2), sites, study_file)
    assert len({outcome.digest for outcome in [*here, there]}) == 1
    assert [r.loss for r in there.rounds] == [r.loss for r in here[0].rounds]
    assert there.rounds[-1].confusion == here[0].rounds[-1].confusion
    assert here[0].refused == []


def test_the_order_of_the_sites_changes_no_bit(sites: dict[str, Path], study_file: Path) -> None:
    backward = dict(reversed(sites.items()))
    engine = Execution(engine="inprocess")
    assert federate(engine, backward, study_file).digest == federate(engine, sites, study_file).digest


def test_each_seed_and_fold_has_its_own_result(sites: dict[str, Path], study_file: Path) -> None:
    cells = [Cell(seed=seed, fold=fold, arm="federated") for seed in (0, 1) for fold in (-1, 0, 1)]
    digests = [federate(Execution(), sites, study_file, cell).digest for cell in cells]
    assert len(set(digests)) == 6


def test_training_learns_what_evaluation_counts(sites: dict[str, Path], tmp_path: Path) -> None:
    study_file = write_study(tmp_path / "long.toml", n_sites=4, rounds=20)
    counts = np.asarray(federate(Execution(), sites, study_file).rounds[-1].confusion)
    study = studies.load(study_file)
    expected = sum(_n_withheld(study, folder) for folder in sites.values())
    assert counts.sum() == expected
    assert np.trace(counts) > 0.8 * expected


def _n_withheld(study: Study, folder: Path) -> int:
    data = SiteData.open(folder)
    folds = fold_of(study.evaluation.folds, 0, data.site, data.speakers)
    return sum(folds[speaker] == 1 for speaker in data.speakers)


def test_withheld_speakers_are_not_trained_on(
    sites: dict[str, Path], study_file: Path, tmp_path: Path
) -> None:
    """A site whose withheld speakers' features are garbage trains to the same bits."""
    study, folder = studies.load(study_file), tmp_path / "site-1"
    data = SiteData.open(sites["site-1"])
    hidden = client_app.withheld(data, study, seed=0, fold=1)
    assert 0 < hidden.sum() < len(data)
    examples = _examples_with_garbage(data, hidden)
    SiteData.write(folder, site=data.site, shapes=data.shapes, examples=examples)
    spoiled = federate(Execution(), sites | {"site-1": folder}, study_file)
    honest = federate(Execution(), sites, study_file)
    assert spoiled.digest == honest.digest
    assert spoiled.rounds[-1].confusion != honest.rounds[-1].confusion


def _examples_with_garbage(data: SiteData, hidden: np.ndarray) -> list[Example]:
    return [
        Example(
            key=data.keys[i],
            label=int(data.labels[i]),
            speaker=data.speakers[i],
            patient=data.patients[i],
            groups=data.groups[i],
            features={"pooled": data.pooled("pooled")[i] * (-50.0 if hidden[i] else 1.0)},
        )
        for i in range(len(data))
    ]


SCHEMES = {
    "public constants": Normalisation(scheme="constants"),
    "all of a speaker": Normalisation(scheme="speaker"),
    "enrolment": Normalisation(
        scheme="enrolment", mean={"pooled": (0.0,) * WIDTH}, deviation={"pooled": (1.0,) * WIDTH}
    ),
    "a whole site, which leaks": Normalisation(scheme="speaker"),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_test_speaker_is_seen_by_normalisation_or_training(
    scheme: str, sites: dict[str, Path], study_file: Path, tmp_path: Path
) -> None:
    """Features and labels of all withheld speakers may be anything: the weights are the same bits."""
    study, leaks = studies.load(study_file), scheme.endswith("leaks")

    def trained(spoil: bool) -> str:
        folders = {}
        for name, folder in sites.items():
            data = SiteData.open(folder)
            hidden = client_app.withheld(data, study, seed=0, fold=1) & spoil
            rows = [
                replace(row, label=0 if hidden[i] else row.label, enrols=row.speaker not in data.speakers[:i])
                for i, row in enumerate(_examples_with_garbage(data, hidden))
            ]
            raw = [replace(row, speaker="everybody") for row in rows] if leaks else rows
            written = SiteData.write(
                tmp_path / f"{spoil}-{name}", site=name, shapes=data.shapes, examples=raw
            )
            made = normalise(written, SCHEMES[scheme], tmp_path / f"{spoil}-{name}-made")
            kept = [row for row in rows if not row.enrols]
            named = [
                replace(row, features={"pooled": values})
                for row, values in zip(kept, made.pooled("pooled"), strict=True)
            ]
            folders[name] = tmp_path / f"{spoil}-{name}-site"
            SiteData.write(folders[name], site=name, shapes=data.shapes, examples=named)
        return federate(Execution(), folders, study_file).digest

    assert (trained(spoil=True) == trained(spoil=False)) is not leaks


def test_a_site_with_nobody_to_train_on_sends_its_weights_back(tmp_path: Path) -> None:
    sites = write_sites(tmp_path, 1, n_examples=1)
    study_file = write_study(tmp_path / "study.toml", n_sites=1, rounds=1)
    data = SiteData.open(sites["site-1"])
    folds = fold_of(studies.load(study_file).evaluation.folds, 0, data.site, data.speakers)
    (fold,) = folds.values()
    outcome = federate(Execution(), sites, study_file, Cell(seed=0, fold=fold, arm="federated"))
    assert outcome.rounds[0].update_norm == 0.0


def test_alone_equals_a_federation_of_one(sites: dict[str, Path], study_file: Path, tmp_path: Path) -> None:
    study = studies.load(study_file)
    weights = from_state_dict(models.build(study.model, {"pooled": WIDTH}, N_CLASSES, 0).state_dict())
    with open_exchange(Execution(), sites, study_file=study_file) as exchange:
        outcomes = run_alone(exchange, study, cell=CELL, weights=weights)
    one = write_study(tmp_path / "one.toml", n_sites=1)
    for site, folder in sites.items():
        assert federate(Execution(), {site: folder}, one).digest == outcomes[site].digest


def test_what_a_process_caches_is_bounded(sites: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    client_app._sites.clear()
    monkeypatch.setattr(client_app, "CACHE_SITES", 2)
    for folder in [*sites.values(), *sites.values()]:
        assert client_app._opened(str(folder)).site == folder.name
        assert len(client_app._sites) <= 2
    client_app._sites.clear()


def test_nodes_without_a_folder_take_theirs_by_partition(sites: dict[str, Path]) -> None:
    nodes = [Node(site="?", config={"partition-id": number}) for number in range(4)]
    folder = next(iter(sites.values())).parent
    grid = InProcessGrid(client_app.app, nodes, {"sites-folder": str(folder)})
    questions = [Message(RecordDict(), node, "query") for node in grid.sites]
    named = [reply.content["config"]["site"] for reply in grid.send_and_receive(questions)]
    assert named == sorted(sites)


@pytest.mark.parametrize("number", [-1, 4])
def test_a_partition_that_is_not_there_is_an_error(sites: dict[str, Path], number: int) -> None:
    folder = next(iter(sites.values())).parent
    grid = InProcessGrid(
        client_app.app, [Node(site="?", config={"partition-id": number})], {"sites-folder": str(folder)}
    )
    (reply,) = grid.send_and_receive([Message(RecordDict(), 1, "query")])
    assert "Expected a partition-id below 4" in (reply.error.reason or "")


def test_without_ray_there_is_one_error_that_names_the_extra(
    sites: dict[str, Path], study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sottovoce.simulations.engines import ray

    monkeypatch.setattr(ray, "find_spec", lambda name: None)
    with pytest.raises(RunError, match="extra 'ray'"):
        federate(Execution(engine="ray"), sites, study_file)


@pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is not installed")
def test_flowers_ray_backend_gives_the_same_bits(sites: dict[str, Path], study_file: Path) -> None:
    on_ray = federate(Execution(engine="ray", workers=2), sites, study_file)
    assert on_ray.digest == federate(Execution(), sites, study_file).digest


def test_a_sites_pages_are_given_back_and_can_be_read_again(tmp_path: Path) -> None:
    data = SiteData.open(write_sites(tmp_path, 1, n_examples=4000, width=500)["site-1"])
    first = data.pooled("pooled")
    assert mapped_bytes(tmp_path) > 0.9 * first.nbytes
    data.release()
    assert mapped_bytes(tmp_path) < 0.1 * first.nbytes
    np.testing.assert_array_equal(data.pooled("pooled"), first)


def mapped_bytes(folder: Path) -> int:
    """Returns how much of the files below a folder is mapped and resident: a heap's leftovers do not count."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line[0] in "0123456789abcdef":
            ours = str(folder) in line
        elif ours and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


def test_what_is_sent_between_processes_arrives_and_does_not_change_after() -> None:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    sender, receiver = Sender(ours), Receiver(theirs)
    fixed, received = np.arange(5, dtype=np.float32), []
    fixed.setflags(write=False)
    writable = np.zeros(4, np.float32)
    for number, content in enumerate(
        [[fixed], [fixed], "none", [writable, fixed], [writable], [np.zeros(9000)]]
    ):
        writable[:] = number
        sender.send(sender.frame(content))
        received.append(receiver.receive())
    ours.close()
    theirs.close()
    np.testing.assert_array_equal(received[0][0], np.arange(5))
    np.testing.assert_array_equal(received[1][0], np.arange(5))
    assert received[2] == "none"
    np.testing.assert_array_equal(received[3][0], [3, 3, 3, 3])
    np.testing.assert_array_equal(received[3][1], np.arange(5))
    np.testing.assert_array_equal(received[4][0], [4, 4, 4, 4])
    assert received[5][0].shape == (9000,)


def test_weights_cross_once_and_not_with_every_message() -> None:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    sender, big = Sender(ours), np.zeros(100_000, np.float32)
    big.setflags(write=False)
    sender.send(sender.frame([big]))
    assert sender._are_last(sender.frame([big]).arrays)
    assert not sender._are_last(sender.frame([big.copy()]).arrays)
    ours.close()
    theirs.close()
