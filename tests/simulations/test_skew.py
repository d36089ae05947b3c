"""Claims of simulations/skew: by runs with known answers, and one study for each seed."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from sottovoce.common import predictions
from sottovoce.common.dataset import Example, SiteData, StreamShape, pool
from sottovoce.common.errors import SottovoceError
from sottovoce.common.predictions import Prediction
from sottovoce.common.study import DirichletLabels, loads
from sottovoce.simulations import skew
from sottovoce.simulations.cells import FEDERATED
from sottovoce.simulations.pages import SCENARIOS

BASE = (SCENARIOS / "skew.toml").read_text()
N_CLASSES = 8


def answers(arm: str, seed: int, n_right: int) -> list[Prediction]:
    """Returns 10 recordings of each class by five speakers; of every class the first `n_right` are told right."""
    rows = []
    for truth in range(N_CLASSES):
        for number in range(10):
            said = truth if number < n_right else (truth + 1) % N_CLASSES
            rest = math.log(0.1 / (N_CLASSES - 1))
            log_probs = tuple(math.log(0.9) if c == said else rest for c in range(N_CLASSES))
            rows.append(
                Prediction(
                    seed=seed,
                    fold=0,
                    arm=arm,
                    utterance=f"{truth}-{number}",
                    speaker=f"speaker-{number % 5}",
                    site="site-1",
                    groups={},
                    truth=truth,
                    log_probs=log_probs,
                )
            )
    return rows


def write_runs(folder: Path, right: dict[str, int], pooled: int, n_seeds: int = 2) -> dict[str, list[Path]]:
    runs: dict[str, list[Path]] = {}
    for name, n_right in right.items():
        for seed in range(n_seeds):
            run = folder / f"{name}-seed{seed}"
            run.mkdir()
            (run / "study.toml").write_text(skew.study_text(BASE, skew.STRATEGIES[name], seed))
            rows = answers(FEDERATED, seed, n_right)
            rows += answers(skew.POOLED, seed, pooled) if name == skew.BASE else []
            predictions.write(run / "predictions.jsonl", rows)
            runs.setdefault(name, []).append(run)
    return runs


@pytest.mark.parametrize("strategy", skew.STRATEGIES)
def test_each_seed_skews_anew_and_each_strategy_is_a_study(strategy: str) -> None:
    studies = [loads(skew.study_text(BASE, skew.STRATEGIES[strategy], seed)) for seed in (0, 3)]
    for study, seed in zip(studies, (0, 3), strict=True):
        partition = study.federation.partition
        assert isinstance(partition, DirichletLabels)
        assert (partition.seed, study.evaluation.seeds) == (seed, (seed,))
        assert study.federation.strategy.kind == strategy


def test_a_scenario_without_the_lines_that_are_replaced_is_an_error() -> None:
    with pytest.raises(SottovoceError, match="found 0"):
        skew.study_text(BASE.replace("seeds = [0]", "seeds = [0, 1]"), skew.STRATEGIES["fedavg"], 1)


def test_the_page_tells_the_gap_and_what_was_closed_of_it(tmp_path: Path) -> None:
    text = skew.page(write_runs(tmp_path, {"fedavg": 5, "fedprox": 6, "scaffold": 9}, pooled=9), "made here")
    assert "Pooled twin: UAR 90.0 %." in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row[1] for row in rows] == ["50.0", "60.0", "90.0"]
    assert [row[2].split(" [")[0] for row in rows] == ["-40.0", "-30.0", "+0.0"]
    assert [row[3] for row in rows] == ["-40.0 to -40.0", "-30.0 to -30.0", "+0.0 to +0.0"]
    assert [row[5].strip(" |") for row in rows] == ["", "25 %", "100 %"]
    assert text.endswith("FedAvg loses 40.0 points; scaffold closes 100 % of that.\n")


def test_where_there_is_no_gap_the_page_says_so(tmp_path: Path) -> None:
    text = skew.page(write_runs(tmp_path, {"fedavg": 9, "scaffold": 9}, pooled=9), "made here")
    assert "no gap above 3 points" in text


def test_less_than_what_was_wanted_is_said_to_be_less(tmp_path: Path) -> None:
    text = skew.page(write_runs(tmp_path, {"fedavg": 5, "scaffold": 6}, pooled=9), "made here")
    assert "less than the 80 %" in text


def test_sides_that_scored_other_recordings_are_no_pair() -> None:
    ours: Sequence[Prediction] = answers("federated", 0, 5)
    with pytest.raises(SottovoceError, match="same recordings"):
        skew.difference(ours, ours[:-1], N_CLASSES)


def test_the_pooled_twin_trains_on_exactly_what_the_hospitals_kept(tmp_path: Path) -> None:
    shapes, parts = {"pooled": StreamShape(width=2, n_frames=None)}, []
    for site in ("a", "b"):
        examples = [
            Example(
                key=f"{site}{i}", label=0, speaker=site, patient=site, groups={},
                features={"pooled": np.zeros(2, np.float32)}, trains=i % 3 == 0,
            )
            for i in range(6)
        ]  # fmt: skip
        parts.append(SiteData.write(tmp_path / site, site=site, shapes=shapes, examples=examples))
    pooled = pool(tmp_path / "pooled", site="pooled", parts=[SiteData.open(tmp_path / s) for s in "ab"])
    assert [k for k, t in zip(pooled.keys, pooled.trains, strict=True) if t] == ["a0", "a3", "b0", "b3"]
