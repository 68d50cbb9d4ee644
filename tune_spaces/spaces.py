"""Variants + Curves + Slo -> SearchSpace: every configuration that may be deployed, and how Optuna proposes one.

The space is conditional: which runtimes there are depends on the variant, which threads on the runtime. Batch and queue
bounds are powers of two, searched by their exponent, so that a sampler knows that 16 lies between 8 and 32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.control.prediction import FrontCost, Prediction, predict
from cluster.errors import ConfigError
from cluster.plans import Configuration
from cluster.profiles import Curve
from cluster.runtimes import RuntimeConfig, RuntimeName
from cluster.slo import Slo
from cluster.variants import Precision, Variant, decimals

if TYPE_CHECKING:
    import optuna

_QUEUES = (64, 1024)
"""Powers of two between these: shorter queues refuse what a burst brings, longer ones only answer too late."""
Pays = Callable[[RuntimeName, Precision], bool]


@dataclass(frozen=True)
class SearchSpace:
    """What may be varied; `left_out` says what may not and why, for the report."""

    curves: Mapping[tuple[str, RuntimeConfig], Curve]
    names: Mapping[str, str]
    """Of variants, by id."""
    cores: int
    """For all replicas together."""
    batch_exponents: tuple[int, int]
    queue_exponents: tuple[int, int]
    left_out: tuple[tuple[str, str], ...] = ()

    def configurations(self) -> list[Configuration]:
        """All of them, each once."""
        (low, high), (shortest, longest) = self.batch_exponents, self.queue_exponents
        made = (
            self._configuration(variant_id, runtime, 1 << batch, 1 << queue)
            for variant_id, runtime in self.curves
            for batch in range(low, self._largest(variant_id, runtime, high) + 1)
            for queue in range(shortest, longest + 1)
        )
        return list(dict.fromkeys(made))  # every queue shorter than a batch is made as long as that

    def curve(self, configuration: Configuration) -> Curve:
        return self.curves[configuration.variant_id, configuration.runtime]

    def predict(self, configuration: Configuration, slo: Slo, front: FrontCost = FrontCost()) -> Prediction:  # noqa: B008
        return predict(
            configuration, self.curve(configuration), cores=self.cores, bound_s=slo.latency_p99_s, rate=slo.peak_rps(),
            front=front,
        )  # fmt: skip

    def suggest(self, trial: optuna.trial.BaseTrial) -> Configuration:
        """Define by run: what Optuna asks for."""
        variants = list(dict.fromkeys(variant_id for variant_id, _ in self.curves))
        variant_id = trial.suggest_categorical("variant", variants)
        shapes = [str(runtime) for of, runtime in self.curves if of == variant_id]
        shape = trial.suggest_categorical(f"runtime of {variant_id}", shapes)
        runtime = next(runtime for of, runtime in self.curves if of == variant_id and str(runtime) == shape)
        low, high = self.batch_exponents
        batch = trial.suggest_int("log2 max_batch_size", low, high)
        queue = trial.suggest_int("log2 max_queued_requests", *self.queue_exponents)
        batch = min(batch, self._largest(variant_id, runtime, high))
        return self._configuration(variant_id, runtime, 1 << batch, 1 << queue)

    def parameters(self, configuration: Configuration) -> dict[str, Any]:
        """The inverse of `suggest`: what a trial's parameters must be to give this configuration."""
        queue = min(configuration.max_queued_requests.bit_length() - 1, self.queue_exponents[1])
        return {
            "variant": configuration.variant_id,
            f"runtime of {configuration.variant_id}": str(configuration.runtime),
            "log2 max_batch_size": configuration.max_batch_size.bit_length() - 1,
            "log2 max_queued_requests": queue,
        }

    def _largest(self, variant_id: str, runtime: RuntimeConfig, high: int) -> int:
        """The exponent of the largest batch that was profiled: a larger one took too long."""
        points = self.curves[variant_id, runtime].points
        return min(high, points[-1].batch_size.bit_length() - 1)

    def _configuration(self, variant_id: str, runtime: RuntimeConfig, batch: int, queue: int) -> Configuration:
        return Configuration(
            variant_id=variant_id, variant_name=self.names[variant_id], runtime=runtime, max_batch_size=batch,
            max_queued_requests=max(queue, batch), num_replicas=max(1, self.cores // runtime.cores),
        )  # fmt: skip


def candidates(
    variants: Sequence[Variant], slo: Slo, *, pays: Pays
) -> tuple[list[tuple[Variant, RuntimeName]], list[tuple[str, str]]]:
    """((variant, runtime) pairs that may be served, [(what, why not)]): the floor must hold in that very runtime, and a
    reduced precision must be one that the runtime gains from on this machine.

    Raises ConfigError if nothing is left.
    """
    allowed: list[tuple[Variant, RuntimeName]] = []
    left_out: list[tuple[str, str]] = []
    for variant in variants:
        for accuracy in variant.accuracies:
            runtime: RuntimeName = accuracy.runtime  # type: ignore[assignment]
            what, verdict = f"{variant.name} on {runtime}", slo.accuracy.verdict(accuracy)
            if verdict != "holds":
                value = decimals(accuracy.value, higher_is_better=accuracy.higher_is_better)
                left_out.append((what, f"{accuracy.metric} {value}: {verdict} ({slo.accuracy.of(accuracy)})"))
            elif not pays(runtime, variant.precision):
                left_out.append((what, f"{runtime} gains nothing from {variant.precision} on this machine"))
            else:
                allowed.append((variant, runtime))
    if not allowed:
        told = "; ".join(f"{what}: {why}" for what, why in left_out) or "no variant was measured"
        raise ConfigError(f"no variant holds its accuracy floor ({told}); train longer, or lower the floor in the SLO")
    return allowed, left_out


def search_space(
    variants: Sequence[Variant], curves: Sequence[Curve], slo: Slo, *, cores: int,
    left_out: Sequence[tuple[str, str]] = (),
) -> SearchSpace:  # fmt: skip
    """The space of all `curves` that can keep the SLO by themselves.

    Raises ConfigError, before anything is deployed, where the graph alone is too slow or too large for it.
    """
    names = {v.id: v.name for v in variants}
    out = list(left_out)
    usable: dict[tuple[str, RuntimeConfig], Curve] = {}
    for curve in curves:
        what = f"{names[curve.variant_id]} on {curve.runtime}"
        replicas = max(1, cores // curve.runtime.cores)
        memory, budget = replicas * max(p.memory_bytes for p in curve.points), slo.budget.memory_mib
        if curve.points[0].latency_p50_s > slo.latency_p99_s:
            out.append((what, f"one sample alone takes {curve.points[0].latency_p50_s * 1e3:,.1f} ms"))
        elif budget is not None and memory > budget << 20:
            out.append((what, f"{replicas} replicas need {memory >> 20:,} MiB"))
        else:
            usable[curve.variant_id, curve.runtime] = curve
    if not usable:
        told = "; ".join(f"{what}: {why}" for what, why in out)
        raise ConfigError(
            f"nothing can answer within {slo.latency_p99_ms:g} ms and the budget ({told}); raise one of the two"
        )
    peak = slo.peak_rps()
    fastest = max(usable.values(), key=lambda c: c.best.throughput_rps * max(1, cores // c.runtime.cores))
    most = fastest.best.throughput_rps * max(1, cores // fastest.runtime.cores)
    if peak is not None and peak > most:
        raise ConfigError(
            f"{peak:,.0f} req/s are out of reach: the fastest graph alone, {names[fastest.variant_id]} on "
            f"{fastest.runtime}, computes {most:,.0f}/s on {cores} cores, and each request costs more than its graph; "
            "give it more cores or lower the rate"
        )
    largest = max(c.points[-1].batch_size for c in usable.values())
    return SearchSpace(
        curves=usable, names=names, cores=cores, batch_exponents=(0, largest.bit_length() - 1),
        queue_exponents=(_QUEUES[0].bit_length() - 1, _QUEUES[1].bit_length() - 1), left_out=tuple(out),
    )  # fmt: skip


def ranking(space: SearchSpace, slo: Slo, front: FrontCost = FrontCost()) -> list[tuple[Configuration, Prediction]]:  # noqa: B008
    """All configurations, most promising first by the SLO's objective."""

    def worth(pair: tuple[Configuration, Prediction]) -> tuple[float, ...]:
        configuration, prediction = pair
        late = prediction.latency_p99_s is not None and prediction.latency_p99_s > slo.latency_p99_s
        by_objective = {
            "max_rate": prediction.slo_rate_rps,
            "min_latency": -(prediction.latency_p99_s or 0.0),
            "min_cost": -prediction.core_s_per_million,
        }[slo.objective]
        # A queue as long as what can be answered within the bound: longer ones only answer too late.
        queue = abs(configuration.max_queued_requests - prediction.capacity_rps * slo.latency_p99_s)
        return (-float(late), by_objective, -queue, -float(configuration.max_batch_size))

    pairs = [(configuration, space.predict(configuration, slo, front)) for configuration in space.configurations()]
    return sorted(pairs, key=worth, reverse=True)


def most_promising(ranked: Sequence[tuple[Configuration, Prediction]], count: int) -> list[Configuration]:
    """The first `count` to measure: the best of each variant and runtime in turn, so that one prediction that is wrong
    for a whole runtime does not fill the list."""
    groups: dict[tuple[str, RuntimeConfig], list[Configuration]] = {}
    for configuration, _ in ranked:
        group = groups.setdefault((configuration.variant_id, configuration.runtime), [])
        if all(configuration.max_batch_size != other.max_batch_size for other in group):
            group.append(configuration)
    rounds = max(map(len, groups.values()), default=0)
    return [group[k] for k in range(rounds) for group in groups.values() if k < len(group)][:count]
