"""Where the sites of a simulation run: one study and one pair of apps, four places.

    with open_exchange(execution, folders, study_file=path) as exchange:
        outcome = rounds.run(exchange, study, cell=cell, weights=weights)

| engine       | sites run                                    | drives the ClientApp | needs            |
|--------------|----------------------------------------------|----------------------|------------------|
| `inprocess`  | here, one after the other                    | yes                  | nothing          |
| `processes`  | in `workers` processes, one thread each      | yes                  | nothing          |
| `ray`        | in Flower's own Ray backend, `workers` actors | yes                  | the extra `ray`  |
| `cohort`     | here, many at once, as stacked matrices      | no: its own gradients | linear or MLP, SGD |

All but `cohort` give the same weights to the bit; `cohort` gives them within 1e-6.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sottovoce.common.flower import LocalGrid, Node, load_app
from sottovoce.common.study import Execution
from sottovoce.common.study import load as load_study
from sottovoce.server.exchange import Exchange, GridExchange

CLIENT_APP = "sottovoce.client.app:app"


@contextmanager
def open_exchange(
    execution: Execution,
    sites: Mapping[str, Path],
    *,
    study_file: Path,
    ledgers: Path | None = None,
    secure: Path | None = None,
    states: Path | None = None,
    without_privacy: bool = False,
    app: str = CLIENT_APP,
) -> Iterator[Exchange]:
    """Opens the engine over sites, by name with the folder of their data; closes it with the block.

    An exchange may be used for many cells, one after the other. A private study wants `ledgers`, with a folder for
    each site's name; secure sums without ledgers (mode `none`) want `secure`. `states` is for what sites keep between
    rounds, where the study asks for that. `without_privacy` runs a study as a twin for comparison (engine `inprocess`).

    Raises:
        RunError: the engine's extra is not installed, or it cannot run this study.
    """
    if execution.engine == "cohort":
        from sottovoce.simulations.engines.cohort import CohortExchange

        yield CohortExchange(load_study(study_file), sites)
        return
    settings = {"study-file": str(study_file), "device": execution.device}
    if execution.engine == "ray":
        if ledgers is not None:  # Ray's nodes have no configuration of their own
            settings["ledgers-folder"] = str(ledgers)
        if secure is not None:
            settings["secure-folders"] = str(secure)
        if states is not None:
            settings["state-folders"] = str(states)
        from sottovoce.simulations.engines.ray import open_ray_grid

        with open_ray_grid(load_app(app), sites, settings, workers=execution.workers) as (grid, names):
            yield GridExchange(grid, names)
        return
    nodes = [
        Node(
            site=site,
            config={
                "site-folder": str(folder),
                **_own(site, ledgers, secure, study_file, without_privacy),
                **({} if states is None else {"state-folder": str(states / site)}),
            },
        )
        for site, folder in sites.items()
    ]
    with _local_grid(execution, nodes, settings, app) as grid:
        yield GridExchange(grid, grid.sites)


def _own(
    site: str, ledgers: Path | None, secure: Path | None, study_file: Path, without_privacy: bool
) -> dict[str, str | bool]:
    """What a node has of its own beside its data, as a hospital's would."""
    if secure is not None:
        return {"secure-folder": str(secure / site), "study-file": str(study_file)}
    if ledgers is not None:
        return {"ledger-folder": str(ledgers / site), "study-file": str(study_file)}
    return {"without-privacy": True} if without_privacy else {}


@contextmanager
def _local_grid(
    execution: Execution, nodes: list[Node], settings: Mapping[str, str], app: str
) -> Iterator[LocalGrid]:
    if execution.engine == "processes":
        from sottovoce.simulations.engines.processes import ProcessGrid

        with ProcessGrid(app, nodes, settings, workers=execution.workers) as grid:
            yield grid
    else:
        from sottovoce.simulations.engines.inprocess import InProcessGrid

        yield InProcessGrid(load_app(app), nodes, settings)
