"""`python -m truthgate_eval` is `truthgate`."""

from truthgate_eval.cli.main import main

if __name__ == "__main__":
    main()
