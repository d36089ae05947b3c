"""Claims about rows made of public recordings at the coordinator."""

from pathlib import Path

import numpy as np
import pytest

from sottovoce.common import study as studies
from sottovoce.common.dataset import Example, SiteData, StreamShape
from sottovoce.common.errors import CorpusError, RunError
from sottovoce.common.generative.gan import GanSpec
from sottovoce.common.generative.networks import GeneratorSpec
from sottovoce.common.generative.patches import FRAMES, cut, train_patches
from sottovoce.server.augment import Plan, rows_from
from tests.fakes.sites import LINEAR, ONE_STREAM, WIDTH, write_sites, write_study

SHORT = GanSpec(generator=GeneratorSpec(noise=3, hidden=4), hidden=4, steps=3, batch_size=4)
FRAMES_STREAM = '[{ name = "frames", parts = [{ kind = "log_mel", n_mels = 12 }] }]'


def study(folder: Path, *, model: str = LINEAR, streams: str = ONE_STREAM) -> studies.Study:
    return studies.load(write_study(folder / "study.toml", n_sites=1, model=model, streams=streams))


def recordings(folder: Path, lengths: tuple[int, ...]) -> SiteData:
    shapes = {"frames": StreamShape(width=12, n_frames=100)}
    examples = [
        Example(
            key=f"{row}", label=row % 3, speaker="a", patient="a", groups={},
            features={"frames": np.full((length, 12), row, np.float32)},
        )
        for row, length in enumerate(lengths)
    ]  # fmt: skip
    return SiteData.write(folder, site="public", shapes=shapes, examples=examples)


@pytest.mark.parametrize("method", ["gan", "gaussians"])
def test_rows_are_so_many_of_each_class_and_the_same_again(method: str, tmp_path: Path) -> None:
    data = SiteData.open(write_sites(tmp_path / "sites", 1, n_examples=30)["site-1"])
    plan = Plan(method=method, per_class=4, gan=SHORT)  # type: ignore[arg-type]
    made, again = (rows_from(study(tmp_path), data, plan, {"seed": "0"}) for _ in "ab")
    assert made.streams["pooled"].shape == (12, WIDTH)
    assert np.bincount(made.labels).tolist() == [4, 4, 4]
    np.testing.assert_array_equal(made.streams["pooled"], again.streams["pooled"])


def test_a_class_without_recordings_is_an_error(tmp_path: Path) -> None:
    data = SiteData.open(write_sites(tmp_path / "sites", 1, n_examples=30)["site-1"])
    with pytest.raises(CorpusError, match="every class"):
        rows_from(study(tmp_path), data.select(data.labels != 2), Plan(gan=SHORT), {})


def test_patches_are_cut_from_valid_frames_of_recordings_that_are_long_enough(tmp_path: Path) -> None:
    data = recordings(tmp_path / "data", (100, 80, FRAMES, FRAMES - 1))
    patches, labels = cut(data, "frames", seed=0)
    assert patches.shape == (3, FRAMES, 12)
    assert labels.tolist() == [0, 1, 2]
    assert all((patch == number).all() for number, patch in enumerate(patches))  # no padding among them


def test_made_patches_have_the_shape_of_real_ones(tmp_path: Path) -> None:
    data = recordings(tmp_path / "data", (100, 80, 90, 70))
    spec = study(tmp_path, model='{ kind = "cnn", stream = "frames", channels = [4] }', streams=FRAMES_STREAM)
    made = rows_from(spec, data, Plan(per_class=2, gan=SHORT), {})
    assert made.streams["frames"].shape == (6, FRAMES, 12)  # 12 bands: no multiple of eight
    with pytest.raises(RunError, match="pooled stream"):
        rows_from(spec, data, Plan(method="gaussians", gan=SHORT), {})
    with pytest.raises(ValueError, match="8 bands"):
        train_patches(np.zeros((2, FRAMES, 4), np.float32), np.array([0, 1]), SHORT, n_classes=2, seed=0)
