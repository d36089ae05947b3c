"""Claims about the figures that a run keeps of its made rows."""

from pathlib import Path

import pytest

from sottovoce.common.errors import RunError
from sottovoce.common.generative.figures import SUFFIX, MadeFigures, read, write

FIGURES = MadeFigures(
    cell="seed0-fold0-federated", file="ab" * 32, n_rows=800, copies=0.5, membership=0.52, distance=81.25
)


def test_figures_of_made_rows_are_read_back_and_damaged_ones_are_named(tmp_path: Path) -> None:
    write(tmp_path, FIGURES)
    assert read(tmp_path) == (FIGURES,)
    assert read(tmp_path / "nothing") == ()
    (tmp_path / f"other{SUFFIX}").write_text("{")
    with pytest.raises(RunError, match=f"other{SUFFIX}"):
        read(tmp_path)
