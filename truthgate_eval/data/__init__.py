"""Data sets: original releases, converted once to Parquet files that tasks load."""
