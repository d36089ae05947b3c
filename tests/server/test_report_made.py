"""Claims about the report of a study whose model makes rows."""

import dataclasses
from pathlib import Path

import pytest

from sottovoce.common.errors import RunError
from sottovoce.common.generative.figures import SUFFIX, MadeFigures, read, write
from sottovoce.common.model_specs import Discriminator
from sottovoce.server.report.page import Run, render
from sottovoce.server.report.page import read as read_run
from tests.fakes.runs import FakeRun, write_run

FIGURES = MadeFigures(
    cell="seed0-fold0-federated", file="ab" * 32, n_rows=800, copies=0.5, membership=0.52, distance=81.25
)
CLAIM = "made rows alone"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(write_run(tmp_path_factory.mktemp("runs") / "made", FakeRun(repetitions=1)))


def test_accuracy_of_made_rows_is_said_to_be_that(run: Run) -> None:
    model = Discriminator(kind="discriminator", stream="statistics")
    page = render(
        dataclasses.replace(run, study=dataclasses.replace(run.study, model=model), made=(FIGURES,))
    )
    assert CLAIM in page
    for figure in ("81.2", "0.52", "50.0", "800"):
        assert figure in page
    assert CLAIM not in render(run)


def test_figures_of_made_rows_are_read_back_and_damaged_ones_are_named(tmp_path: Path) -> None:
    write(tmp_path, FIGURES)
    assert read(tmp_path) == (FIGURES,)
    assert read(tmp_path / "nothing") == ()
    (tmp_path / f"other{SUFFIX}").write_text("{")
    with pytest.raises(RunError, match=f"other{SUFFIX}"):
        read(tmp_path)
