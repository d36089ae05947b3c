"""A run among hospitals, two of whose processes are killed, to be watched: `python -m tests.fakes.quiet_story DIR`."""

import sys
from pathlib import Path

from sottovoce.client.home import Hospital
from sottovoce.common.study import load
from sottovoce.server.home import CoordinatorHome
from sottovoce.simulations.federation import Federation
from tests.fakes.process_faults import STUDY_FILE, Killable, killable, run_with_kills
from tests.fakes.running import Running

SITES = ("site-1", "site-2")  # each is two processes more, which take seconds to start
VICTIMS = ("agent", "coordinator")


def left_behind(folder: Path) -> Killable:
    """Returns what the story left in its folder; no process of it runs any more."""
    made = Federation(root=folder / "federation", sites=SITES)
    place = Running(
        made=made,
        home=CoordinatorHome.open(made.server),
        hospitals={site: Hospital.open(made.hospital(site)) for site in SITES},
        data={site: folder / "federation" / "data" / site for site in SITES},
    )
    file = folder / STUDY_FILE
    return Killable(place=place, study=load(file), study_file=file, folder=folder)


if __name__ == "__main__":
    with killable(Path(sys.argv[1]), n_runs=1, n_sites=len(SITES)) as one:
        told = run_with_kills(one, 0, victims=VICTIMS)
        print("killed:", "; ".join(told.killed))
