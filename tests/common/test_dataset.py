"""Claims about a site's data: bounded, exact, private to each speaker."""

import json
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sottovoce.common.dataset import (
    Example,
    SiteData,
    StreamShape,
    clip_frames,
    normalise,
    pool,
    stream_shapes,
)
from sottovoce.common.errors import RunError
from sottovoce.common.feature_specs import Energy, FeatureStream, Frames
from sottovoce.common.study import Audio, Normalisation

T = 12
SHAPES = {"mel": StreamShape(width=3, n_frames=T), "stats": StreamShape(width=5, n_frames=None)}
BY_SPEAKER = Normalisation(scheme="speaker")


def example(number: int, speaker: str = "a", n_frames: int = 7, copy: int = 0) -> Example:
    rng = np.random.default_rng(number)
    return Example(
        key=f"{speaker}/{number}",
        label=number % 4,
        speaker=speaker,
        patient=f"p-{speaker}",
        groups={"sex": "female"},
        features={
            "mel": (5 + 2 * rng.standard_normal((n_frames, 3))).astype(np.float32),
            "stats": (300 * rng.standard_normal(5) - 40).astype(np.float32),
        },
        copy=copy,
    )


def site(folder: Path, examples: Sequence[Example], name: str = "north") -> SiteData:
    return SiteData.write(folder, site=name, shapes=SHAPES, examples=examples)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    examples = [example(0), example(1, "b", n_frames=12), example(2, "b", n_frames=1)]
    data = site(tmp_path / "raw", examples)
    assert (data.site, len(data), data.widths) == ("north", 3, {"mel": 3, "stats": 5})
    assert data.keys == ("a/0", "b/1", "b/2")
    assert data.patients == ("p-a", "p-b", "p-b")
    assert data.groups[0] == {"sex": "female"}
    batch = data.batch(np.array([2, 0]))
    assert batch.labels.tolist() == [2, 0]
    assert batch.lengths["mel"].tolist() == [1, 7]
    assert batch.inputs["mel"].shape == (2, T, 3)
    for row, number in enumerate([2, 0]):
        features, length = examples[number].features, batch.lengths["mel"][row]
        assert torch.equal(batch.inputs["mel"][row, :length], torch.from_numpy(features["mel"]))
        assert not batch.inputs["mel"][row, length:].any()
        assert torch.equal(batch.inputs["stats"][row], torch.from_numpy(features["stats"]))


def test_a_long_recording_is_cut_to_the_studys_frames(tmp_path: Path) -> None:
    long = example(0, n_frames=40)
    batch = site(tmp_path / "raw", [long]).batch(np.array([0]))
    assert batch.lengths["mel"].tolist() == [T]
    assert torch.equal(batch.inputs["mel"][0], torch.from_numpy(long.features["mel"][:T]))


def test_a_view_of_a_view_reads_the_right_rows(tmp_path: Path) -> None:
    data = site(tmp_path / "raw", [example(i, "ab"[i % 2]) for i in range(8)])
    odd = data.select(np.array([name == "b" for name in data.speakers]))
    last_first = odd.select(np.array([3, 0]))
    assert last_first.keys == ("b/7", "b/1")
    assert torch.equal(
        last_first.batch(np.array([1])).inputs["stats"], data.batch(np.array([1])).inputs["stats"]
    )
    assert last_first.pooled("stats").shape == (2, 5)
    assert set(odd.only(["stats"]).batch(np.array([0])).inputs) == {"stats"}


def test_rows_do_not_depend_on_what_else_the_site_holds(tmp_path: Path) -> None:
    alone = site(tmp_path / "one", [example(3)]).batch(np.array([0]))
    among = site(tmp_path / "many", [example(1), example(3), example(5)]).batch(np.array([1]))
    assert torch.equal(alone.inputs["mel"], among.inputs["mel"])


def test_augmented_copies_are_left_out_of_the_originals(tmp_path: Path) -> None:
    data = site(tmp_path / "raw", [example(0), example(0, copy=1), example(1)])
    assert data.originals().keys == ("a/0", "a/1")


def test_a_site_without_recordings_can_be_written_and_read(tmp_path: Path) -> None:
    data = normalise(site(tmp_path / "raw", []), BY_SPEAKER, tmp_path / "done")
    assert len(data) == 0
    assert data.batch(np.zeros(0, np.int64)).inputs["mel"].shape == (0, T, 3)


@pytest.mark.parametrize(
    ("features", "complaint"),
    [
        ({"mel": np.zeros((4, 3), np.float32)}, "'stats'.*came nothing"),
        ({"mel": np.zeros((4, 2), np.float32), "stats": np.zeros(5, np.float32)}, "3 columns; came shape"),
        ({"mel": np.zeros((0, 3), np.float32), "stats": np.zeros(5, np.float32)}, "came shape"),
        ({"mel": np.zeros((4, 3), np.float32), "stats": np.full(5, np.inf, np.float32)}, "finite"),
    ],
)
def test_a_bad_example_is_refused_and_no_site_remains(
    tmp_path: Path, features: dict[str, np.ndarray], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        site(tmp_path / "raw", [example(0), replace(example(1), features=features)])
    with pytest.raises(RunError, match="Extract it again"):
        SiteData.open(tmp_path / "raw")


def test_a_damaged_folder_is_one_clear_error(tmp_path: Path) -> None:
    site(tmp_path / "raw", [example(0), example(1)])
    array = tmp_path / "raw" / "mel.npy"
    array.write_bytes(array.read_bytes()[:-8])
    with pytest.raises(RunError, match="expected site data"):
        SiteData.open(tmp_path / "raw")
    index = tmp_path / "raw" / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"format": 99}))
    with pytest.raises(RunError, match="format 2; came 99"):
        SiteData.open(tmp_path / "raw")


def test_a_second_site_is_not_written_over_the_first(tmp_path: Path) -> None:
    site(tmp_path / "raw", [example(0)])
    with pytest.raises(FileExistsError):
        site(tmp_path / "raw", [example(1)])


def test_memory_stays_at_one_batch_whatever_the_size_of_the_site(tmp_path: Path) -> None:
    shapes = {"mel": StreamShape(width=64, n_frames=100)}
    one = Example(
        key="x",
        label=0,
        speaker="a",
        patient="a",
        groups={},
        features={"mel": np.random.default_rng(0).standard_normal((100, 64)).astype(np.float32)},
    )

    def many() -> Iterator[Example]:
        return (replace(one, key=f"x{i}") for i in range(2000))  # 51 MB of features

    tracemalloc.start()
    data = SiteData.write(tmp_path / "raw", site="s", shapes=shapes, examples=many())
    done = normalise(data, BY_SPEAKER, tmp_path / "done")
    for first in range(0, 2000, 50):
        done.batch(np.arange(first, first + 50))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6


def test_a_speaker_is_standardised_by_valid_frames_alone(tmp_path: Path) -> None:
    examples = [example(i, "ab"[i % 2], n_frames=3 + i) for i in range(8)]
    data = normalise(site(tmp_path / "raw", examples), BY_SPEAKER, tmp_path / "done")
    for speaker in "ab":
        own = [i for i, name in enumerate(data.speakers) if name == speaker]
        frames = np.concatenate([data.valid("mel", i) for i in own])
        np.testing.assert_allclose(frames.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(frames.std(axis=0), 1, atol=1e-5)
        rows = data.pooled("stats")[own]
        np.testing.assert_allclose(rows.std(axis=0), 1, atol=1e-5)
    batch = data.batch(np.array([0]))
    assert not batch.inputs["mel"][0, 3:].any()


def test_no_other_speaker_and_no_label_changes_a_speakers_features(tmp_path: Path) -> None:
    mine = [example(i, "a") for i in range(4)]
    alone = normalise(site(tmp_path / "one", mine), BY_SPEAKER, tmp_path / "one done")
    relabelled = [replace(row, label=0) for row in mine]
    crowd = [example(i, "b") for i in range(20, 26)]
    among = normalise(site(tmp_path / "two", relabelled + crowd), BY_SPEAKER, tmp_path / "two done")
    for index in range(4):
        assert np.array_equal(alone.valid("mel", index), among.valid("mel", index))
        assert np.array_equal(alone.pooled("stats")[index], among.pooled("stats")[index])


def test_augmented_copies_do_not_move_a_speakers_normaliser(tmp_path: Path) -> None:
    mine = [example(i) for i in range(4)]
    copies = [example(40 + i, copy=1) for i in range(4)]
    alone = normalise(site(tmp_path / "one", mine), BY_SPEAKER, tmp_path / "one done")
    among = normalise(site(tmp_path / "two", mine + copies), BY_SPEAKER, tmp_path / "two done")
    assert np.array_equal(alone.valid("mel", 2), among.valid("mel", 2))


@pytest.mark.parametrize("n_clips", [1, 2, 3, 10])
def test_a_speaker_of_few_clips_keeps_sane_values(tmp_path: Path, n_clips: int) -> None:
    data = normalise(
        site(tmp_path / "raw", [example(i) for i in range(n_clips)]), BY_SPEAKER, tmp_path / "done"
    )
    assert np.abs(data.pooled("stats")).max() <= np.sqrt(n_clips - 1) + 1e-4
    assert np.abs(data.valid("mel", 0)).max() <= np.sqrt(7 * n_clips)


def test_public_constants_hold_a_speaker_of_one_clip(tmp_path: Path) -> None:
    # Five clips' worth of public figures against one clip: the result stays near the constants' own.
    spec = Normalisation(scheme="speaker", mean={"stats": (-40.0,) * 5}, deviation={"stats": (300.0,) * 5})
    data = normalise(site(tmp_path / "raw", [example(1)]), spec, tmp_path / "done")
    by_constants = (example(1).features["stats"] + 40) / 300
    found = data.pooled("stats")[0]
    np.testing.assert_allclose(found, by_constants * (5 / 6) / np.sqrt(5 / 6), rtol=1e-4)


def test_a_constant_column_becomes_zero(tmp_path: Path) -> None:
    flat = [
        replace(
            example(i), features={**example(i).features, "stats": np.full(5, 0.1 * i // 1 + 7.7, np.float32)}
        )
        for i in range(3)
    ]
    data = normalise(site(tmp_path / "raw", flat), BY_SPEAKER, tmp_path / "done")
    assert not data.pooled("stats").any()


def test_an_utterance_is_standardised_by_itself(tmp_path: Path) -> None:
    spec = Normalisation(scheme="utterance")
    shapes = {"mel": SHAPES["mel"]}
    data = SiteData.write(tmp_path / "raw", site="s", shapes=shapes, examples=[example(0), example(1, "b")])
    done = normalise(data, spec, tmp_path / "done")
    for index in range(2):
        np.testing.assert_allclose(done.valid("mel", index).mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(done.valid("mel", index).std(axis=0), 1, atol=1e-5)


def test_constants_are_the_studys_and_a_stream_without_them_is_left_alone(tmp_path: Path) -> None:
    spec = Normalisation(
        scheme="constants", mean={"mel": (1.0, 2.0, 3.0)}, deviation={"mel": (2.0, 2.0, 4.0)}
    )
    raw = site(tmp_path / "raw", [example(0)])
    done = normalise(raw, spec, tmp_path / "done")
    wanted = (raw.valid("mel", 0) - np.array([1, 2, 3])) / np.array([2, 2, 4])
    np.testing.assert_allclose(done.valid("mel", 0), wanted, rtol=1e-6)
    assert np.array_equal(done.pooled("stats"), raw.pooled("stats"))


def test_the_pooled_twin_holds_every_sites_rows_unchanged(tmp_path: Path) -> None:
    one = site(tmp_path / "one", [example(0), example(1)])
    two = site(tmp_path / "two", [example(2, "b")], "south")
    both = pool(tmp_path / "both", site="pooled", parts=[one, two])
    assert both.keys == (*one.keys, *two.keys)
    assert torch.equal(both.batch(np.array([2])).inputs["mel"], two.batch(np.array([0])).inputs["mel"])


def test_streams_are_shaped_by_the_studys_clip() -> None:
    streams = (
        FeatureStream(name="mel", parts=(Energy(kind="energy"),)),
        FeatureStream(name="stats", parts=(Energy(kind="energy"),), pooling="statistics"),
    )
    audio, frames = Audio(clip_seconds=2.0), Frames(hop_seconds=0.02)
    assert clip_frames(audio, frames) == 101
    assert stream_shapes(streams, {"mel": 1, "stats": 4}, audio, frames) == {
        "mel": StreamShape(width=1, n_frames=101),
        "stats": StreamShape(width=4, n_frames=None),
    }


ENROLMENT = Normalisation(
    scheme="enrolment",
    mean={"mel": (5.0,) * 3, "stats": (-40.0,) * 5},
    deviation={"mel": (2.0,) * 3, "stats": (300.0,) * 5},
)


def enrolling(number: int, speaker: str = "a") -> Example:
    return replace(example(number, speaker), label=-1, enrols=True, trains=False)


def test_what_enrols_a_speaker_is_in_no_data_that_is_trained_on_or_scored(tmp_path: Path) -> None:
    mine = [enrolling(0), example(1), enrolling(2), example(3)]
    data = normalise(site(tmp_path / "raw", mine), ENROLMENT, tmp_path / "done")
    assert data.keys == ("a/1", "a/3")
    assert not data.enrols.any()
    assert len(SiteData.open(tmp_path / "done")) == 2


def test_only_what_enrols_a_speaker_moves_the_speakers_features(tmp_path: Path) -> None:
    def features(name: str, others: Sequence[Example]) -> np.ndarray:
        data = normalise(
            site(tmp_path / name, [enrolling(0), example(1), *others]), ENROLMENT, tmp_path / f"{name} done"
        )
        return np.asarray(data.pooled("stats")[0])

    alone = features("one", [])
    assert np.array_equal(alone, features("two", [example(7), example(8, "b"), enrolling(9, "b")]))
    assert not np.array_equal(alone, features("three", [enrolling(9)]))


def test_a_site_commits_to_what_enrols_by_its_content_and_to_nothing_else_by_it(tmp_path: Path) -> None:
    def committed(name: str, rows: list[Example]) -> str:
        found = normalise(site(tmp_path / name, rows), ENROLMENT, tmp_path / f"{name} done")
        assert SiteData.open(tmp_path / f"{name} done").enrolled == found.select(np.array([0])).enrolled
        return found.enrolled

    first, second, trained = enrolling(0), enrolling(2), example(1)
    exchanged = replace(first, features=enrolling(9).features)  # another recording in the place of the first
    whole = committed("whole", [first, second, trained])
    assert committed("in another order", [second, trained, first, example(7)]) == whole
    others = [
        committed("exchanged", [exchanged, second, trained]),
        committed("fewer", [first, trained]),
        committed("of another", [replace(first, patient="z"), second, trained]),
    ]
    assert len({whole, *others}) == 4
    assert committed("none", [trained]) == ""


def test_a_speaker_is_centred_by_enrolment_as_far_as_there_is_of_it(tmp_path: Path) -> None:
    data = normalise(
        site(tmp_path / "raw", [enrolling(0), enrolling(2), example(1)]), ENROLMENT, tmp_path / "done"
    )
    own = (example(0).features["stats"] + example(2).features["stats"]) / 2
    centre = 2 / 7 * own + 5 / 7 * -40.0
    np.testing.assert_allclose(
        data.pooled("stats")[0], (example(1).features["stats"] - centre) / 300, rtol=1e-5
    )


def test_a_speaker_without_enrolment_is_standardised_by_the_public_figures(tmp_path: Path) -> None:
    data = normalise(site(tmp_path / "raw", [example(1), enrolling(0, "b")]), ENROLMENT, tmp_path / "done")
    public = normalise(
        site(tmp_path / "public", [example(1)]),
        replace(ENROLMENT, scheme="constants"),
        tmp_path / "public done",
    )
    assert np.array_equal(data.pooled("stats"), public.pooled("stats"))


def test_a_speaker_whose_clips_are_all_of_one_emotion_keeps_it_by_enrolment_and_loses_it_without(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(3)
    emotions = 30.0 * rng.standard_normal((4, 5))
    speakers = [100.0 * rng.standard_normal(5) for _ in range(24)]

    def clip(key: int, person: int, emotion: int, *, enrols: bool = False) -> Example:
        features = speakers[person] + (0 if enrols else emotions[emotion]) + 5.0 * rng.standard_normal(5)
        return Example(
            key=str(key),
            label=-1 if enrols else emotion,
            speaker=f"s{person}",
            patient=f"s{person}",
            groups={},
            features={"stats": features.astype(np.float32)},
            enrols=enrols,
        )

    rows = [clip(100 * p + i, p, p % 4, enrols=i < 4) for p in range(24) for i in range(12)]
    shapes = {"stats": SHAPES["stats"]}
    raw = SiteData.write(tmp_path / "raw", site="s", shapes=shapes, examples=rows)
    public = {"mean": {"stats": (0.0,) * 5}, "deviation": {"stats": (30.0,) * 5}, "shrinkage": 0.2}
    enrolled = normalise(raw, Normalisation(scheme="enrolment", **public), tmp_path / "enrolled")  # type: ignore[arg-type]
    by_all = normalise(raw.select(~raw.enrols), BY_SPEAKER, tmp_path / "by all")

    def recognised(data: SiteData) -> float:
        values, others = data.pooled("stats"), np.array([int(name[1:]) >= 12 for name in data.speakers])
        centres = np.stack([values[~others & (data.labels == k)].mean(axis=0) for k in range(4)])
        nearest = ((values[others][:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
        return float((nearest == data.labels[others]).mean())

    assert recognised(enrolled) > 0.9
    assert recognised(by_all) < 0.4, "chance is 0.25"
