"""What a request may ask of the server beside its tensors: by when, how urgent, how exact, on whose account.

`timeout` (microseconds) and `priority` (1 is the most urgent, 0 none) are Triton's request parameters; `accuracy` is
"best", "balanced", "fast" or a floor (0.9: any resident variant at least that good); `tenant` is the key of a quota.
A body that has no place for parameters (raw bytes, a picture) says the same in headers: `sluice-timeout`,
`sluice-priority`, `sluice-accuracy`, `sluice-tenant`. A parameter wins over a header.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

from cluster.errors import InvalidRequest
from cluster.scheduling import AccuracyWish

ACCURACIES: tuple[AccuracyWish, ...] = get_args(AccuracyWish)
NAMES = ("timeout", "priority", "accuracy", "tenant")
_HEADERS = {name: f"sluice-{name}".encode() for name in NAMES}
_SERVE_TIMEOUT = b"x-request-timeout-seconds"
_MAX_TENANT = 128
_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 80


class Wishes(NamedTuple):
    timeout_s: float | None = None
    """None: as long as its client waits, or the deployment's default."""
    priority: int = 0
    accuracy: AccuracyWish | float | None = None
    """None: as its priority class has it."""
    tenant: str | None = None


NONE = Wishes()


def wishes(parameters: Mapping[str, Any], otherwise: Wishes = NONE) -> Wishes:
    """What `parameters` say, and where they say nothing, `otherwise`. Raises InvalidRequest naming the parameter."""
    if not parameters:
        return otherwise
    timeout_us, priority = integer(parameters, "timeout"), integer(parameters, "priority")
    accuracy, tenant = parameters.get("accuracy"), parameters.get("tenant")
    return Wishes(
        timeout_us / 1e6 if timeout_us else otherwise.timeout_s,
        priority or otherwise.priority,
        otherwise.accuracy if accuracy is None else _accuracy(accuracy),
        otherwise.tenant if tenant is None else _tenant(tenant),
    )


def in_headers(headers: Mapping[bytes, bytes]) -> Wishes:
    """What the headers say (names in lower case). Raises InvalidRequest."""
    said = {name: headers[key].decode("latin-1") for name, key in _HEADERS.items() if key in headers}
    if _SERVE_TIMEOUT in headers and "timeout" not in said:
        seconds = _number(headers[_SERVE_TIMEOUT].decode("latin-1"))
        # Serve takes what is no positive number for "none".
        if seconds is not None and 0 < seconds < 1e9:
            said["timeout"] = str(max(1, round(seconds * 1e6)))
    return wishes(said)


def integer(parameters: Mapping[str, Any], name: str) -> int:
    """The parameter, 0 if it is not there. Raises InvalidRequest unless it is an integer from 0."""
    value = parameters.get(name)
    if value is None:
        return 0
    if type(value) is str and value.isascii() and value.isdigit() and len(value) < 19:
        value = int(value)  # some clients send every parameter as a string
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise InvalidRequest(f"parameter {name}={_brief.repr(value)} must be an integer, at least 0")
    return value


def _accuracy(value: Any) -> AccuracyWish | float:
    if type(value) is str:
        if value in ACCURACIES:
            return value
        value = _number(value)
    if type(value) in (int, float) and math.isfinite(value):
        return float(value)
    raise InvalidRequest(
        f"parameter accuracy={_brief.repr(value)} must be one of {', '.join(ACCURACIES)}, or a number as a floor"
    )


def _number(text: str) -> float | None:
    try:
        return float(text) if len(text) < 32 else None
    except ValueError:
        return None


def _tenant(value: Any) -> str:
    if type(value) is not str or not 0 < len(value) <= _MAX_TENANT:
        raise InvalidRequest(
            f"parameter tenant={_brief.repr(value)} must be a string of 1 to {_MAX_TENANT} characters"
        )
    return value
