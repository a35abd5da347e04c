"""The `truthgate` commands."""
