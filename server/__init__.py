"""What the coordinator runs: the ServerApp, rounds, aggregation, reports."""
