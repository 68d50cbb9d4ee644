"""A wake-up at an absolute CLOCK_MONOTONIC time, to tens of microseconds.

uvloop's own timers count whole milliseconds, which would round every arrival. Linux's timerfd does not;
Python exposes it only from 3.13 on, hence ctypes. Elsewhere the loop's timer serves, and the send lag shows it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable
from typing import Protocol

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1


class Timer(Protocol):
    def arm(self, when: float) -> None:
        """Call back once at `when` (time.monotonic seconds); at once when that has passed. Replaces an earlier arm."""

    def close(self) -> None:
        """Never call back again."""


class _ItimerSpec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class TimerFd:
    """Linux. The descriptor is never read: arming it again clears its readiness."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._settime = libc.timerfd_settime
        self._fd: int = libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._spec = _ItimerSpec(0, 0, 0, 0)
        self._spec_ref = ctypes.byref(self._spec)
        self._loop = loop
        loop.add_reader(self._fd, callback)

    def arm(self, when: float) -> None:
        seconds = int(when)
        self._spec.value_s = seconds
        self._spec.value_ns = max(int((when - seconds) * 1e9), 1)  # all zeros would disarm
        self._settime(self._fd, _TFD_TIMER_ABSTIME, self._spec_ref, None)

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


class LoopTimer:
    """Everywhere else: the event loop's timer, in whole milliseconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop, self._callback = loop, callback
        self._handle: asyncio.TimerHandle | None = None

    def arm(self, when: float) -> None:
        self.close()
        self._handle = self._loop.call_later(max(when - time.monotonic(), 0.0), self._callback)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


def make_timer(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> Timer:
    return TimerFd(loop, callback) if sys.platform == "linux" else LoopTimer(loop, callback)
