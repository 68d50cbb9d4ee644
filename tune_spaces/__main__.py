"""`python -m tune_spaces ...`: the same as `sluice ...`, for `ray job submit -- python -m tune_spaces tune ...`."""

from __future__ import annotations

from cluster.cli import main

if __name__ == "__main__":
    main()
