"""Each job of the package and a baseline for it, in one process: `python -m benchmarks NAME [--quick]`."""
