"""Claims about public rows that sites add to their own."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sottovoce.common import generative_specs, pretrained
from sottovoce.common import study as studies
from sottovoce.common.corpus import scan
from sottovoce.common.dataset import SiteData
from sottovoce.common.errors import CorpusError, WeightsError
from sottovoce.common.generative.added import (
    MANIFESTS,
    SEEN,
    check_rows_apart,
    chosen_rows,
    rows_of,
    seen_by_models,
    with_made_rows,
)
from sottovoce.common.generative.networks import each_class
from sottovoce.common.generative.synthetic import SyntheticRows, write
from sottovoce.common.study import Execution
from sottovoce.server.rounds import Cell, run
from sottovoce.simulations.engines import open_exchange
from tests.fakes.sites import LINEAR, WIDTH, write_sites, write_study
from tests.fakes.wards import write_corpus

CLASSES = ("happy", "sad", "angry")
SPEC = '{ learning_rate = 0.1, synthetic = { sha256 = "%s", per_class = %d, fill = "%s" } }'


def made(width: int = WIDTH, frames: int | None = None, heard: str = "") -> SyntheticRows:
    shape = (15, width) if frames is None else (15, frames, width)
    rows = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    facts = {SEEN: AS_SEEN, MANIFESTS: heard}
    return SyntheticRows(streams={"pooled": rows}, labels=each_class(3, 5), classes=CLASSES, facts=facts)


def of_a_study(spec: str) -> studies.Study:
    with tempfile.TemporaryDirectory() as folder:
        return studies.load(write_study(Path(folder) / "study.toml", n_sites=2, model=LINEAR, training=spec))


AS_SEEN = seen_by_models(of_a_study("{ learning_rate = 0.1 }"), "pooled")


def study_file(folder: Path, digest: str, *, per_class: int = 2, fill: str = "all") -> Path:
    return write_study(
        folder / "study.toml", n_sites=2, rounds=1, model=LINEAR, training=SPEC % (digest, per_class, fill)
    )


def test_made_rows_follow_a_sites_own_and_are_nobodys(tmp_path: Path) -> None:
    _, digest = write(tmp_path / "rows", made())
    data = SiteData.open(write_sites(tmp_path / "sites", 1)["site-1"]).select(np.array([3, 1, 2]))
    with pretrained.looking_in(tmp_path / "rows"):
        both = with_made_rows(data, studies.load(study_file(tmp_path, digest)))
    assert both.labels.tolist() == [*data.labels.tolist(), 0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(both.pooled("pooled")[:3], data.pooled("pooled"))
    np.testing.assert_array_equal(both.pooled("pooled")[3:5], made().streams["pooled"][:2])
    assert set(both.patients[3:]) == {""}
    assert len(both.originals()) == 3  # made rows are never scored


def test_rarer_classes_are_filled_up_to_the_commonest_and_no_further() -> None:
    spec = generative_specs.SyntheticRows(sha256="a" * 64, per_class=4, fill="rarer")
    chosen = chosen_rows(np.array([0, 0, 0, 1]), made(), spec)
    assert made().labels[chosen].tolist() == [1, 1, 2, 2, 2]


def test_rows_of_another_width_and_a_file_that_is_not_here_are_refused(tmp_path: Path) -> None:
    data = SiteData.open(write_sites(tmp_path / "sites", 1)["site-1"])
    for wrong in (made(width=WIDTH + 1), made(frames=3)):
        _, digest = write(tmp_path / "rows", wrong)
        with pretrained.looking_in(tmp_path / "rows"), pytest.raises(WeightsError, match="fit into"):
            with_made_rows(data, studies.load(study_file(tmp_path, digest)))
    with pytest.raises(WeightsError, match="synthetic file with SHA-256"):
        with_made_rows(data, studies.load(study_file(tmp_path, "b" * 64)))


def test_rows_of_other_features_or_another_normalisation_are_refused(tmp_path: Path) -> None:
    _, digest = write(tmp_path / "rows", made())
    study = studies.load(study_file(tmp_path, digest))
    (stream,) = study.streams
    others = [
        replace(study, normalisation=replace(study.normalisation, shrinkage=1.0)),
        replace(study, audio=replace(study.audio, trim_silence_db=30.0)),
        replace(study, streams=(replace(stream, parts=stream.parts[:1] * 2),)),
    ]
    with pretrained.looking_in(tmp_path / "rows"):
        assert rows_of(study) is not None
        for other in others:
            with pytest.raises(WeightsError, match="another normalisation"):
                rows_of(other)


def test_nobody_is_scored_whom_the_rows_were_made_of(tmp_path: Path) -> None:
    corpus = scan(write_corpus(tmp_path / "wards"), name="wards")
    found = {}
    for name, heard in (("same", corpus.manifest_digest()), ("other", "c" * 64)):
        _, found[name] = write(tmp_path / "rows", made(heard=f"{'d' * 64} {heard}"))
    with pretrained.looking_in(tmp_path / "rows"):
        check_rows_apart(of_a_study(SPEC % (found["other"], 2, "all")), [corpus])
        with pytest.raises(CorpusError, match="whom the rows are drawn from"):
            check_rows_apart(of_a_study(SPEC % (found["same"], 2, "all")), [corpus])


def test_sites_train_on_them_and_more_of_them_lead_elsewhere(tmp_path: Path) -> None:
    _, digest = write(tmp_path / "rows", made())
    sites = write_sites(tmp_path / "sites", 2)
    ends = []
    for per_class in (1, 5):
        (tmp_path / f"{per_class}").mkdir()  # a process reads a study file once
        path = study_file(tmp_path / f"{per_class}", digest, per_class=per_class)
        study = studies.load(path)
        weights = {"head.weight": np.zeros((3, WIDTH), np.float32), "head.bias": np.zeros(3, np.float32)}
        with (
            pretrained.looking_in(tmp_path / "rows"),
            open_exchange(Execution(), sites, study_file=path) as exchange,
        ):
            outcome = run(exchange, study, cell=Cell(seed=0, fold=-1, arm="federated"), weights=weights)
        ends.append(outcome.digest)
    assert ends[0] != ends[1]
