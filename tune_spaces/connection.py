"""A connection of this process to one local cluster, for the length of a `with` block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def connected(address: str) -> Iterator[None]:
    """`ray.init` to that address and nothing else.

    Ray's own variables are taken out of the environment meanwhile: inside a Ray job they would make this process join
    the job's cluster, with the job's runtime environment.
    """
    removed = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("RAY_")}
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        yield
    finally:
        ray.shutdown()
        os.environ.update(removed)
