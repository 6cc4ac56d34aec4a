"""`python -m patterning_fast` is the command `patterning-fast`."""

from patterning_fast.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
