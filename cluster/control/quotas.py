"""A token bucket per tenant: who sends more than its quota is told when to come back. Bounded memory, no timer."""

from __future__ import annotations

from collections import OrderedDict

from cluster.scheduling import Quota, Scheduling


class Buckets:
    """Tokens and when they were counted, by tenant; the one that was silent longest is forgotten first."""

    def __init__(self, scheduling: Scheduling) -> None:
        self._default = scheduling.quota
        self._tenants = scheduling.tenants
        self._most = scheduling.max_tenants
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def quota(self, tenant: str) -> Quota | None:
        """What holds for it; None: no bound."""
        return self._tenants.get(tenant, self._default)

    def take(self, tenant: str, now: float) -> float:
        """Take one token. 0.0 if there was one, else the seconds until there is: nothing was taken then."""
        quota = self.quota(tenant)
        if quota is None:
            return 0.0
        tokens, counted_at = self._buckets.get(tenant, (quota.burst, now))
        tokens = min(quota.burst, tokens + max(0.0, now - counted_at) * quota.rate_rps)
        # A hair less than one is one: whoever waits just as long as told must not be sent away for a rounding error.
        taken = tokens >= 1 - 1e-9
        self._buckets[tenant] = (tokens - 1 if taken else tokens, now)
        self._buckets.move_to_end(tenant)
        while len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return 0.0 if taken else (1 - tokens) / quota.rate_rps
