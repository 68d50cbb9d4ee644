"""A settled process: one thread, and memory that is freed and asked for again is not fetched from the kernel anew."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Two tensors of 8 MB each, made and dropped; every page that the kernel has to clear for them is a minor fault.
CHURN = """
import resource, sys, torch
from train_jobs.parallel.process import settle
if sys.argv[1] == "settled":
    settle()
def churn(times):
    for _ in range(times):
        first = torch.ones(2_000_000)
        second = first + 1.0
        del first, second
churn(10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
churn(50)
print(torch.get_num_threads(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def threads_and_faults(how: str) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", CHURN, how], capture_output=True, text=True, check=True, timeout=60)
    threads, faults = map(int, done.stdout.split())
    return threads, faults


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted as Linux and glibc make them")
def test_a_settled_process_has_one_thread_and_asks_the_kernel_for_no_page_twice() -> None:
    threads, faults = threads_and_faults("settled")
    assert threads == 1
    assert faults < 1000, "16 MB fetched anew fifty times would be 200,000 pages of 4 KiB"
