"""Peak memory against the number of sites: it should be that of the model, not of the cohort."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sottovoce.simulations.bench import fixtures
from sottovoce.simulations.bench.timing import ONE_THREAD, ROOT, Row, report

CLIENTS = (10, 100, 1000)
BAR = 1.1
# Two rounds, so that the second finds what the first left behind; then this process's peak, in kilobytes.
PROGRAM = """
import resource, sys
from pathlib import Path
from sottovoce.common.study import Execution, load
from sottovoce.server.rounds import run
from sottovoce.simulations.bench.rounds import CELL, initial_weights
from sottovoce.simulations.engines import open_exchange

study_file, folder, engine, workers = sys.argv[1:]
study = load(Path(study_file))
sites = {path.name: path for path in sorted(Path(folder).iterdir())}
with open_exchange(Execution(engine=engine, workers=int(workers)), sites, study_file=Path(study_file)) as exchange:
    run(exchange, study, cell=CELL, weights=initial_weights(study))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def measure(clients: tuple[int, ...] = CLIENTS) -> dict[str, Any]:
    """Returns the peak of a process that ran two rounds, for each size of the cohort."""
    rows = []
    for what, choice in {
        "in process": ("inprocess", "1"),
        "parent of two workers": ("processes", "2"),
    }.items():
        peaks = {n: _peak(n, *choice) for n in clients}
        least = peaks[clients[0]]
        for n, peak in peaks.items():
            last = n == clients[-1]
            rows.append(
                Row(
                    what=f"{n:,} clients, {what}",
                    value=peak / 1024,
                    unit="MiB",
                    ratio=peak / least,
                    against=f"{clients[0]} clients",
                    bar=f"at most {BAR:g}" if last else "",
                    met=peak / least <= BAR if last else None,
                )
            )
    return report(rows)


def _peak(n_clients: int, *choice: str) -> int:
    with tempfile.TemporaryDirectory(prefix="sottovoce-bench-") as folder:
        sites = Path(folder) / "sites"
        fixtures.write_sites(sites, n_clients)
        study_file = fixtures.write_study(Path(folder) / "study.toml", n_sites=n_clients, rounds=2)
        command = [sys.executable, "-c", PROGRAM, str(study_file), str(sites), *choice]
        paths = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
        environment = os.environ | ONE_THREAD | {"PYTHONPATH": paths}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return int(done.stdout)
