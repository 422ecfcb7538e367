"""`python -m muelle`: the same as the command `muelle`. Nothing else."""

from muelle.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
