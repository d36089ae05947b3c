"""The coordinator as Flower's `ServerApp`: it conducts the run that the SuperLink was handed.

Where the coordinator's folder is stands in the environment (SOTTOVOCE_SERVER_HOME), which the coordinator sets for the
SuperLink; which run is meant is the only thing that stands in Flower's own configuration, `run`.
"""

import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from sottovoce.common.errors import RunError
from sottovoce.server.conduct import conduct
from sottovoce.server.home import CoordinatorHome
from sottovoce.server.superlink import HOME_VARIABLE, answer_quickly

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Conducts a run to its end, from its checkpoint if there is one."""
    folder, name = os.environ.get(HOME_VARIABLE), context.run_config.get("run")
    if not folder or not isinstance(name, str):
        raise RunError(
            "Expected a coordinator's folder in the environment and a run's name; came none. Runs are begun with "
            "`sottovoce server run`."
        )
    home = CoordinatorHome.open(Path(folder))
    answer_quickly(max_bytes=home.settings.max_message_bytes)
    conduct(home, name, grid)
