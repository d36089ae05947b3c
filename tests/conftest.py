"""One thread for every test: two torch threads on two busy cores made small models forty times slower."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the processes that tests start
