"""What tests of features share."""

import fcntl
import hashlib
import importlib
import tempfile
from pathlib import Path

import librosa
import pytest


@pytest.fixture(scope="session")
def compiled_librosa() -> None:
    """Loads librosa's compiled loops, one process at a time.

    Two that compile at once mix up what they leave on disk, and whoever loads that later dies of it (numba's issue
    10128: a loop and its wrapper are two files). Half a minute in a new environment, a second from then on.
    """
    place = hashlib.sha256(str(librosa.__file__).encode()).hexdigest()[:16]
    with (Path(tempfile.gettempdir()) / f"sottovoce-librosa-{place}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in ("librosa.core.audio", "librosa.core.pitch", "librosa.util.utils"):
            importlib.import_module(name)
