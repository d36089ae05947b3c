"""One thread for every test: two torch threads on two busy cores made small models forty times slower."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the processes that tests start

from hypothesis import settings

# How long an example takes says how busy the machine is, and nothing of the claim.
settings.register_profile("sottovoce", deadline=None)
settings.load_profile("sottovoce")
