"""`python -m truthgate_eval` is `truthgate`."""

from truthgate_eval.cli import main

main()
