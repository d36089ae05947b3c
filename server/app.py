"""The coordinator as Flower's `ServerApp`: the round loop on whatever grid it is given.

It is what a SuperLink starts. Simulations call `rounds.run` themselves, on the same exchange.

Run configuration:

| key               | meaning                                                        |
|-------------------|----------------------------------------------------------------|
| `study-file`      | the study                                                      |
| `seed`, `fold`    | the cell; by default the study's first seed, and nobody withheld |
| `initial-weights` | safetensors to start from                                      |
| `checkpoint`      | where the state is kept; a run goes on from it if it is there  |
"""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from safetensors.numpy import load_file

from sottovoce.common import study as studies
from sottovoce.common.errors import RunError
from sottovoce.server.exchange import GridExchange, roster
from sottovoce.server.rounds import ALL_SPEAKERS, Cell, run

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs one cell of a study to its end."""
    study = studies.load(Path(_text(context, "study-file")))
    cell = Cell(
        seed=int(context.run_config.get("seed", study.evaluation.seeds[0])),
        fold=int(context.run_config.get("fold", ALL_SPEAKERS)),
        arm="federated",
    )
    federation = study.federation
    sites = roster(grid, n_sites=federation.n_sites, timeout=federation.deadline_seconds)
    run(
        GridExchange(grid, sites),
        study,
        cell=cell,
        weights=load_file(_text(context, "initial-weights")),
        checkpoint=Path(_text(context, "checkpoint")),
        resume=True,
    )


def _text(context: Context, key: str) -> str:
    value = context.run_config.get(key)
    if not isinstance(value, str):
        raise RunError(f"Expected the path {key!r} in the run's configuration; came nothing.")
    return value
