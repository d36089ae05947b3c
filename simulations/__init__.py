"""Studies on one machine: engines, partitioners, the embedded corpus, benchmarks."""
