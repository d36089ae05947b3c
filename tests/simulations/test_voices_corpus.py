"""The embedded corpus as a folder: the same bytes always, whole or not there, and frozen."""

import csv
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sottovoce.common import study
from sottovoce.common.errors import CorpusError, StudyError
from sottovoce.common.study import ACTED, Synthetic
from sottovoce.simulations.voices import synthesize
from sottovoce.simulations.voices.corpus import COLUMNS, corpus_digest
from sottovoce.simulations.voices.parameters import PARAMETERS, PARAMETERS_SHA256, digest
from sottovoce.simulations.voices.plan import Speaker, recordings, speakers

SMALL = Synthetic(n_speakers=12, utterances_per_emotion=1, emotions=("neutral", "angry"), n_sites=3, seed=5)
VECTORS = Path(__file__).parents[1] / "vectors"
# What the frozen parameters make of SMALL, without the last bits of the sound: names, groups and lengths.
SAMPLE_SHA256 = "1b4b55eb9698b99179ba47880e6a441f97f7b676d27c8b3da835854b6bd52d99"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(SMALL, tmp_path_factory.mktemp("voices") / "made", workers=1)


def contents(folder: Path) -> dict[str, str]:
    """Returns the digest of every file by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def band_levels(path: Path) -> list[float]:
    import soundfile

    samples, _rate = soundfile.read(str(path))
    power = np.abs(np.fft.rfft(samples)) ** 2 / len(samples) ** 2
    edges = np.searchsorted(np.fft.rfftfreq(len(samples), 1 / 16_000), [0, 1000, 3000, 8000])
    return [float(10 * np.log10(power[a:b].sum())) for a, b in pairwise(edges)]


def children() -> set[str]:
    """Returns the ids of this process's children."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_parameters_are_the_frozen_ones() -> None:
    assert digest(PARAMETERS) == PARAMETERS_SHA256, (
        "A constant of the embedded corpus was changed. Published figures rest on it: change it back, or "
        "measure them all again (simulations/bench/voices_split.py first) and freeze the new digest."
    )


def test_a_changed_constant_changes_the_digest() -> None:
    changed = replace(PARAMETERS, units=replace(PARAMETERS.units, pitch_semitones=2.6001))
    assert digest(changed) != PARAMETERS_SHA256
    assert corpus_digest(SMALL, changed) != corpus_digest(SMALL)


def test_the_frozen_parameters_still_make_the_same_sample(made: Path) -> None:
    import soundfile

    sample = [(row["path"], row["sex"], row["age"], row["language"]) for row in rows(made)]
    lengths = [soundfile.info(str(made / row["path"])).frames for row in rows(made)]
    found = hashlib.sha256(json.dumps([sample, lengths]).encode()).hexdigest()
    assert found == SAMPLE_SHA256, "The code draws or speaks something else than when it was frozen."


def test_the_frozen_parameters_still_sound_the_same(made: Path) -> None:
    """The levels of three bands of each recording, in dBFS: loose enough for another processor's rounding."""
    frozen = json.loads((VECTORS / "voices_sample.json").read_text())
    found = {row["path"]: band_levels(made / row["path"]) for row in rows(made)}
    assert found.keys() == frozen.keys()
    for path, levels in frozen.items():
        assert found[path] == pytest.approx(levels, abs=0.05), path


def test_the_manifest_states_what_is_in_the_folder(made: Path) -> None:
    table = rows(made)
    assert tuple(table[0]) == COLUMNS
    assert {row["path"] for row in table} == {str(p.relative_to(made)) for p in made.rglob("*.flac")}
    assert {row["label"] for row in table} == {"neutral", "angry"}
    assert len({row["speaker"] for row in table}) == 12
    assert all(row["path"] == f"{row['site']}/{row['speaker']}/{Path(row['path']).name}" for row in table)
    about = json.loads((made / "corpus.json").read_text())
    assert about["digest"] == corpus_digest(SMALL)
    assert about["parameters_sha256"] == PARAMETERS_SHA256
    assert about["n_recordings"] == len(table)


def test_recordings_are_16_khz_mono_flac(made: Path) -> None:
    import soundfile

    for row in rows(made):
        info = soundfile.info(str(made / row["path"]))
        assert (info.samplerate, info.channels, info.format, info.subtype) == (16_000, 1, "FLAC", "PCM_16")
        assert 0.5 < info.duration < 8


def test_workers_change_no_byte(made: Path, tmp_path: Path) -> None:
    other = synthesize(SMALL, tmp_path / "other", workers=3)
    assert contents(other) == contents(made)


def test_another_seed_is_another_corpus(made: Path, tmp_path: Path) -> None:
    other = synthesize(replace(SMALL, seed=6), tmp_path / "other")
    sounds = {path: value for path, value in contents(made).items() if path.endswith(".flac")}
    assert not set(sounds.values()) & set(contents(other).values())


def test_a_finished_folder_is_used_again_without_a_worker(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    monkeypatch.setattr(sys, "executable", "/bin/false")  # a worker would fail
    assert synthesize(SMALL, made) == made
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_progress_counts_every_recording_once(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    out = synthesize(
        SMALL, tmp_path / "c", workers=2, progress=lambda done, total: steps.append((done, total))
    )
    n = len(rows(out))
    assert steps == [(done, n) for done in range(1, n + 1)]


def workers_in(folder: Path) -> list[str]:
    """Returns the processes that name a folder in their environment: those that a killed one left behind too."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"SOTTOVOCE_TEST_PLACE={folder}".encode() in (place / "environ").read_bytes():
                found.append(place.name)
    return found


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from sottovoce.common.study import ACTED, Synthetic
from sottovoce.simulations.voices import synthesize
spec = Synthetic(n_speakers=12, utterances_per_emotion=1, emotions=("neutral", "angry"), n_sites=3, seed=5)
def stop(done, total):
    if done == 9:
        os.kill(os.getpid(), signal.SIGKILL)
synthesize(spec, Path(sys.argv[1]), workers=2, progress=stop)
"""


def test_after_a_kill_nothing_looks_finished_and_the_next_run_ends_in_the_same_bytes(
    made: Path, tmp_path: Path
) -> None:
    out = tmp_path / "corpus"
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "SOTTOVOCE_TEST_PLACE": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", INTERRUPTED, str(out)], env=environment, timeout=300)
    assert ended.returncode == -signal.SIGKILL
    assert not out.exists()
    end = time.monotonic() + 60
    while workers_in(tmp_path):  # orphaned ones end with their connection
        assert time.monotonic() < end
        time.sleep(0.02)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.flac")}
    assert len(kept) >= 9
    synthesize(SMALL, out, workers=1)
    assert contents(out) == contents(made)
    names = {path.name: stamp for path, stamp in kept.items()}
    again = [path for path in out.rglob("*.flac") if names.get(path.name) == path.stat().st_mtime_ns]
    assert again  # finished recordings were kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus"]


def test_an_interrupt_leaves_no_process_and_nothing_finished(tmp_path: Path) -> None:
    before = children()

    def interrupt(done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(SMALL, tmp_path / "c", workers=2, progress=interrupt)
    assert not (tmp_path / "c").exists()
    assert children() <= before


def test_a_folder_of_something_else_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CorpusError, match="it is something else"):
        synthesize(SMALL, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path, made: Path) -> None:
    (tmp_path / "c").mkdir()
    assert contents(synthesize(SMALL, tmp_path / "c")) == contents(made)


def test_a_corpus_of_other_settings_is_refused(made: Path) -> None:
    before = contents(made)
    with pytest.raises(CorpusError, match="it holds another one"):
        synthesize(replace(SMALL, seed=6), made)
    assert contents(made) == before


@pytest.mark.parametrize("damage", ["missing", "shortened"])
def test_a_damaged_corpus_is_refused(tmp_path: Path, made: Path, damage: str) -> None:
    copy = tmp_path / "c"
    subprocess.run(["cp", "-r", str(made), str(copy)], check=True)
    victim = next(copy.rglob("*.flac"))
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(CorpusError, match="The folder was changed"):
        synthesize(SMALL, copy)


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, no folder")
    with pytest.raises(CorpusError, match="Expected to write the embedded corpus") as caught:
        synthesize(SMALL, tmp_path / "file" / "corpus")
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_clear_error_and_nothing_looks_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The worker's limit on file size stands for the full disk: the kernel refuses the write itself.
    real = subprocess.Popen

    def limited(arguments: list[str], **options: Any) -> Any:
        return real(["bash", "-c", 'ulimit -f 1; trap "" XFSZ; exec "$@"', "bash", *arguments], **options)

    monkeypatch.setattr(subprocess, "Popen", limited)
    with pytest.raises(CorpusError, match=os.strerror(errno.EFBIG)) as caught:
        synthesize(SMALL, tmp_path / "c")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "c").exists()


def test_a_speech_library_that_fails_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(CorpusError, match="could not be made"):
        synthesize(SMALL, tmp_path / "c", workers=2)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"n_speakers": 11}, r"n_speakers=11 in \[12, 10000\]"),
        ({"n_speakers": 10_001}, r"n_speakers=10001"),
        ({"n_sites": 13}, r"n_sites=13 in \[1, n_speakers=12\]"),
        ({"n_sites": 0}, "n_sites=0"),
        ({"utterances_per_emotion": 0}, "utterances_per_emotion=0"),
        ({"label_skew": 1.5}, "label_skew=1.5"),
        ({"sex_skew": float("nan")}, "sex_skew=nan"),
        ({"emotions": ("neutral", "joyful")}, "at least two different of neutral, calm"),
        ({"emotions": ("neutral", "neutral")}, "at least two different"),
        ({"emotions": ("neutral",)}, "at least two different"),
    ],
)
def test_a_specification_out_of_bounds_is_refused_before_anything_is_made(
    tmp_path: Path, changes: dict[str, object], expected: str
) -> None:
    with pytest.raises(CorpusError, match=expected):
        synthesize(replace(SMALL, **changes), tmp_path / "c")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workers", [0, -1, 257])
def test_a_bad_number_of_workers_is_refused(tmp_path: Path, workers: int) -> None:
    with pytest.raises(CorpusError, match=f"workers={workers}"):
        synthesize(SMALL, tmp_path / "c", workers=workers)


def cast(**changes: object) -> list[Speaker]:
    return list(speakers(replace(Synthetic(n_speakers=240, n_sites=6, utterances_per_emotion=8), **changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize("n_speakers", [12, 13, 100, 10_000])
def test_any_number_of_speakers_is_dealt_to_sites_in_equal_blocks(n_speakers: int) -> None:
    sizes = Counter(speaker.site.name for speaker in cast(n_speakers=n_speakers))
    assert sum(sizes.values()) == n_speakers
    assert max(sizes.values()) - min(sizes.values()) <= 1
    assert len(sizes) == 6


def test_every_speaker_has_most_emotions_and_the_mean_number_of_recordings() -> None:
    found = cast()
    missing = [sum(count == 0 for count in speaker.counts.values()) for speaker in found]
    assert max(missing) <= 4
    assert sum(missing) / (8 * len(found)) < 0.08
    n_mean = sum(sum(speaker.counts.values()) for speaker in found) / len(found)
    assert n_mean == pytest.approx(64, rel=0.08)


def test_label_skew_makes_sites_unlike_and_zero_makes_them_alike() -> None:
    def spread(skew: float) -> float:
        shares = defaultdict(list)
        for speaker in cast(label_skew=skew):
            shares[speaker.site.name].append(speaker.counts["angry"])
        means = [sum(counts) / len(counts) for counts in shares.values()]
        return max(means) / min(means)

    assert spread(0.0) < 1.15
    assert spread(1.0) > 1.6


def test_sex_skew_makes_sites_unlike_and_zero_makes_them_alike() -> None:
    def shares(skew: float) -> list[float]:
        women = defaultdict(list)
        for speaker in cast(sex_skew=skew):
            women[speaker.site.name].append(speaker.voice.sex == "female")
        return [sum(flags) / len(flags) for flags in women.values()]

    assert all(abs(share - 0.5) < 0.05 for share in shares(0.0))
    assert max(shares(1.0)) - min(shares(1.0)) > 0.3


def test_languages_sexes_and_ages_are_all_there() -> None:
    found = cast()
    assert len({speaker.voice.language for speaker in found}) == len(PARAMETERS.sentences) >= 6
    assert {speaker.voice.sex for speaker in found} == {"female", "male"}
    ages = [speaker.voice.age for speaker in found]
    assert min(ages) < 25
    assert max(ages) > 70


def test_words_do_not_tell_the_emotion() -> None:
    by_emotion = defaultdict(set)
    for speaker in cast():
        for recording in recordings(speaker, 1):
            by_emotion[recording.emotion].add(recording.text)
    assert len(set.intersection(*by_emotion.values())) >= 60


def test_a_study_may_ask_for_every_emotion_that_can_be_acted() -> None:
    assert set(ACTED) == set(PARAMETERS.prototypes)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ("n_sites = 25", "synthetic.n_sites: expected at most n_speakers=24; came 25"),
        ('emotions = ["sad", "other"]', "synthetic.emotions: expected some of neutral, .*; came .'other'"),
        ('emotions = ["sad", "sad"]', "synthetic.emotions: 'sad' is there twice"),
        ("n_speakers = 11", "synthetic.n_speakers: expected a number in .12, 10000."),
    ],
)
def test_a_study_with_an_impossible_embedded_corpus_is_refused(made: str, expected: str) -> None:
    text = (Path(__file__).parents[2] / "simulations" / "scenarios" / "demo.toml").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("synthetic = ")]
    study.loads(text)
    with pytest.raises(StudyError, match=expected):
        study.loads(text.replace(line, f"synthetic = {{ {made} }}"))
