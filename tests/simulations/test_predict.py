"""`sottovoce predict`: an emotion, a set, or nothing, and one line for what cannot be read."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from sottovoce.cli import app
from sottovoce.common import models
from sottovoce.common import summary as summaries
from sottovoce.common.calibrated import answers_of, calibrate
from sottovoce.common.errors import AudioError, RunError, SottovoceError
from sottovoce.common.predictions import LEAKS
from sottovoce.common.study import loads
from sottovoce.common.weights import Layout, from_state_dict
from sottovoce.server import checkpoint
from sottovoce.server.rounds import Cell
from sottovoce.server.strategies import ServerState
from sottovoce.simulations import study_new
from sottovoce.simulations.cells import checkpoint_of
from sottovoce.simulations.predict import Predicted, _notes_of_normalisation, _notes_of_run, predict
from sottovoce.simulations.run_folder import Local, write_local
from sottovoce.simulations.sounds import RATE_HZ, not_speech
from sottovoce.simulations.study_shape import EMBEDDED
from sottovoce.simulations.voices import draw_voice, say
from tests.fakes.runs import FakeRun, predictions_of, study_text, write_run

RUN = FakeRun(repetitions=2, seeds=(0,), skill=(("federated", 2.0), ("svm", 1.8), ("federated" + LEAKS, 3.0)))


def finished(folder: Path) -> Path:
    """A run as `simulate` leaves it, with a model of random weights for fold 0."""
    write_run(folder, RUN)
    study = loads(study_text(RUN))
    write_local(folder, Local(twins=False, data={}))
    model = models.build(study.model, {"pooled": 80}, 8, seed=3)
    weights = from_state_dict(model.state_dict())
    layout = Layout.of(weights)
    name, digest = checkpoint_of(study, Cell(seed=0, fold=0, arm="federated"))
    state = ServerState(round=40, weights=layout.flatten(weights), moments={})
    checkpoint.save(
        folder / "checkpoints" / f"{name}.safetensors",
        checkpoint.Checkpoint(state=state, records=()),
        layout,
        checkpoint.Identity(study_digest=digest, cell=name),
    )
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("predict") / "run")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("recordings")
    voice = draw_voice(1, "s1", language="en-us", sex="female", age=40)
    sounds = {"silence": np.zeros(RATE_HZ), "melody": dict(not_speech(0))["a melody with pauses, string"]}
    for number in range(2):
        spoken = say("The kettle stands on the table", voice, "angry", take=number)
        assert spoken.sample_rate_hz == RATE_HZ
        sounds[f"voice{number}"] = spoken.samples.astype(np.float64)
    for name, samples in sounds.items():
        soundfile.write(folder / f"{name}.wav", samples, RATE_HZ, subtype="PCM_16")
    (folder / "broken.wav").write_bytes(b"RIFF1234WAVEjunk")
    return {path.stem: path for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def found(run: Path, files: dict[str, Path]) -> Predicted:
    return predict(run, list(files.values()), answered=1.0)


def test_each_recording_has_its_outcome_in_its_place(found: Predicted, files: dict[str, Path]) -> None:
    assert [Path(one.recording).stem for one in found.said] == list(files)
    outcomes = {Path(one.recording).stem: one.outcome for one in found.said}
    assert outcomes["broken"] == "unreadable"
    assert outcomes["silence"] == outcomes["melody"] == "no speech"
    assert {outcomes["voice0"], outcomes["voice1"]} <= {"emotion", "not sure"}
    assert not found.all_read


def test_what_is_no_speech_gets_no_emotion_and_words_for_why(found: Predicted) -> None:
    for one in found.said:
        if one.outcome in ("no speech", "unreadable"):
            assert (one.emotion, one.probability, one.emotions) == (None, None, ())
            assert one.reason
            assert "\n" not in one.reason


def test_temperature_and_least_probability_come_from_the_speakers_of_other_folds(found: Predicted) -> None:
    answers = answers_of([row for row in predictions_of(RUN) if row.arm == "federated"])[0]
    calibrated = calibrate(answers)
    assert found.temperature == calibrated.temperatures[0]
    probs = np.exp(calibrated.log_probs).max(axis=1)[answers.fold != 0]
    assert found.least_probability < probs.max()


def test_an_emotion_is_always_in_its_set(found: Predicted) -> None:
    for one in found.said:
        assert one.outcome != "emotion" or one.emotion == one.emotions[0]


def test_another_order_changes_no_answer_and_neither_does_what_holds_no_speech(
    found: Predicted, run: Path, files: dict[str, Path]
) -> None:
    again = predict(run, [files["voice1"], files["voice0"]], answered=0.01)
    by_name = {one.recording: one for one in found.said}
    assert [by_name[one.recording].emotions for one in again.said] == [one.emotions for one in again.said]
    assert {one.outcome for one in again.said} == {"not sure"}  # a model of random weights is sure of nothing


def test_mistakes_are_one_clear_line(run: Path, files: dict[str, Path]) -> None:
    voice = files["voice0"]
    with pytest.raises(SottovoceError, match="two recordings of the person"):
        predict(run, [voice])
    with pytest.raises(AudioError, match=r"broken\.wav"):
        predict(run, [voice], enrol=[files["broken"]])
    with pytest.raises(AudioError, match=r"silence\.wav: .*to enrol by.*loud enough"):
        predict(run, [voice], enrol=[files["silence"]])
    with pytest.raises(RunError, match=r"seed0-fold1-federated.*put it back, or run the study again"):
        predict(run, [voice, voice], fold=1)
    with pytest.raises(RunError, match="an arm with withheld speakers"):
        predict(run, [voice, voice], arm="federated" + LEAKS)


def test_one_clip_is_one() -> None:
    study = loads(study_new.study_text("small", EMBEDDED))
    assert _notes_of_normalisation(study, 1, 1)[0].endswith("enrolled by 1 clip.")
    assert _notes_of_normalisation(study, 2, 1)[0].endswith("enrolled by 2 clips.")


def test_the_command_prints_what_it_cannot_tell_and_says_so_of_a_bad_file(
    run: Path, files: dict[str, Path]
) -> None:
    shown = CliRunner().invoke(app, ["predict", str(run), *map(str, files.values())])
    assert shown.exit_code == 2
    text = " ".join(shown.stdout.split())
    for claim in (
        "NOT PRIVATE",
        "no speech",
        "unreadable",
        "cannot tell what somebody feels",
        "on them it did",
    ):
        assert claim in text, claim
    plain = CliRunner().invoke(
        app, ["predict", str(run), str(files["silence"]), str(files["melody"]), "--json"]
    )
    assert plain.exit_code == 0
    assert [one["outcome"] for one in json.loads(plain.stdout)["said"]] == ["no speech"] * 2


def test_a_private_runs_figure_is_not_said_to_cover_what_was_fitted_on_exact_answers(run: Path) -> None:
    figures, cell = summaries.read(run / "metrics.json"), Cell(seed=0, fold=0, arm="federated")
    private = replace(figures, privacy="epsilon 2.00 at delta 1e-05 for each patient")
    (added,) = set(_notes_of_run(private, cell)) - set(_notes_of_run(figures, cell))
    assert "exact answers, which no figure covers" in added
