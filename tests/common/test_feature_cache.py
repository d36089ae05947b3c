"""The cache gives what extraction gave, or nothing."""

import logging
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sottovoce.common import feature_cache, features
from sottovoce.common.audio import Waveform
from sottovoce.common.errors import AudioError, SottovoceError
from sottovoce.common.feature_cache import Features, stream_features
from sottovoce.common.study import Study, loads

RATE = 16_000
STUDY = loads(
    """
    format = 1
    name = "features"
    purpose = "research"
    corpora = [{name = "any"}]
    labels = {classes = ["neutral", "happy"]}
    normalisation = {scheme = "speaker"}
    model = {kind = "linear", stream = "pooled"}
    training = {learning_rate = 0.1}
    federation = {n_sites = 1, rounds = 1, partition = {kind = "speaker_blocks"}}
    privacy = {mode = "none"}
    evaluation = {folds = {kind = "by_speaker", k = 2}}
    [[streams]]
    name = "frames"
    parts = [{kind = "log_mel", n_mels = 20}]
    [[streams]]
    name = "pooled"
    pooling = "statistics"
    parts = [{kind = "pitch"}, {kind = "energy"}]
    """
)


@dataclass(frozen=True)
class Clip:
    path: Path
    start_seconds: float = 0.0
    end_seconds: float | None = None


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    folder = tmp_path / "audio"
    folder.mkdir()
    return [clip(folder / f"{seed}.wav", seed) for seed in range(5)]


def clip(path: Path, seed: int) -> Clip:
    random = np.random.default_rng(seed)
    soundfile.write(path, 0.1 * random.normal(size=4000 + 500 * seed), RATE)
    return Clip(path)


def features_of(*arguments: Any, **options: Any) -> list[Any]:
    """`feature_cache.features_of`, whose errors tests look at where they expect them."""
    return feature_cache.features_of(*arguments, **options)


def assert_same(first: list[Features | AudioError], second: list[Features | AudioError]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert isinstance(one, dict)
        assert isinstance(other, dict)
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture
def extractions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many recordings each call of `extract` was given."""
    counts: list[int] = []
    real = features.extract

    def counting(waveforms: list[Waveform], *rest: Any) -> list[Features]:
        counts.append(len(waveforms))
        return real(waveforms, *rest)

    monkeypatch.setattr(feature_cache, "extract", counting)
    return counts


def test_what_comes_from_the_cache_is_what_extraction_gave(
    clips: list[Clip], tmp_path: Path, extractions: list[int]
) -> None:
    first = features_of(clips, STUDY, tmp_path / "cache")
    assert extractions == [5]
    second = features_of(clips, STUDY, tmp_path / "cache")
    assert extractions == [5]
    assert_same(first, second)
    assert first[2]["frames"].shape == (1 + 5000 // 160, 20)
    assert first[2]["pooled"].shape == (12,)


def test_results_stand_in_the_order_of_the_utterances(clips: list[Clip], tmp_path: Path) -> None:
    forwards = features_of(clips, STUDY, tmp_path / "one")
    backwards = features_of(clips[::-1], STUDY, tmp_path / "one")
    assert_same(forwards, backwards[::-1])
    turned = features_of(clips[3:] + clips[:3], STUDY, tmp_path / "two")
    assert_same(forwards, turned[2:] + turned[:2])


def test_new_recordings_are_added(clips: list[Clip], tmp_path: Path, extractions: list[int]) -> None:
    features_of(clips[:2], STUDY, tmp_path / "cache")
    features_of(clips, STUDY, tmp_path / "cache")
    assert extractions == [2, 3]


def test_a_copy_of_a_recording_elsewhere_is_found(
    clips: list[Clip], tmp_path: Path, extractions: list[int]
) -> None:
    features_of(clips, STUDY, tmp_path / "cache")
    moved = tmp_path / "elsewhere.wav"
    moved.write_bytes(clips[0].path.read_bytes())
    features_of([Clip(moved)], STUDY, tmp_path / "cache")
    assert extractions == [5]


CHANGES: dict[str, Callable[[Study], Study]] = {
    "audio": lambda study: replace(study, audio=replace(study.audio, pre_emphasis=0.97)),
    "longest": lambda study: replace(study, audio=replace(study.audio, max_seconds=30.0)),
    "frames": lambda study: replace(study, frames=replace(study.frames, hop_seconds=0.02)),
    "streams": lambda study: replace(
        study, streams=tuple(replace(stream, parts=stream.parts[:1] * 2) for stream in study.streams)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_decides_a_feature_is_part_of_its_key(
    change: str, clips: list[Clip], tmp_path: Path, extractions: list[int]
) -> None:
    features_of(clips, STUDY, tmp_path / "cache")
    features_of(clips, CHANGES[change](STUDY), tmp_path / "cache")
    assert extractions == [5, 5]


def test_the_extractors_version_is_part_of_the_key(
    clips: list[Clip], tmp_path: Path, extractions: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    features_of(clips, STUDY, tmp_path / "cache")
    monkeypatch.setattr(feature_cache, "EXTRACTOR_VERSION", 0)
    features_of(clips, STUDY, tmp_path / "cache")
    assert extractions == [5, 5]


def test_changed_bytes_under_the_same_name_are_another_recording(
    clips: list[Clip], tmp_path: Path, extractions: list[int]
) -> None:
    before = features_of(clips[:1], STUDY, tmp_path / "cache")
    clip(clips[0].path, 99)
    after = features_of(clips[:1], STUDY, tmp_path / "cache")
    assert extractions == [1, 1]
    assert len(before[0]["frames"]) != len(after[0]["frames"])


def test_what_decides_no_feature_is_not_part_of_the_key(
    clips: list[Clip], tmp_path: Path, extractions: list[int]
) -> None:
    features_of(clips, STUDY, tmp_path / "cache")
    renamed = tuple(replace(stream, name=f"other_{stream.name}") for stream in STUDY.streams)
    audio = replace(STUDY.audio, clip_seconds=2.0, on_bad_recording="skip")
    found = features_of(clips, replace(STUDY, audio=audio, streams=renamed), tmp_path / "cache")
    assert extractions == [5]
    assert set(found[0]) == {"other_frames", "other_pooled"}


def test_segments_of_one_recording_are_entries_of_their_own(clips: list[Clip], tmp_path: Path) -> None:
    whole = clips[4]
    segments = [replace(whole, start_seconds=0.1, end_seconds=0.2), replace(whole, end_seconds=0.1)]
    for _ in range(2):
        found = features_of([whole, *segments], STUDY, tmp_path / "cache")
        assert [len(item["frames"]) for item in found] == [1 + 6000 // 160, 11, 11]
        assert not np.array_equal(found[1]["frames"], found[2]["frames"])


def test_a_recording_that_stands_twice_is_computed_with_both_results(
    clips: list[Clip], tmp_path: Path
) -> None:
    found = features_of([clips[0], clips[1], clips[0]], STUDY, tmp_path / "cache")
    assert_same(found[:1], found[2:])


def test_a_bad_recording_is_an_error_in_its_place(clips: list[Clip], tmp_path: Path) -> None:
    bad, gone = tmp_path / "bad.wav", tmp_path / "gone.wav"
    bad.write_bytes(b"RIFF0000WAVE")
    expected = features_of(clips, STUDY, tmp_path / "cache")
    for _ in range(2):
        found = features_of([clips[0], Clip(bad), clips[1], Clip(gone)], STUDY, tmp_path / "cache")
        assert [isinstance(item, AudioError) for item in found] == [False, True, False, True]
        assert "bad.wav" in str(found[1])
        assert "gone.wav" in str(found[3])
        assert_same([found[0], found[2]], expected[:2])


# Damage


def files(folder: Path, suffix: str) -> list[Path]:
    return sorted(folder.rglob(f"*{suffix}"))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a flipped bit in data": lambda folder: flip(files(folder, ".data")[0], 100),
    "a flipped bit in an index": lambda folder: flip(files(folder, ".index")[0], 30),
    "cut data": lambda folder: os.truncate(files(folder, ".data")[0], 10),
    "a cut index": lambda folder: os.truncate(files(folder, ".index")[0], 10),
    "an empty index": lambda folder: os.truncate(files(folder, ".index")[0], 0),
    "lost data": lambda folder: files(folder, ".data")[0].unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_entries_are_computed_again_and_it_is_said_once(
    damage: str,
    clips: list[Clip],
    tmp_path: Path,
    extractions: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = features_of(clips, STUDY, tmp_path / "cache")
    DAMAGE[damage](tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        assert_same(expected, features_of(clips, STUDY, tmp_path / "cache"))
    assert len(extractions) == 2
    assert [record.message for record in caplog.records if "damaged" in record.message]
    caplog.clear()
    assert_same(expected, features_of(clips, STUDY, tmp_path / "cache"))
    assert not caplog.records
    assert len(extractions) == 2


def test_a_write_that_breaks_off_leaves_nothing_behind(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(SottovoceError, match="No space left on device"):
            features_of(clips, STUDY, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(features_of(clips, STUDY, tmp_path / "cache")) == 5


def test_only_the_user_may_read_the_cache(clips: list[Clip], tmp_path: Path) -> None:
    features_of(clips, STUDY, tmp_path / "cache")
    for path in (tmp_path / "cache").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


# Windows, processes, copies


def test_windows_and_processes_change_no_bit(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = features_of(clips, STUDY, tmp_path / "one")
    monkeypatch.setattr(feature_cache, "WINDOW", 2)
    assert_same(expected, features_of(clips, STUDY, tmp_path / "two"))
    monkeypatch.setattr(feature_cache, "MIN_FOR_PROCESSES", 1)
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no")
    seen: list[tuple[int, int]] = []
    found = features_of(
        [*clips, Clip(bad)],
        STUDY,
        tmp_path / "three",
        workers=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert isinstance(found.pop(), AudioError)
    assert_same(expected, found)
    assert seen == [(2, 6), (4, 6), (6, 6)]


def test_features_can_be_streamed(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extractions: list[int]
) -> None:
    monkeypatch.setattr(feature_cache, "WINDOW", 2)
    results = stream_features(clips, STUDY, tmp_path / "cache")
    next(results)
    assert extractions == [2]
    assert len(list(results)) == 4


def test_an_augmented_copy_is_its_own_entry_and_always_the_same(clips: list[Clip], tmp_path: Path) -> None:
    augmentation = replace(STUDY.training.augmentation, speed_prob=1.0, noise_prob=1.0)
    study = replace(STUDY, training=replace(STUDY.training, augmentation=augmentation))
    original = features_of(clips, study, tmp_path / "cache")
    first = features_of(clips, study, tmp_path / "cache", copy=1)
    second = features_of(clips, study, tmp_path / "cache", copy=2)
    assert_same(first, features_of(clips, study, tmp_path / "elsewhere", copy=1))
    assert not np.array_equal(original[0]["pooled"], first[0]["pooled"])
    assert not np.array_equal(second[0]["pooled"], first[0]["pooled"])
    assert_same(original, features_of(clips, STUDY, tmp_path / "cache"))


def test_no_utterances_are_no_features(tmp_path: Path) -> None:
    assert features_of([], STUDY, tmp_path / "cache") == []
