"""The host of a model: `user_config` changes variant, runtime and bounds under load, between two batches.

A host outside Serve: real store, runtimes, batcher and routes. tests/integration/test_serving.py has it behind HAProxy.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import weakref
from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cluster.artifacts import ArtifactStore
from cluster.errors import ConfigError, InferenceFailed, NotReady
from cluster.runtimes import RuntimeConfig, runtimes_for
from cluster.variants import Variant
from serve_apps.batcher import MAX_BATCH_SIZE
from serve_apps.deployment import ModelHost
from serve_apps.executor import Answer as Answered
from serve_apps.executor import Request
from serve_apps.oip.codec import decode_response, encode_request
from serve_apps.oip.routes import OipApp
from tests.unit.serve_apps.gated_model import run, until
from tests.unit.serve_apps.graphs import linear, stuck, sums
from tests.unit.serve_apps.oip.served import Answer, ask

# Serve awaits a deployment's `async __del__`; Python, which collects a host at the end of its test, does not.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine 'ModelHost.__del__' was never awaited")
ROW = np.arange(4, dtype=np.float32)[None]


@pytest.fixture
def host(store: ArtifactStore, one: Variant) -> ModelHost:
    return ModelHost("m", str(store.root), one.id, {"name": "onnxruntime"})


def submit(host: ModelHost, **wishes: Any) -> asyncio.Future[Answered]:
    return host._running().submit({"x": ROW}, **wishes)


async def scale_of(host: ModelHost) -> float:
    """By what the model that answers now multiplies."""
    answer = (await submit(host)).outputs
    factor: float = float(answer["y"][0, 1])
    np.testing.assert_allclose(answer["y"], factor * ROW)
    return factor


def test_the_bound_variant_serves_until_a_config_names_another_and_again_when_none_does(
    host: ModelHost, store: ArtifactStore, one: Variant
) -> None:
    async def test() -> None:
        two = linear(store, scale=2.0)
        await host.reconfigure({})
        assert (host.variant, await scale_of(host)) == (one, 1.0)
        await host.reconfigure({"variant": two.name})
        assert (host.variant, await scale_of(host)) == (two, 2.0)
        await host.reconfigure({"max_batch_size": 4})
        assert (host.variant, await scale_of(host)) == (one, 1.0)
        await host.__del__()

    run(test())


def test_what_a_config_leaves_out_keeps_its_value(host: ModelHost) -> None:
    async def test() -> None:
        await host.reconfigure({})
        assert host.config["max_batch_size"] == MAX_BATCH_SIZE
        await host.reconfigure({"max_batch_size": 4, "max_queued_requests": 7, "default_timeout_s": 1.5})
        expected = {"max_batch_size": 4, "max_queued_requests": 7, "default_timeout_s": 1.5}
        assert host.config == expected | {"runtime": RuntimeConfig().model_dump()}
        await host.reconfigure({})
        assert host.config == expected | {"runtime": RuntimeConfig().model_dump()}
        await host.reconfigure({"max_queued_requests": 9, "default_timeout_s": None})
        assert host.config == expected | {
            "max_queued_requests": 9, "default_timeout_s": None, "runtime": RuntimeConfig().model_dump()
        }  # fmt: skip
        await host.__del__()

    run(test())


@pytest.mark.parametrize("name", runtimes_for("onnx"))
def test_the_runtime_is_switched_and_told(host: ModelHost, name: str) -> None:
    async def test() -> None:
        runtime = {"name": name, "streams": 2}
        await host.reconfigure({"runtime": runtime, "max_batch_size": 8})
        assert host.config["runtime"] == RuntimeConfig.model_validate(runtime).model_dump()
        assert host._told.runtimes[0].name == name
        assert await scale_of(host) == 1.0
        await host.__del__()

    run(test())


def test_a_larger_batch_is_warm_before_it_is_served_and_a_smaller_one_needs_nothing(host: ModelHost) -> None:
    async def test() -> None:
        await host.reconfigure({"max_batch_size": 4})
        first = host._told
        assert first.warm_to == 4
        for config in ({}, {"max_queued_requests": 3}, {"max_batch_size": 2}, {"max_batch_size": 4}):
            await host.reconfigure(config)
            assert host._told is first, f"{config} changes nothing that was loaded"
        await host.reconfigure({"max_batch_size": 40})
        assert host._told.warm_to == 40
        assert host._told.runtimes[0] is not first.runtimes[0], "the executor may be inside the first"
        assert host.config["max_batch_size"] == 40
        await host.__del__()

    run(test())


WRONG = {
    "below one": ({"max_batch_size": 0}, "max_batch_size='0': Input should be greater than or equal to 1"),
    "no number": ({"max_queued_requests": "many"}, "max_queued_requests='many':"),
    "no time": ({"default_timeout_s": 0}, "default_timeout_s='0':"),
    "unknown field": ({"batch": 3}, "batch='3': Extra inputs are not permitted"),
    "unknown runtime": ({"runtime": {"name": "tpu"}}, "runtime.name='tpu':"),
    "runtime that cannot": ({"runtime": {"name": "openvino", "inter_op_threads": 2}}, "inter_op_threads=2"),
    "no fields": ("fast", "user_config='fast':"),
    "unknown variant": ({"variant": "m/none"}, "variant='m/none': no variant 'm/none'"),
    "another format's runtime": ({"runtime": {"name": "torch"}}, "runtime 'torch' cannot execute format 'onnx'"),
    "other inputs": ({"variant": "linear/1x3"}, "has other inputs or outputs than linear/1x4, which is served"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_config_names_the_field_and_changes_nothing(
    host: ModelHost, store: ArtifactStore, one: Variant, kind: str
) -> None:
    config, complaint = WRONG[kind]
    linear(store, width=3)

    async def test() -> None:
        await host.reconfigure({"max_batch_size": 4, "default_timeout_s": 5.0})
        before, runtime = host.config, host._told.runtimes[0]
        more = {"max_queued_requests": 3, "default_timeout_s": 9.0} | config if isinstance(config, dict) else config
        with pytest.raises(ConfigError) as caught:
            await host.reconfigure(more)  # type: ignore[arg-type]
        assert complaint in str(caught.value)
        assert "errors.pydantic.dev" not in str(caught.value)
        assert (host.config, host.variant, host._told.runtimes[0]) == (before, one, runtime)
        assert await scale_of(host) == 1.0
        await host.__del__()

    run(test())


def test_a_variant_that_does_not_run_leaves_the_old_one_serving(
    host: ModelHost, store: ArtifactStore, one: Variant
) -> None:
    broken = stuck(store)

    async def test() -> None:
        await host.reconfigure({})
        before = host.config
        with pytest.raises(InferenceFailed, match="ONNX Runtime failed"):
            await host.reconfigure({"variant": broken.id, "max_batch_size": 3})
        assert (host.variant, host.config) == (one, before)
        assert await scale_of(host) == 1.0
        await host.reconfigure({"max_batch_size": 3})
        assert host.config["max_batch_size"] == 3, "the next config is taken"
        await host.__del__()

    run(test())


def test_of_configs_that_come_at_once_the_last_one_stays(host: ModelHost, store: ArtifactStore) -> None:
    """The first takes long to load, the last is what is loaded already."""
    two = linear(store, scale=2.0)

    async def test() -> None:
        await host.reconfigure({"max_batch_size": 2})
        slow = {"variant": two.id, "runtime": {"name": runtimes_for("onnx")[-1]}, "max_batch_size": 64}
        await asyncio.gather(host.reconfigure(slow), host.reconfigure({"max_batch_size": 2}))
        assert (await scale_of(host), host.config["max_batch_size"]) == (1.0, 2)
        await host.__del__()

    run(test())


def test_the_old_model_is_forgotten_with_its_last_request(host: ModelHost, store: ArtifactStore) -> None:
    two = linear(store, scale=2.0)

    async def test() -> None:
        await host.reconfigure({})
        await scale_of(host)
        old = weakref.ref(host._told.runtimes[0])
        await host.reconfigure({"variant": two.id})
        await until(lambda: gc.collect() >= 0 and old() is None)
        assert await scale_of(host) == 2.0
        await host.__del__()

    run(test())


def test_what_waits_for_the_old_model_is_answered_by_it(host: ModelHost, store: ArtifactStore) -> None:
    two = linear(store, scale=2.0)

    async def test() -> None:
        await host.reconfigure({"max_batch_size": 1})
        waiting = [submit(host) for _ in range(200)]
        switch = asyncio.create_task(host.reconfigure({"variant": two.id, "max_batch_size": 1}))
        for future in waiting:
            np.testing.assert_array_equal((await future).outputs["y"], ROW)
        await switch
        assert await scale_of(host) == 2.0
        await host.__del__()

    run(test())


def test_the_default_timeout_is_that_of_requests_that_name_none(host: ModelHost) -> None:
    async def test() -> None:
        await host.reconfigure({"default_timeout_s": 30.0})
        app, seen = OipApp(lambda: host), list[float | None]()
        true_put = host.put

        def put(request: Request) -> None:
            seen.append(request.timeout_s)
            true_put(request)

        host.put = put  # type: ignore[method-assign]
        for parameters in ({"timeout": 10_000_000}, {}):
            body, headers = encode_request({"x": ROW}, binary=True, parameters=parameters)
            assert (await ask(app, "POST", "/v2/models/m/infer", body, headers)).status == 200
        assert seen == [10.0, 30.0]
        await host.__del__()

    run(test())


def test_it_is_ready_once_it_is_loaded_until_it_drains(host: ModelHost) -> None:
    async def test() -> None:
        assert not host.is_ready()
        with pytest.raises(NotReady, match="still loading"):
            submit(host)
        await host.check_health()  # as Serve does at the end of the start, with or without a user_config
        assert host.is_ready()
        futures = [submit(host) for _ in range(20)]
        batcher = host._running()
        assert host.record_autoscaling_stats()["queued"] == float(batcher.queued)
        await host.__del__()
        assert not host.is_ready()
        assert all(future.done() and not future.exception() for future in futures), "what had come was answered"
        with pytest.raises(NotReady):
            batcher.submit({"x": ROW})

    run(test())


def described(scales: dict[str, float], answer: Answer, rows: NDArray[np.float32]) -> str:
    """What is wrong with an answer: nothing if its rows are those of the variant that it names."""
    if answer.status != 200:
        return f"{answer.status}: {answer.body[:200]!r}"
    said = answer.json()["model_version"]
    got = decode_response(answer.body, answer.headers)["y"]
    return "" if np.array_equal(got, scales[said] * rows) else f"{said} answered {got.tolist()} to {rows.tolist()}"


def test_under_repeated_switches_nothing_is_lost_and_every_answer_names_who_computed_it(
    host: ModelHost, store: ArtifactStore
) -> None:
    """Three variants on every runtime, batch sizes up and down, while clients ask one after another."""
    variants = [linear(store, scale=scale) for scale in (1.0, 2.0, 4.0)]
    scales = {variant.id: scale for variant, scale in zip(variants, (1.0, 2.0, 4.0), strict=True)}
    runtimes = [{"name": name, "streams": streams} for name in runtimes_for("onnx") for streams in (1, 2)]
    app = OipApp(lambda: host)
    answered, wrong = Counter[str](), list[str]()
    done = False

    async def client(number: int) -> None:
        for step in itertools.count():
            if done:
                return
            rows = np.full((1 + step % 3, 4), float(number * 1000 + step % 1000), np.float32)
            body, headers = encode_request({"x": rows}, binary=False)
            answer = await ask(app, "POST", "/v2/models/m/infer", body, headers)
            if problem := described(scales, answer, rows):
                wrong.append(problem)
            else:
                answered[answer.json()["model_version"]] += 1

    async def test() -> None:
        nonlocal done
        await host.reconfigure({})
        clients = [asyncio.create_task(client(number)) for number in range(1, 17)]
        for number, runtime in enumerate(runtimes * 3):
            variant = variants[number % 3]
            size = (2, 16, 5)[number % 3]
            await host.reconfigure({"variant": variant.id, "runtime": runtime, "max_batch_size": size})
            told = (await ask(app, "GET", "/v2/models/m/config")).json()
            assert (told["parameters"]["variant"]["string_value"], told["max_batch_size"]) == (variant.name, size)
            assert (told["backend"], told["instance_group"][0]["count"]) == (runtime["name"], runtime["streams"])
            before = answered[variant.id]
            await until(lambda before=before, variant=variant: answered[variant.id] > before + 20)  # type: ignore[misc]
        done = True
        await asyncio.gather(*clients)
        counters = host._running().counters
        assert wrong == []
        assert set(answered) == set(scales)
        assert counters.answered == answered.total()
        assert (counters.failed, counters.expired, counters.refused, counters.cancelled) == (0, 0, 0, 0)
        await host.__del__()

    run(test())


def test_a_request_for_a_version_that_goes_while_its_body_comes_is_not_answered_by_another(
    host: ModelHost, store: ArtifactStore, one: Variant
) -> None:
    two = linear(store, scale=2.0)
    app, sent = OipApp(lambda: host), list[Any]()
    body, headers = encode_request({"x": ROW}, binary=False)

    async def test() -> None:
        await host.reconfigure({})
        path = f"/v2/models/m/versions/{one.id}/infer"
        assert (await ask(app, "POST", path, body, headers)).status == 200

        async def receive() -> Any:
            await host.reconfigure({"variant": two.id})
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": []}
        await app(scope, receive, send)
        assert sent[0]["status"] == 404
        assert f"served: {two.id}".encode() in sent[1]["body"]
        await host.__del__()

    run(test())


async def asked(host: ModelHost, **parameters: Any) -> tuple[int, str, float]:
    """(status, version, what it multiplies by) of one request over the routes."""
    body, headers = encode_request({"x": ROW}, binary=False, parameters=parameters)
    answer = await ask(OipApp(lambda: host), "POST", "/v2/models/m/infer", body, headers)
    if answer.status != 200:
        return answer.status, answer.error, 0.0
    said = answer.json()
    assert answer.headers["sluice-version"] == said["model_version"]
    assert answer.headers["sluice-variant"] == said["parameters"]["variant"]
    return 200, said["model_version"], float(decode_response(answer.body, answer.headers)["y"][0, 1])


@pytest.mark.parametrize(
    ("metric", "good", "worse", "between"), [("accuracy", 0.9, 0.8, 0.85), ("mse", 0.1, 0.2, 0.15)]
)
def test_of_the_resident_variants_a_request_gets_one_that_is_exact_enough_for_it(
    store: ArtifactStore, metric: str, good: float, worse: float, between: float
) -> None:
    fast = linear(store, scale=2.0, quality=worse, metric=metric)
    best = linear(store, scale=4.0, quality=good, metric=metric)

    async def test() -> None:
        host = ModelHost("m", str(store.root), fast.id, {"name": "onnxruntime"}, [best.name])
        await host.reconfigure({})
        assert host.variant == fast
        assert [model.version for model in host._running().models] == [best.id, fast.id]
        metadata = await ask(OipApp(lambda: host), "GET", "/v2/models/m")
        assert metadata.json()["versions"] == [fast.id, best.id], "what it was told to serve comes first"
        assert await asked(host) == await asked(host, accuracy="best") == (200, best.id, 4.0)
        assert await asked(host, accuracy=between) == (200, best.id, 4.0)
        for version, scale in ((fast.id, 2.0), (best.id, 4.0)):
            body, headers = encode_request({"x": ROW}, binary=False)
            answer = await ask(OipApp(lambda: host), "POST", f"/v2/models/m/versions/{version}/infer", body, headers)
            assert decode_response(answer.body, answer.headers)["y"][0, 1] == scale
        beyond = 0.95 if metric == "accuracy" else 0.05
        status, error, _ = await asked(host, accuracy=beyond)
        assert status == 400, error
        await host.reconfigure({"also": []})
        assert await asked(host) == (200, fast.id, 2.0)
        status, error, _ = await asked(host, accuracy=between)
        assert status == 400, error
        await host.__del__()

    run(test())


def test_resident_variants_that_nobody_can_rank_are_refused(store: ArtifactStore, one: Variant) -> None:
    known, other = linear(store, scale=2.0, quality=0.9), linear(store, scale=3.0, quality=0.1, metric="mse")

    async def test() -> None:
        host = ModelHost("m", str(store.root), known.id, {"name": "onnxruntime"})
        await host.reconfigure({})
        for also, complaint in ((one, "no measured accuracy"), (other, "they must share one metric")):
            with pytest.raises(ConfigError, match=complaint):
                await host.reconfigure({"also": [also.id]})
            assert await asked(host) == (200, known.id, 2.0)
        await host.__del__()

    run(test())


def test_equal_inputs_are_computed_once_while_the_cache_is_on(store: ArtifactStore, host: ModelHost) -> None:
    two = linear(store, scale=2.0)

    async def test() -> None:
        await host.reconfigure({"cache_mib": 1})
        executed = host._running().counters
        for _ in range(5):
            assert (await asked(host))[2] == 1.0
        assert executed.answered == 1
        assert await asyncio.gather(*(asked(host, timeout=5_000_000) for _ in range(5))) == [await asked(host)] * 5
        await host.reconfigure({"variant": two.id, "cache_mib": 1})
        assert (await asked(host))[2] == 2.0, "another model's answers are not given"
        await host.reconfigure({"variant": two.id, "cache_mib": None})
        before = executed.answered
        for _ in range(5):
            await asked(host)
        assert executed.answered == before + 5
        await host.__del__()

    run(test())


def test_several_executors_have_a_runtime_each(store: ArtifactStore, one: Variant) -> None:
    async def test() -> None:
        host = ModelHost("m", str(store.root), one.id, {"name": "onnxruntime"}, executors=3)
        await host.reconfigure({})
        assert len(set(host._running().models[0].infer)) == 3
        for future in [submit(host) for _ in range(100)]:
            np.testing.assert_array_equal((await future).outputs["y"], ROW)
        await host.__del__()

    run(test())


def test_series_of_any_length_share_batches_of_a_few_shapes_and_each_gets_its_own_answer(store: ArtifactStore) -> None:
    variant = sums(store)

    async def test() -> None:
        host = ModelHost("m", str(store.root), variant.id, {"name": "onnxruntime"})
        await host.reconfigure({})
        app = OipApp(lambda: host)

        async def total(rows: int, seed: int) -> None:
            series = np.random.default_rng(seed).integers(0, 9, (1, rows, 2)).astype(np.float32)
            for _ in range(2):  # the second one is known by its head and its JSON
                body, headers = encode_request({"x": series}, binary=True)
                answer = await ask(app, "POST", "/v2/models/m/infer", body, headers)
                assert decode_response(answer.body, answer.headers)["y"] == series.sum()

        await asyncio.gather(*(total(rows, seed) for seed in range(20) for rows in (2, 4, 6, 8)))
        for rows, complaint in ((3, "3 rows a series"), (10, "10 rows a series")):
            body, headers = encode_request({"x": np.zeros((1, rows, 2), np.float32)}, binary=True)
            answer = await ask(app, "POST", "/v2/models/m/infer", body, headers)
            assert (answer.status, complaint in answer.error) == (400, True)
        gap = np.array([[[1, 1], [np.nan, 1], [1, 1], [1, 1]]], np.float32)
        body, headers = encode_request({"x": gap}, binary=True)
        answer = await ask(app, "POST", "/v2/models/m/infer", body, headers)
        assert (answer.status, "row 1 has a NaN" in answer.error) == (400, True)
        await host.__del__()

    run(test())
