"""Claims about what a public corpus teaches: figures, reductions, weights; with labels, or with hidden frames."""

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sottovoce.cli import app
from sottovoce.common.dataset import Example, SiteData, StreamShape, normalise
from sottovoce.common.errors import CorpusError, RunError, SottovoceError
from sottovoce.common.initial import load
from sottovoce.common.keys import SigningKey
from sottovoce.common.models import build
from sottovoce.common.models.encoders import SequenceEncoder
from sottovoce.common.progress import silent
from sottovoce.common.study import Normalisation, Study, loads
from sottovoce.common.weights import from_state_dict
from sottovoce.server import pretraining
from sottovoce.server.pretrain import Plan, bare, learn, named_sources, pretrain
from sottovoce.server.pretraining import hide, masked_frames, supervised
from sottovoce.simulations.prepare import prepare
from tests.fakes.wards import study_text, write_corpus

SHAPES = {"frames": StreamShape(width=8, n_frames=40), "statistics": StreamShape(width=80, n_frames=None)}
CNN = 'model = { kind = "cnn", stream = "frames", channels = [8], dropout = 0.0 }'
LSTM = 'model = { kind = "lstm", stream = "frames", hidden = 12, stride = 2, dropout = 0.0 }'
MLP = 'model = { kind = "mlp", stream = "statistics", hidden = 4 }'


def a_study(model: str = MLP, scheme: str = "constants") -> Study:
    text = study_text().replace(MLP, model).replace('scheme = "speaker"', f'scheme = "{scheme}"')
    study = loads(text)
    return replace(study, training=replace(study.training, learning_rate=0.02))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> SiteData:
    """Ninety recordings of tones that last: a hidden frame can be guessed from its neighbours."""
    draw = np.random.default_rng(3)

    def example(number: int) -> Example:
        label, n_frames = number % 3, 25 + number % 20
        frames = 4.0 + draw.standard_normal(8) + 0.1 * draw.standard_normal((n_frames, 8))
        statistics = 3.0 * draw.standard_normal(80)
        statistics[label] += 20.0
        features = {"frames": frames.astype(np.float32), "statistics": statistics.astype(np.float32)}
        speaker = f"s{number % 5}"
        return Example(
            key=f"{number}", label=label, speaker=speaker, patient=speaker, groups={}, features=features
        )

    folder = tmp_path_factory.mktemp("public") / "raw"
    return SiteData.write(folder, site="public", shapes=SHAPES, examples=map(example, range(90)))


def test_figures_are_of_features_as_they_are_computed(raw: SiteData, tmp_path: Path) -> None:
    found = learn(a_study(), raw, tmp_path, Plan(method="statistics"))
    rows = np.concatenate([raw.valid("frames", i) for i in range(len(raw))]).astype(np.float64)
    np.testing.assert_allclose(found.mean["frames"], rows.mean(axis=0))
    np.testing.assert_allclose(found.deviation["frames"], rows.std(axis=0))
    np.testing.assert_allclose(
        found.deviation["statistics"], raw.pooled("statistics").std(axis=0, dtype=float)
    )
    assert (found.weights, found.reduction, found.n_epochs) == ({}, {}, 0)


def test_a_reduction_is_of_the_streams_that_the_model_reads_as_the_study_standardises_them(
    raw: SiteData, tmp_path: Path
) -> None:
    plan = Plan(method="supervised", columns=5, n_epochs=2)
    found = learn(a_study(), raw, tmp_path, plan)
    assert {name: array.shape for name, array in found.reduction.items()} == {"statistics": (80, 5)}
    assert found.weights["encoder.hidden.weight"].shape == (4, 5)
    figures = Normalisation(
        scheme="constants",
        mean={name: tuple(values) for name, values in found.mean.items()},
        deviation={name: tuple(values) for name, values in found.deviation.items()},
    )
    even = normalise(raw, figures, tmp_path / "again", maps=found.reduction)
    assert even.pooled("statistics").var(axis=0).mean() == pytest.approx(1.0, rel=1e-3)


def test_labels_are_learned_by_the_studys_own_settings_to_the_same_bits(
    raw: SiteData, tmp_path: Path
) -> None:
    study = a_study()
    data = normalise(raw, Normalisation(scheme="speaker"), tmp_path / "even")
    one, again = (supervised(study, data, n_epochs=60, seed=4, device="cpu", tell=silent) for _ in range(2))
    assert all(one[name].tobytes() == again[name].tobytes() for name in one)
    model = build(study.model, data.widths, 3, seed=4).eval()
    assert from_state_dict(model.state_dict()).keys() == one.keys()
    before = accuracy(model, data)
    model.load_state_dict({name: torch.tensor(array) for name, array in one.items()})
    assert accuracy(model, data) > max(0.9, before)


def accuracy(model: torch.nn.Module, data: SiteData) -> float:
    batch = data.batch(np.arange(len(data)))
    with torch.no_grad():
        return float((model(batch.inputs, batch.lengths).argmax(1) == batch.labels).double().mean())


@pytest.mark.parametrize(
    "model",
    [
        CNN,
        'model = { kind = "rnn", stream = "frames", hidden = 6, stride = 2 }',
        'model = { kind = "lstm", stream = "frames", hidden = 6, stride = 2 }',
        'model = { kind = "attention", stream = "frames", width = 8, heads = 2, layers = 1, stride = 2 }',
        'model = { kind = "cnn_lstm_attention", stream = "frames", channels = [6], hidden = 4 }',
        'model = { kind = "fusion", level = "feature", width = 4, branches = [\n'
        '  { kind = "cnn", stream = "frames", channels = [4] },\n'
        '  { kind = "mlp", stream = "statistics", hidden = 4 } ] }',
    ],
)
def test_hidden_frames_teach_every_sequence_body_and_nothing_else(
    raw: SiteData, tmp_path: Path, model: str
) -> None:
    study = a_study(model)
    data = normalise(raw, Normalisation(scheme="speaker"), tmp_path / "even")
    begun = build(study.model, data.widths, 3, seed=0)
    found = masked_frames(study, data, n_epochs=1, seed=0, device="cpu", tell=silent)
    before = from_state_dict(begun.state_dict())
    bodies = {
        name: part
        for name, part in begun.named_modules()
        if isinstance(part, SequenceEncoder) and part.stream
    }
    wanted = {
        name for name in before if name.startswith(tuple(f"{n}." for n in bodies)) and ".pooling." not in name
    }
    assert found.keys() == wanted
    assert all((found[name] != before[name]).any() for name in found)


def test_hidden_frames_are_guessed_better_than_by_their_mean(raw: SiteData, tmp_path: Path) -> None:
    data = normalise(raw, Normalisation(scheme="speaker"), tmp_path / "even")
    study = a_study(LSTM)
    told: list[float] = []
    rng = np.random.default_rng(0)
    model = build(study.model, data.widths, 3, seed=0)
    guess = pretraining._guess(model.encoder, data, study.frames, rng, 0)  # type: ignore[arg-type]
    batch = data.batch(np.arange(len(data)))
    with torch.no_grad():
        by_mean = float(guess.average(batch.inputs["frames"], batch.lengths["frames"])[0].abs().mean())
    pretraining._fit(
        guess, data, study.training, guess, n_epochs=15, seed=0, device="cpu", tell=lambda _: told.append(1.0)
    )
    with torch.no_grad():
        assert float(guess(batch).mean()) < 0.8 * by_mean
    assert len(told) == 15


def test_a_study_without_a_sequence_has_no_frames_to_hide(raw: SiteData, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="reads pooled streams alone"):
        learn(a_study(), raw, tmp_path, Plan(method="masked_frames"))


def test_what_is_hidden_is_a_share_of_the_valid_frames_and_never_padding() -> None:
    values = torch.arange(1.0, 401.0)[None, :, None].repeat(8, 1, 2)
    lengths = torch.tensor([400, 300, 200, 100, 50, 15, 7, 1])
    hidden, changed = hide(values, lengths, span=15, rng=np.random.default_rng(0))
    inside = torch.arange(400)[None, :] < lengths[:, None]
    assert not hidden[~inside].any()
    assert (changed[~hidden] == values[~hidden]).all()
    assert hidden.any(dim=1).all()
    share = hidden[:4].sum(1) / lengths[:4]
    assert ((share > 0.08) & (share <= 0.16)).all()
    assert (changed[hidden] == 0).double().mean() > 0.5


def test_what_a_study_takes_from_a_file_already_is_left_aside() -> None:
    study = a_study()
    bound = loads(
        study_text()
        .replace('"speaker" }', '"constants", from_initial = "' + "1a" * 32 + '" }')
        .replace('purpose = "medical"', 'purpose = "medical"\ninitial_signed_by = "' + "2b" * 32 + '"')
    )
    assert bare(bound) == replace(bare(study), training=bound.training)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def test_the_command_writes_a_signed_file_and_the_lines_that_use_it(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOTTOVOCE_CACHE", str(tmp_path / "cache"))
    text = study_text().replace('{ scheme = "speaker" }', '{ scheme = "constants" }')
    study, out = tmp_path / "study.toml", tmp_path / "wards.initial.safetensors"
    study.write_text(text)
    said = CliRunner().invoke(
        app,
        [
            "server",
            "pretrain",
            str(study),
            "--data",
            f"wards={corpus}",
            "--out",
            str(out),
            "--reduction",
            "3",
        ],
    )
    assert said.exit_code == 0, said.output
    made = load(out)
    assert (made.statement.corpora[0].n_recordings, made.statement.corpora[0].n_speakers) == (36, 6)
    assert made.statement.study == bare(loads(text)).digest()
    (key,) = tmp_path.glob("signing-*.pem")
    assert SigningKey.load(key).public_hex == made.public_key
    lines = said.output.split("For the study:\n\n")[1]
    table = tomllib.loads(lines)
    assert table["initial_signed_by"] == made.public_key
    assert table["transfer"] == {"kind": "model", "initial_sha256": made.sha256}
    assert table["streams"] == [{"reduction": {"sha256": made.sha256, "columns": 3}}]
    assert table["normalisation"] == {"from_initial": made.sha256}
    # The lines as they stand make a study; but not one that is scored on the speakers it was learned from.
    monkeypatch.setenv("SOTTOVOCE_WEIGHTS", str(tmp_path))
    bound = text.replace('"medical"', '"medical"\n' + lines.split("[normalisation]")[0])
    bound = bound.replace('"constants"', f'"constants", from_initial = "{made.sha256}"')
    with pytest.raises(CorpusError, match="whom the start has heard"):
        prepare(loads(bound), {"wards": corpus}, workers=1, on_event=silent)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--data", "nowhere"), "nowhere"),
        (("--data", "{corpus}", "--method", "masked_frames"), "Take --method supervised"),
        (("--data", "{corpus}", "--data", "a/../{corpus}"), "each name once"),
    ],
)
def test_a_command_that_fails_says_why_before_it_reads_a_recording_and_leaves_no_key(
    asked: tuple[str, ...], said: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOTTOVOCE_CACHE", str(tmp_path / "cache"))
    study, out = tmp_path / "study.toml", tmp_path / "wards.initial.safetensors"
    study.write_text(study_text())
    words = [word.format(corpus=corpus) for word in asked]
    found = CliRunner().invoke(app, ["server", "pretrain", str(study), *words, "--out", str(out)])
    assert isinstance(found.exception, SottovoceError)
    assert said in str(found.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.toml"]


def test_a_folder_without_a_name_gives_its_own() -> None:
    found = named_sources(["public/voices", "x=a=b", "./c=d/ravdess"])
    assert found == {
        "voices": Path("public/voices"),
        "x": Path("a=b"),
        "ravdess": Path("./c=d/ravdess"),
    }
    for wrong in (["=a"], ["a=b", "a=c"], ["n" * 61 + "=a"]):
        with pytest.raises(CorpusError, match="NAME=DIR"):
            named_sources(wrong)


def test_the_same_recordings_and_seed_make_the_same_tensors(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOTTOVOCE_CACHE", str(tmp_path / "cache"))
    study, key = loads(study_text()), SigningKey.generate()
    one, again = (
        pretrain(
            study,
            {"wards": corpus},
            key=key,
            out=tmp_path / name,
            signed_by="us",
            plan=Plan(columns=2, reduction_by="labels"),
        )
        for name in ("one", "again")
    )
    for group in ("weights", "mean", "deviation", "reduction"):
        arrays, others = getattr(one, group), getattr(again, group)
        assert arrays.keys() == others.keys()
        assert all(arrays[name].tobytes() == others[name].tobytes() for name in arrays)
