"""One thread for every test: two torch threads on two busy cores made small models forty times slower."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the processes that tests start
# Tests start some two hundred processes: without this each compiles our sources anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, and nothing of the claim. The same examples in every run: a
# change is refused for what it does, not for what was drawn. `--hypothesis-profile=searching` draws new ones.
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("searching", _PATIENT, max_examples=500)
settings.register_profile("sottovoce", _PATIENT, derandomize=True)
settings.load_profile("sottovoce")

LONG = ("tests/system", "tests/simulations", "tests/deploy", "tests/server", "tests/client")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with long tests first: two workers then end at about the same time."""

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(item.config.rootpath).as_posix()
        return next((number for number, folder in enumerate(LONG) if path.startswith(folder)), len(LONG))

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def small_whisper_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Puts the weights that a model of the registry of models names where it looks for them."""
    from sottovoce.common.pretrained import looking_in
    from tests.fakes.whispers import small_whisper

    folder = tmp_path_factory.mktemp("weights")
    (folder / "small-whisper.bin").write_bytes(small_whisper()[0])
    with looking_in(folder):
        yield
