"""`python -m mem1_trl` is the same as `mem1`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
