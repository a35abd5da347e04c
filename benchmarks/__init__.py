"""Each job beside its peer, in one process: `python -m benchmarks NAME [--quick]`."""
