"""Benchmarks: each module has `measure() -> dict`, whose `rows` are what was timed, as ratios within one run.

Times on a shared machine drift by more than what is measured. So the things compared take turns, repeat after
repeat; a ratio is the median of the ratios of one repeat; the load of the machine stands beside it.
"""
