"""A whole run among two hospitals, to be watched: `python -m tests.fakes.quiet_story FOLDER`."""

import sys
from pathlib import Path

from tests.fakes.running import running
from tests.fakes.sites import LINEAR, SGD, write_study

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    study_file = write_study(folder / "study.toml", n_sites=2, rounds=1, model=LINEAR, training=SGD)
    with running(folder / "federation", 2, study_file) as (place, study):
        print(place.wait(place.begin(study, "watched"), seconds=240).state)
