"""From the start of a process to the end of its first round, imports included."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sottovoce.simulations.bench import fixtures
from sottovoce.simulations.bench.timing import ONE_THREAD, ROOT, Row, Turn, report, take_turns

BAR_SECONDS = 3.0
REPEATS = 5
N_CLIENTS = 10
PROGRAM = """
import sys
from pathlib import Path
from sottovoce.common.study import Execution, load
from sottovoce.server.rounds import run
from sottovoce.simulations.bench.rounds import CELL, initial_weights
from sottovoce.simulations.engines import open_exchange

study_file, folder, engine, workers = sys.argv[1:]
study = load(Path(study_file))
sites = {path.name: path for path in sorted(Path(folder).iterdir())}
execution = Execution(engine=engine, workers=int(workers))
with open_exchange(execution, sites, study_file=Path(study_file)) as exchange:
    run(exchange, study, cell=CELL, weights=initial_weights(study), on_round=lambda _: print("done", flush=True))
"""


def measure(repeats: int = REPEATS) -> dict[str, Any]:
    """Times fresh processes; `import torch` alone stands beside them, since nothing can be faster."""
    with tempfile.TemporaryDirectory(prefix="sottovoce-bench-") as folder:
        sites = Path(folder) / "sites"
        fixtures.write_sites(sites, N_CLIENTS)
        study_file = fixtures.write_study(Path(folder) / "study.toml", n_sites=N_CLIENTS)

        def engine(*names: str) -> Turn:
            return lambda: first_line(["-c", PROGRAM, str(study_file), str(sites), *names])

        names = {"in process": ("inprocess", "1"), "two workers": ("processes", "2")}
        turns: dict[str, Turn] = {what: engine(*choice) for what, choice in names.items()}
        turns["import torch alone"] = lambda: first_line(["-c", "import torch; print('done')"])
        turns["sottovoce --help"] = lambda: first_line(["-m", "sottovoce", "--help"])
        times = take_turns(turns, repeats)
    rows = [
        Row(
            what=f"first round of {N_CLIENTS} clients, {what}" if what in names else what,
            value=taken.median,
            bar=f"at most {BAR_SECONDS:g} s" if what == "in process" else "",
            met=taken.median <= BAR_SECONDS if what == "in process" else None,
            note=f"{repeats} repeats, from {min(taken.seconds):.2f} to {max(taken.seconds):.2f} s",
        )
        for what, taken in times.items()
    ]
    return report(rows)


def first_line(arguments: list[str]) -> float:
    """Returns the seconds from the start of a Python process to its first line of output."""
    paths = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    began = time.perf_counter()
    command = [sys.executable, *arguments]
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": paths}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        line = process.stdout.readline() if process.stdout is not None else ""
        took = time.perf_counter() - began
        if process.stdout is not None:
            process.stdout.read()  # or a program with more to say would fail at it
    if process.returncode or not line:
        raise RuntimeError(
            f"Expected a line from {arguments[:2]}; it ended with status {process.returncode}."
        )
    return took
