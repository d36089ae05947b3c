"""Claims about how made rows are judged in a simulation, and that a run of a study that adds some says so."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sottovoce.cli import app
from sottovoce.common.dataset import Example, SiteData, StreamShape
from sottovoce.common.generative import figures
from sottovoce.common.generative.networks import each_class
from sottovoce.common.generative.synthetic import SyntheticRows
from sottovoce.simulations.made_head import addable, figures_of
from tests.fakes.wards import study_text, write_corpus

N_CLASSES, WIDTH, N_FRAMES = 3, 4, 12
CENTRES = 4.0 * np.eye(N_CLASSES, WIDTH)


def recordings(folder: Path, seed: int) -> SiteData:
    """Thirty recordings whose emotion is plain to hear, pooled and as a sequence."""
    draw = np.random.default_rng(seed)

    def example(number: int) -> Example:
        label = number % N_CLASSES
        row = CENTRES[label] + draw.normal(size=WIDTH)
        frames = row + 0.1 * draw.normal(size=(6 + number % 5, WIDTH))
        features = {"pooled": row.astype(np.float32), "frames": frames.astype(np.float32)}
        return Example(key=str(number), label=label, speaker="a", patient="a", groups={}, features=features)

    shapes = {
        "pooled": StreamShape(width=WIDTH, n_frames=None),
        "frames": StreamShape(width=WIDTH, n_frames=N_FRAMES),
    }
    return SiteData.write(folder, site="site-1", shapes=shapes, examples=map(example, range(30)))


def made(stream: str, centres: np.ndarray) -> SyntheticRows:
    draw, labels = np.random.default_rng(9), each_class(N_CLASSES, 10)
    rows = (centres[labels] + draw.normal(size=(30, WIDTH))).astype(np.float32)
    if stream == "frames":
        rows = np.repeat(rows[:, None], 8, axis=1)
    return SyntheticRows(streams={stream: rows}, labels=labels, classes=("a", "b", "c"))


@pytest.mark.parametrize("stream", ["pooled", "frames"])
def test_rows_that_sound_like_their_emotion_teach_it_and_those_of_another_teach_that(
    stream: str, tmp_path: Path
) -> None:
    trained, withheld = recordings(tmp_path / "one", 1), recordings(tmp_path / "other", 2)
    good, bad = (
        figures_of(made(stream, centres), trained, withheld, cell="seed0", file="ab" * 32)
        for centres in (CENTRES, np.roll(CENTRES, 1, axis=0))
    )
    assert good is not None
    assert bad is not None
    assert good.uar is not None
    assert bad.uar is not None
    assert good.uar > 0.9
    assert bad.uar < 0.1
    assert good.uar_of_real == bad.uar_of_real
    assert (good.uar_of_real or 0.0) > 0.9
    assert (good.distance or 0.0) < (bad.distance or 0.0)


def test_rows_beyond_what_a_study_may_add_are_not_judged() -> None:
    fewer = addable(made("pooled", CENTRES), 4)
    assert np.bincount(fewer.labels).tolist() == [4, 4, 4]
    np.testing.assert_array_equal(fewer.streams["pooled"][:4], made("pooled", CENTRES).streams["pooled"][:4])


def test_a_study_adds_rows_of_a_public_corpus_and_its_report_judges_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOTTOVOCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SOTTOVOCE_WEIGHTS", str(tmp_path / "weights"))
    own, public = write_corpus(tmp_path / "own"), write_corpus(tmp_path / "public")
    manifest = public / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("east-1,", "somebody,"))
    text = study_text(partition='{ kind = "speaker_blocks" }', n_sites=2)
    text = text.replace("every_rounds = 1 }", "every_rounds = 2, only_folds = [0], bootstrap_samples = 100 }")
    Path("study.toml").write_text(text)

    def say(*words: str) -> str:
        found = CliRunner().invoke(app, list(words))
        assert found.exit_code == 0, found.exception
        return found.stdout

    shown = say(
        "server",
        "augment",
        "study.toml",
        "--data",
        str(public),
        "--out",
        "weights",
        "--method",
        "gaussians",
        "--per-class",
        "20",
    )
    (line,) = [line for line in shown.splitlines() if line.startswith("synthetic = ")]
    Path("study.toml").write_text(text.replace("learning_rate = 0.1", f"learning_rate = 0.1\n{line}"))
    say("simulate", "study.toml", "--data", str(own), "--out", "run", "--workers", "1")
    (judged,) = figures.read(Path("run") / figures.FOLDER)
    assert judged.n_rows == 60
    page = Path("run/report.html").read_text()
    assert "made by gaussians that heard public (manifest" in page
    assert judged.file[:16] in page
