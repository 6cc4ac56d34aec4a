"""`python -m patterning_fast` is the command `patterning-fast`."""

from patterning_fast.cli import main

raise SystemExit(main())
