"""The results page is made from runs."""

from pathlib import Path

import pytest

from sottovoce.common.errors import SottovoceError
from sottovoce.common.run_files import read_run
from sottovoce.common.study import loads
from sottovoce.common.summary import read as read_summary
from sottovoce.simulations.results import SCENARIOS, page, with_seeds
from tests.fakes.runs import FakeRun, write_run


def test_more_seeds_change_the_seeds_and_nothing_else() -> None:
    text = (SCENARIOS / "ravdess-fast.toml").read_text()
    one, five = loads(text), loads(with_seeds(text, 5))
    assert five.evaluation.seeds == (0, 1, 2, 3, 4)
    assert loads(with_seeds(text, 1)) == one


def test_a_scenario_without_a_line_of_seeds_is_refused() -> None:
    with pytest.raises(SottovoceError, match="seeds"):
        with_seeds("format = 1", 5)


def test_every_figure_of_the_page_is_one_of_the_run(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun())
    text = page([tmp_path], "a command")
    summary = read_summary(tmp_path / "metrics.json")
    for arm in summary.arms:
        assert f"| {arm.name} | {100 * arm.uar.value:.1f} [" in text
    for difference in summary.differences:
        assert f"{100 * difference.value:+.1f}" in text
    assert "leaks" in text
    assert read_run(tmp_path / "run.json").study_digest[:16] in text
