"""Sites on Flower's own Ray backend, for those who outgrow a machine: the same apps, the same bits.

Why Flower's internals and not its front doors is told in `docs/decisions/ray-engine.md`: `flwr run` leaves a
daemon behind, `run_simulation` is deprecated and gives nothing back. Both call what is called here.

Guarantees:
  - The weights are those of the engine `inprocess`, to the bit: one CPU and one thread for each actor.
  - Nothing is sent anywhere: telemetry, update check and usage statistics are off before Ray starts.
  - Ray ends with the `with` block.
  - Without the extra there is one error that names it.
"""

import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.fleet import vce
from flwr.server.superlink.fleet.vce.metrics import VceMetrics
from flwr.server.superlink.linkstate import InMemoryLinkState, LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

from sottovoce.common.errors import RunError
from sottovoce.common.flower import adopt_task_identity

SILENCE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; without it Ray warns on every start
}
# What `flwr run` would read from an app's folder: Flower hands a run's configuration to its nodes from there.
APP = """
[project]
name = "sottovoce-simulation"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "sottovoce"
[tool.flwr.app.components]
serverapp = "sottovoce.server.app:app"
clientapp = "sottovoce.client.app:app"
[tool.flwr.app.config]
"""


class RayGrid(InMemoryGrid):
    """Flower's grid of a simulation; it notices when the backend behind it has ended."""

    def __init__(self, state: LinkStateFactory, backend: "_Backend") -> None:
        super().__init__(state)
        self._backend = backend
        self.set_run(backend.run)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the replies that are there. Raises: RunError if there will be none any more."""
        if self._backend.failure is not None:
            raise RunError(
                f"Expected Ray to run; it ended with {type(self._backend.failure).__name__}. "
                "Take --engine processes."
            ) from self._backend.failure
        return super().pull_messages(list(message_ids))


@contextmanager
def open_ray_grid(
    app: ClientApp, sites: Mapping[str, Path], settings: Mapping[str, str], *, workers: int
) -> Iterator[tuple[RayGrid, dict[int, str]]]:
    """Opens a grid over the sites' folders, with the name of each node's site.

    Raises:
        RunError: Ray is not installed.
    """
    if find_spec("ray") is None:
        raise RunError(
            "Expected the extra 'ray' for --engine ray; it is not installed. "
            "Run `pip install '.[ray]'` in the checkout, or take --engine processes."
        )
    os.environ.update(SILENCE)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="sottovoce-ray-") as folder:
        names = sorted(sites)
        _write_app(Path(folder), [sites[name] for name in names], settings)
        backend = _Backend(app, Path(folder), len(names), settings, workers)
        try:
            yield RayGrid(backend.state, backend), {node: names[n] for node, n in backend.nodes.items()}
        finally:
            backend.close()


class _Backend:
    """Flower's simulation runtime in a thread of ours."""

    def __init__(
        self, app: ClientApp, folder: Path, n_sites: int, settings: Mapping[str, str], workers: int
    ) -> None:
        self.run = _run()
        self.state = _link_state(self.run)
        self.nodes: dict[int, int] = vce.vce_api._register_nodes(n_sites, self.state)
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        arguments = {
            "backend_name": "ray",
            "backend_config_json_stream": json.dumps(_resources(settings, workers)),
            "app_dir": str(folder),
            "is_app": True,
            "f_stop": self._stop,
            "run": self.run,
            "metrics": VceMetrics(),
            "client_app": app,
            "state_factory": self.state,
            "existing_nodes_mapping": self.nodes,
        }
        self._thread = threading.Thread(target=self._serve, args=(arguments,), name="flower-ray")
        self._thread.start()

    def _serve(self, arguments: dict[str, Any]) -> None:
        try:
            vce.start_vce(**arguments)
        except BaseException as error:
            self.failure = error

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def _run() -> Run:
    identity = adopt_task_identity()
    run = Run.create_empty(run_id=identity.run_id)
    run.primary_task_id = identity.task_id
    run.federation_id = NOOP_FEDERATION_ID
    return run


def _link_state(run: Run) -> LinkStateFactory:
    factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
    state = cast(InMemoryLinkState, factory.state())
    task_id = cast(int, run.primary_task_id)
    state.run_ids[run.run_id] = RunRecord(run=run)
    state.task_store[task_id] = Task(task_id=task_id, run_id=run.run_id)
    return factory


def _resources(settings: Mapping[str, str], workers: int) -> dict[str, Any]:
    on_gpu = settings.get("device") == "cuda"
    return {
        "init_args": {"num_cpus": workers, "logging_level": "ERROR", "log_to_driver": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 1 / workers if on_gpu else 0.0},
    }


def _write_app(folder: Path, sites: list[Path], settings: Mapping[str, str]) -> None:
    """Lays out an app: its configuration, and the sites' folders in the order of their partitions."""
    places = folder / "sites"
    places.mkdir()
    for number, site in enumerate(sites):
        (places / f"{number:06d}").symlink_to(site.absolute())
    config = {**settings, "sites-folder": str(places)}
    # A JSON text is a TOML text, for these strings.
    lines = (f"{key} = {json.dumps(value)}\n" for key, value in config.items())
    (folder / "pyproject.toml").write_text(APP + "".join(lines))
