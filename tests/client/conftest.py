"""One SuperLink for all tests of a hospital's side in a process: it takes seconds to start, and idling costs too."""

from collections.abc import Iterator

import pytest

from tests.fakes import superlinks


@pytest.fixture(scope="package")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[superlinks.Superlink]:
    """A running SuperLink over TLS."""
    with superlinks.started(tmp_path_factory.mktemp("superlink")) as place:
        yield place
