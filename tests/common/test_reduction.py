"""Claims about public reductions, on columns whose directions are known."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from sottovoce.common.dataset import Example, SiteData, StreamShape, normalise
from sottovoce.common.errors import CorpusError
from sottovoce.common.reduction import By, fit
from sottovoce.common.study import Normalisation

SHAPES = {"stats": StreamShape(width=6, n_frames=None), "mel": StreamShape(width=3, n_frames=9)}
PLAIN = Normalisation(scheme="constants")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SiteData:
    """Columns of deviation 5, 3, 1, 1 and two constant ones; the third alone tells the three classes apart."""
    draw = np.random.default_rng(1)

    def example(number: int) -> Example:
        label = number % 3
        stats = np.array([5.0, 3.0, 1.0, 1.0, 0.0, 0.0]) * draw.standard_normal(6)
        stats[2] += 4.0 * label
        mel = draw.standard_normal((4 + number % 5, 3)) * [1.0, 8.0, 2.0]
        features = {"stats": stats.astype(np.float32), "mel": mel.astype(np.float32)}
        return Example(key=f"{number}", label=label, speaker="a", patient="a", groups={}, features=features)

    folder = tmp_path_factory.mktemp("public") / "data"
    return SiteData.write(folder, site="public", shapes=SHAPES, examples=map(example, range(400)))


def reduced(data: SiteData, folder: Path, by: By, columns: int) -> np.ndarray:
    maps = {"stats": fit(data, "stats", by=by, columns=columns)}
    return normalise(data, PLAIN, folder, maps=maps).pooled("stats").astype(np.float64)


def test_principal_directions_are_those_of_largest_variance(data: SiteData) -> None:
    found = fit(data, "stats", by="pca", columns=2)
    assert np.abs(found).argmax(axis=0).tolist() == [0, 2]  # the third column varies by its classes
    ratio = found[0, 0] / np.linalg.norm(found[:, 0])
    assert ratio > 0.99


def test_columns_have_the_scale_that_is_promised(data: SiteData, tmp_path: Path) -> None:
    assert reduced(data, tmp_path / "pca", "pca", 3).var(axis=0).mean() == pytest.approx(1.0, rel=1e-4)
    np.testing.assert_allclose(reduced(data, tmp_path / "white", "whitened", 3).var(axis=0), 1.0, rtol=1e-4)
    by_label = reduced(data, tmp_path / "labels", "labels", 2)
    within = np.mean([by_label[data.labels == label].var(axis=0) for label in range(3)], axis=0)
    np.testing.assert_allclose(within, 1.0, rtol=0.35)  # the scatter was drawn towards its mean


def test_labels_choose_the_column_that_tells_them_apart_and_variance_does_not(data: SiteData) -> None:
    assert np.abs(fit(data, "stats", by="labels", columns=1))[:, 0].argmax() == 2
    assert np.abs(fit(data, "stats", by="pca", columns=1))[:, 0].argmax() == 0


@pytest.mark.parametrize("by", get_args(By))
def test_a_map_is_the_same_again_and_upright(data: SiteData, by: By) -> None:
    one, again = (fit(data, "stats", by=by, columns=2) for _ in range(2))
    assert one.tobytes() == again.tobytes()
    assert (one[np.abs(one).argmax(axis=0), [0, 1]] > 0).all()


def test_more_columns_than_directions_are_refused(data: SiteData) -> None:
    with pytest.raises(CorpusError, match="at most 4 columns"):
        fit(data, "stats", by="pca", columns=5)
    with pytest.raises(CorpusError, match="at most 2 columns"):
        fit(data, "stats", by="labels", columns=3)


def test_a_sequence_is_reduced_frame_by_frame_and_its_padding_stays_zero(
    data: SiteData, tmp_path: Path
) -> None:
    public_map = fit(data, "mel", by="pca", columns=2)
    assert np.abs(public_map).argmax(axis=0).tolist() == [1, 2]
    found = normalise(data, PLAIN, tmp_path / "out", maps={"mel": public_map})
    assert found.widths == {"stats": 6, "mel": 2}
    for index in (0, 1, 7):
        wanted = data.valid("mel", index).astype(np.float64) @ public_map
        np.testing.assert_allclose(found.valid("mel", index), wanted, rtol=1e-6)
    batch = found.batch(np.arange(5))
    assert not batch.inputs["mel"][0, int(batch.lengths["mel"][0]) :].any()


def test_a_recording_is_mapped_to_the_same_bits_whoever_is_beside_it(data: SiteData, tmp_path: Path) -> None:
    maps = {"stats": fit(data, "stats", by="pca", columns=3)}
    whole = normalise(data, PLAIN, tmp_path / "whole", maps=maps)
    alone = normalise(data.select(np.array([17])), PLAIN, tmp_path / "alone", maps=maps)
    assert alone.pooled("stats").tobytes() == whole.pooled("stats")[17:18].tobytes()
