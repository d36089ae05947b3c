"""Encoders as parts of a study's streams: from waveforms to what models are trained on."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from sottovoce.client.train import train
from sottovoce.common import encoders, feature_cache
from sottovoce.common.audio import Waveform
from sottovoce.common.corpus import Utterance
from sottovoce.common.dataset import Example, SiteData, stream_shapes
from sottovoce.common.encoders import encode, ge2e
from sottovoce.common.feature_specs import Energy, FeatureStream, Frames, Ge2e, Mfcc, Whisper
from sottovoce.common.features import extract, width
from sottovoce.common.models import build
from sottovoce.common.pretrained import looking_in
from sottovoce.common.study import loads
from tests.common.test_study import GOOD, problems_of
from tests.fakes.whispers import write_whisper

RATE = 16_000
FRAMES = Frames()
ENERGY, MFCC = Energy(kind="energy"), Mfcc(kind="mfcc", n_mfcc=5)


def sound(seconds: float, seed: int = 0) -> Waveform:
    random = np.random.default_rng(seed)
    times = np.arange(round(seconds * RATE)) / RATE
    samples = 0.2 * np.sin(2 * np.pi * (150 + 100 * random.random()) * times) + 0.02 * random.normal(
        size=len(times)
    )
    return Waveform(samples=samples.astype(np.float32), sample_rate_hz=RATE)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with both encoders' weights, and the parts that name them."""
    folder = tmp_path_factory.mktemp("weights")
    whisper = write_whisper(folder)
    torch.save({"model_state": ge2e.Ge2eEncoder().state_dict()}, folder / "ge2e.pt")
    sha256 = hashlib.sha256((folder / "ge2e.pt").read_bytes()).hexdigest()
    with looking_in(folder):
        yield whisper, sha256


def pooled(name: str, *parts: Any) -> FeatureStream:
    return FeatureStream(name=name, parts=parts, pooling="statistics")


def sequence(name: str, *parts: Any) -> FeatureStream:
    return FeatureStream(name=name, parts=parts)


def test_encoders_and_classical_parts_stand_side_by_side_in_the_order_of_the_stream(weights: Any) -> None:
    whisper, voice = Whisper(kind="whisper", sha256=weights[0]), Ge2e(kind="ge2e", sha256=weights[1])
    streams = [
        pooled("mixed", ENERGY, whisper, MFCC, ENERGY, voice),
        *(
            pooled(name, *parts)
            for name, *parts in (("1", ENERGY), ("2", whisper), ("3", MFCC, ENERGY), ("4", voice))
        ),
    ]
    found = extract([sound(0.7)], streams, FRAMES)[0]
    assert np.array_equal(found["mixed"], np.concatenate([found[name] for name in "1234"]))
    assert {stream.name: width(stream, FRAMES, RATE) for stream in streams} == {
        name: len(row) for name, row in found.items()
    }
    assert len(found["2"]) == 768
    assert len(found["4"]) == 256


def test_whisper_is_pooled_to_mean_and_deviation_of_each_layer(weights: Any) -> None:
    part = Whisper(kind="whisper", sha256=weights[0], layers=(2, 5))
    found = extract([sound(0.7)], [pooled("row", part), sequence("frames", part)], FRAMES)[0]
    frames = found["frames"].astype(np.float64)
    assert frames.shape == (35, 768)
    wanted = np.concatenate(
        [f(frames[:, some], 0) for some in (slice(384), slice(384, None)) for f in (np.mean, np.std)]
    )
    np.testing.assert_allclose(found["row"], wanted, rtol=1e-5, atol=1e-6)


def test_a_recording_has_the_same_bits_alone_and_in_company_and_by_any_number_of_threads(
    weights: Any,
) -> None:
    whisper, voice = Whisper(kind="whisper", sha256=weights[0]), Ge2e(kind="ge2e", sha256=weights[1])
    streams = [pooled("row", whisper, voice, ENERGY), sequence("whisper", whisper), sequence("voice", voice)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        both = extract([sound(0.4, 1), sound(1.9, 2)], streams, FRAMES)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        for waveform, in_company in zip((sound(0.4, 1), sound(1.9, 2)), both, strict=True):
            alone = extract([waveform], streams, FRAMES)[0]
            assert all(np.array_equal(alone[name], in_company[name]) for name in alone)
    finally:
        torch.set_num_threads(threads)


def test_silence_and_a_single_sample_have_finite_features(weights: Any) -> None:
    whisper, voice = Whisper(kind="whisper", sha256=weights[0]), Ge2e(kind="ge2e", sha256=weights[1])
    for n_samples in (1, 3200):
        waveform = Waveform(samples=np.zeros(n_samples, np.float32), sample_rate_hz=RATE)
        found = extract([waveform], [pooled("row", whisper, voice), sequence("frames", whisper)], FRAMES)[0]
        assert all(np.isfinite(values).all() for values in found.values())


def test_weights_layers_and_the_encoders_version_are_part_of_the_cache_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = loads(GOOD)

    def recipe(*parts: Any) -> str:
        return feature_cache._Task.of(study, 0).recipe(pooled("x", *parts))

    whisper = Whisper(kind="whisper")
    keys = [
        recipe(whisper),
        recipe(Whisper(kind="whisper", sha256="0" * 64)),
        recipe(Whisper(kind="whisper", layers="all")),
        recipe(whisper, ENERGY),
        recipe(ENERGY),
    ]
    monkeypatch.setattr(feature_cache, "ENCODERS_VERSION", encode.ENCODERS_VERSION + 1)
    keys.append(recipe(whisper))
    assert len(set(keys)) == len(keys)
    assert recipe(ENERGY) == keys[4]  # a stream without encoders is still found


def test_an_encoders_part_is_found_again_beside_other_parts(
    weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "clip.wav"
    soundfile.write(file, sound(0.3).samples, RATE)
    utterance = Utterance(
        key="clip",
        path=file,
        label="happy",
        corpus_label="happy",
        speaker="a",
        patient="a",
        groups={},
        site=None,
    )
    whisper, voice = Whisper(kind="whisper", sha256=weights[0]), Ge2e(kind="ge2e", sha256=weights[1])

    def found(*parts: Any) -> Any:
        study = replace(loads(GOOD), streams=(pooled("row", *parts), sequence("frames", whisper)))
        (features,) = feature_cache.features_of([utterance], study, tmp_path / "cache")
        return features

    first = found(whisper, voice)
    monkeypatch.setattr(encode, "encoded", lambda *_: {})  # from here on, nothing can be encoded
    mixed = found(MFCC, voice, ENERGY, whisper)
    assert np.array_equal(mixed["frames"], first["frames"])
    assert np.array_equal(mixed["row"][20:276], first["row"][768:])
    assert np.array_equal(mixed["row"][280:], first["row"][:768])
    alone = extract([sound(0.3)], [pooled("row", MFCC), pooled("more", ENERGY)], FRAMES)[0]
    np.testing.assert_allclose(mixed["row"][:20], alone["row"], atol=0.5)  # the file has 16 bits
    with pytest.raises(KeyError):
        found(Whisper(kind="whisper", sha256=weights[0], layers=(1,)))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (
            '{ kind = "whisper" }, { kind = "energy" }',
            "streams: 'mel' is a sequence; expected whisper alone in it",
        ),
        ('{ kind = "whisper", layers = [6] }', "streams: 'mel': whisper.layers: expected some of 0 to 5"),
        ('{ kind = "whisper", layers = [2, 2] }', "streams: 'mel': whisper.layers: expected some of 0 to 5"),
        ('{ kind = "whisper", layers = [] }', "streams: 'mel': whisper.layers: expected some of 0 to 5"),
        ('{ kind = "whisper", layers = "first" }', "streams[0].parts[0].layers: expected one of last, all"),
        (
            f'{{ kind = "ge2e", sha256 = "{"G" * 64}" }}',
            "streams: 'mel': ge2e.sha256: expected 64 hexadecimal",
        ),
    ],
)
def test_encoders_that_cannot_be_are_named(parts: str, expected: str) -> None:
    problems = problems_of(GOOD.replace('{ kind = "log_mel" }', parts))
    assert [problem for problem in problems if problem.startswith(expected)], problems


def test_another_sample_rate_and_masks_on_encoders_are_refused() -> None:
    text = GOOD.replace('"log_mel"', '"whisper"')
    loads(text)
    (problem,) = problems_of(text + "audio = { sample_rate_hz = 8000 }\n")
    assert problem.startswith(
        "audio.sample_rate_hz: expected 16000, what whisper of stream 'mel' was trained on"
    )
    (problem,) = problems_of(text.replace("0.001", "0.001, augmentation = { time_masks = 1 }"))
    assert problem.startswith(
        "training.augmentation: expected no time_masks and band_masks beside a sequence"
    )


@pytest.mark.parametrize("kind", ["cnn", "lstm", "attention"])
def test_a_network_learns_from_the_sequence_of_an_encoder(weights: Any, tmp_path: Path, kind: str) -> None:
    text = GOOD.replace('kind = "log_mel"', f'kind = "whisper", sha256 = "{weights[0]}"').replace(
        '"cnn"', f'"{kind}"'
    )
    study = loads(text + "audio = { clip_seconds = 0.5 }\n")
    lengths = (0.2, 0.33, 0.7, 0.5)
    found = extract(
        [sound(seconds, seed) for seed, seconds in enumerate(lengths)], study.streams, study.frames
    )
    widths = {stream.name: width(stream, study.frames, RATE) for stream in study.streams}
    shapes = stream_shapes(study.streams, widths, study.audio, study.frames)
    assert shapes["mel"].row == (25, 384) == (encoders.n_rows(study.streams[0].encoders[0], 8000), 384)
    examples = [
        Example(key=str(n), label=n % 2, speaker=str(n), patient=str(n), groups={}, features=features)
        for n, features in enumerate(found)
    ]
    data = SiteData.write(tmp_path, site="a", shapes=shapes, examples=examples)
    assert data.batch(np.arange(4)).lengths["mel"].tolist() == [10, 17, 25, 25]
    model = build(study.model, data.widths, n_classes=2, seed=0)
    before = [parameter.clone() for parameter in model.parameters()]
    result = train(model, data, study.training, seed=0, site="a", round=1, rounds=1)
    assert np.isfinite(result.loss)
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
