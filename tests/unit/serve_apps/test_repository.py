"""Load and unload on hosts with real stores, runtimes and batchers; Serve's part is played by `Kept`, which hands a
config to every host as Serve does. tests/integration/test_repository.py has Serve itself."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.artifacts import ArtifactStore
from cluster.errors import ConfigError, InferenceFailed, InvalidRequest, RefConflict
from cluster.variants import Variant
from serve_apps.deployment import ModelHost
from serve_apps.oip.codec import decode_response, encode_request
from serve_apps.oip.routes import OipApp
from serve_apps.repository import Repository
from tests.unit.serve_apps.gated_model import run
from tests.unit.serve_apps.graphs import linear, pixels, stuck, sums
from tests.unit.serve_apps.oip.served import ask

# Serve awaits a deployment's `async __del__`; Python, which collects a host at the end of its test, does not.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine 'ModelHost.__del__' was never awaited")
ROW = np.arange(4, dtype=np.float32)[None]
INFER = "/v2/models/m/infer"
REPOSITORY = "/v2/repository/models/m/"


class Kept:
    """The user_config of a deployment and its replicas."""

    def __init__(self, hosts: list[ModelHost], config: dict[str, Any]) -> None:
        self.hosts, self.config = hosts, config
        self.changes = 0

    async def start(self) -> None:
        for host in self.hosts:
            host._repository = Repository(host, self)
            await host.reconfigure(self.config)

    async def read(self) -> dict[str, Any]:
        return dict(self.config)

    async def change(self, before: dict[str, Any], after: dict[str, Any], *, arrived: Callable[[], bool]) -> None:
        if self.config != before:
            raise RefConflict("somebody else changed it")
        self.config = after
        self.changes += 1
        for host in self.hosts:
            await host.reconfigure(after)
        assert arrived()

    async def end(self) -> None:
        for host in self.hosts:
            await host.__del__()


def kept(store: ArtifactStore, variant: Variant, replicas: int = 1, **config: Any) -> Kept:
    hosts = [ModelHost("m", str(store.root), variant.id, {"name": "onnxruntime"}) for _ in range(replicas)]
    return Kept(hosts, {"repository": True, "max_batch_size": 4} | config)


async def scale(app: OipApp) -> float:
    body, headers = encode_request({"x": ROW}, binary=True, binary_output=True)
    answer = await ask(app, "POST", INFER, body, headers)
    assert answer.status == 200, answer.body
    return float(decode_response(answer.body, answer.headers)["y"][0, 1])


def test_unload_and_load_hold_for_every_replica(store: ArtifactStore, one: Variant) -> None:
    async def test() -> None:
        serve = kept(store, one, replicas=2)
        await serve.start()
        apps = [OipApp(lambda host=host: host) for host in serve.hosts]  # type: ignore[misc]
        unloaded = await ask(apps[0], "POST", REPOSITORY + "unload", b'{"parameters": {"unload_dependents": true}}')
        [row] = unloaded.json()
        assert (unloaded.status, row["name"], row["state"]) == (200, "m", "UNAVAILABLE")
        for app in apps:
            body, headers = encode_request({"x": ROW}, binary=True)
            refused = await ask(app, "POST", INFER, body, headers)
            assert (refused.status, REPOSITORY + "load" in refused.error) == (503, True)
            assert int(refused.headers["retry-after"]) >= 1
            for path, status in (
                ("/v2/health/live", 200), ("/v2/health/ready", 503), ("/healthz", 503), ("/v2/models/m/ready", 503),
                (f"/v2/models/m/versions/{one.id}/ready", 503), ("/v2/models/m", 503), ("/v2/models/m/stats", 503),
                ("/v2/models/m/config", 503), ("/v2/models/other", 404), ("/v2", 200),
            ):  # fmt: skip
                assert (await ask(app, "GET", path)).status == status, path
            assert (await ask(app, "GET", "/v2/models/m/ready")).json() == {"name": "m", "ready": False}
            [row] = (await ask(app, "POST", "/v2/repository/index")).json()
            assert (row["state"], "unloaded" in row["reason"]) == ("UNAVAILABLE", True)
            assert (await ask(app, "POST", "/v2/repository/index", b'{"ready": true}')).json() == []
        assert (await ask(apps[1], "POST", REPOSITORY + "unload")).status == 200
        assert serve.changes == 1, "it was unloaded already"

        assert (await ask(apps[1], "POST", REPOSITORY + "load")).status == 200
        expected = [{"name": "m", "version": one.id, "state": "READY", "reason": ""}]
        for app in apps:
            assert await scale(app) == 1.0
            assert (await ask(app, "POST", "/v2/repository/index", b'{"ready": true}')).json() == expected
        assert (await ask(apps[0], "POST", REPOSITORY + "load", b"{}")).json() == expected
        assert serve.changes == 2, "it was loaded already"
        assert serve.config == {"repository": True, "max_batch_size": 4}
        await serve.end()

    run(test())


def test_load_may_name_a_variant_of_the_store(store: ArtifactStore, one: Variant) -> None:
    two = linear(store, scale=2.0)

    async def test() -> None:
        serve = kept(store, one)
        await serve.start()
        app = OipApp(lambda: serve.hosts[0])
        for ref in (two.name, two.id):
            body = b'{"parameters": {"variant": "%s"}}' % ref.encode()
            [row] = (await ask(app, "POST", REPOSITORY + "load", body)).json()
            assert (row["version"], await scale(app)) == (two.id, 2.0)
        assert (serve.config["variant"], serve.changes) == (two.id, 1)
        await ask(app, "POST", REPOSITORY + "unload")
        await ask(app, "POST", REPOSITORY + "load")
        assert await scale(app) == 2.0, "what was served last"
        await serve.end()

    run(test())


WRONG: dict[str, tuple[bytes, int, str]] = {
    "no such variant": (b'{"parameters": {"variant": "m/none"}}', 400, "no variant 'm/none'"),
    "a path": (b'{"parameters": {"variant": "../../etc/passwd"}}', 400, "no variant '../../etc/passwd'"),
    "a nul": (b'{"parameters": {"variant": "a\\u0000b"}}', 400, "no variant"),
    "other tensors": (b'{"parameters": {"variant": "linear/1x3"}}', 400, "other inputs or outputs"),
    "does not run": (b'{"parameters": {"variant": "stuck/five"}}', 500, "ONNX Runtime failed"),
    "a file": (b'{"parameters": {"file:1/model.onnx": "AAAA"}}', 400, "models come from the artifact store"),
    "a config": (b'{"parameters": {"config": "{}"}}', 400, "parameter 'config' of load is unknown"),
    "no name": (b'{"parameters": {"variant": 7}}', 400, "variant=7"),
    "long": (b'{"parameters": {"variant": "%s"}}' % (b"x" * 600), 400, "must be a variant's name or id"),
    "no object": (b"[1]", 400, "JSON list"),
    "parameters": (b'{"parameters": [1]}', 400, "parameters='[1]' must be an object"),
    "no JSON": (b"{", 400, "no JSON"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_load_that_cannot_be_changes_nothing(store: ArtifactStore, one: Variant, kind: str) -> None:
    linear(store, width=3)
    stuck(store)

    async def test() -> None:
        serve = kept(store, one)
        await serve.start()
        app = OipApp(lambda: serve.hosts[0])
        body, status, complaint = WRONG[kind]
        answer = await ask(app, "POST", REPOSITORY + "load", body)
        assert (answer.status, complaint in answer.error) == (status, True), answer.error
        assert (serve.changes, serve.hosts[0]._prepared, await scale(app)) == (0, (), 1.0)
        await serve.end()

    run(test())


def test_it_is_off_unless_the_config_says_so(store: ArtifactStore, one: Variant) -> None:
    async def test() -> None:
        serve = kept(store, one, repository=False)
        await serve.start()
        app = OipApp(lambda: serve.hosts[0])
        for what in ("load", "unload"):
            answer = await ask(app, "POST", REPOSITORY + what)
            assert (answer.status, "repository: true" in answer.error) == (400, True)
            assert (await ask(app, "POST", f"/v2/repository/models/other/{what}")).status == 404
        assert (await ask(app, "POST", "/v2/repository/index")).json()[0]["state"] == "READY"
        assert await scale(app) == 1.0
        await serve.end()

    run(test())


def test_a_parameter_of_unload_that_nobody_knows_is_refused(store: ArtifactStore, one: Variant) -> None:
    async def test() -> None:
        serve = kept(store, one)
        await serve.start()
        for parameters in ({"force": True}, {"unload_dependents": 1}):
            with pytest.raises(InvalidRequest, match="of unload is unknown"):
                await serve.hosts[0].unload(parameters)
        await serve.end()

    run(test())


def test_what_was_taken_before_an_unload_is_answered(store: ArtifactStore, one: Variant) -> None:
    async def test() -> None:
        serve = kept(store, one)
        await serve.start()
        host = serve.hosts[0]
        app = OipApp(lambda: host)
        taken = [asyncio.ensure_future(scale(app)) for _ in range(50)]
        while host._running().queued < 40:
            await asyncio.sleep(0)
        await host.unload({})
        assert await asyncio.gather(*taken) == [1.0] * 50
        assert host._batcher is None
        await host.load({})
        assert host.config["max_batch_size"] == 4
        assert await scale(app) == 1.0
        await serve.end()

    run(test())


def test_a_picture_that_is_being_decoded_at_an_unload_is_answered(store: ArtifactStore) -> None:
    variant = pixels(store)
    file = io.BytesIO()
    Image.fromarray(np.full((4, 6), 3, np.uint8)).save(file, "PNG")

    async def test() -> None:
        serve = kept(store, variant)
        await serve.start()
        host, held = serve.hosts[0], threading.Event()
        assert host.decoder is not None
        # The one thread that decodes is held, and the picture with it.
        host.decoder.submit(b"", lambda _: held.wait(20) and np.zeros(1), lambda _: None)
        app = OipApp(lambda: host)
        picture = {"content-type": "image/png"}
        taken = asyncio.ensure_future(ask(app, "POST", INFER, file.getvalue(), picture))
        while host.decoder.waiting < 2:
            await asyncio.sleep(0)
        unloading = asyncio.ensure_future(host.unload({}))
        while host.served is not None:
            await asyncio.sleep(0)
        assert (await ask(app, "POST", INFER, file.getvalue(), picture)).status == 503, "it came too late"
        assert [taken.done(), unloading.done()] == [False, False]
        held.set()
        answer = await taken
        assert (answer.status, answer.json()["outputs"][0]["data"]) == (200, [72])
        await unloading
        assert host._batcher is None
        await serve.end()

    run(test())


def test_rules_and_the_cache_outlast_an_unload(store: ArtifactStore, one: Variant) -> None:
    async def test() -> None:
        rules = {"classes": [{"name": "only"}], "default_class": "only"}
        serve = kept(store, one, scheduling=rules, cache_mib=1, max_queued_requests=9, default_timeout_s=3.0)
        await serve.start()
        host = serve.hosts[0]
        before = host.config
        await host.reconfigure({"repository": True, "loaded": False})
        await host.reconfigure({"repository": True})
        assert host.config == before
        assert [each.name for each in host._running().scheduling.classes] == ["only"]
        app = OipApp(lambda: host)
        assert [await scale(app) for _ in range(3)] == [1.0] * 3
        assert host.counters.answered == 1, "the cache gives the rest"
        await serve.end()

    run(test())


def test_a_replica_that_starts_unloaded_loads_nothing_until_it_is_told(store: ArtifactStore, one: Variant) -> None:
    async def test() -> None:
        serve = kept(store, one, loaded=False)
        await serve.start()
        host = serve.hosts[0]
        await host.check_health()
        assert (host.is_ready(), host._resident, host.record_autoscaling_stats()["queued"]) == (False, (), 0.0)
        await host.load({})
        assert await scale(OipApp(lambda: host)) == 1.0
        await serve.end()

    run(test())


def test_a_model_that_is_prepared_is_not_loaded_twice(store: ArtifactStore, one: Variant) -> None:
    two = linear(store, scale=2.0)

    async def test() -> None:
        serve = kept(store, one)
        await serve.start()
        host = serve.hosts[0]
        config = serve.config | {"variant": two.id}
        await host.prepare(config)
        [prepared] = host._prepared
        assert (host.variant, await scale(OipApp(lambda: host))) == (one, 1.0)
        await host.reconfigure(config)
        assert host._told is prepared
        with pytest.raises(InferenceFailed, match="ONNX Runtime failed"):
            await host.prepare(config | {"variant": stuck(store).id})
        with pytest.raises(ConfigError, match="other inputs"):
            await host.prepare(config | {"variant": sums(store).id})
        assert host._told is prepared
        await serve.end()

    run(test())


def test_a_change_by_somebody_else_is_not_undone(store: ArtifactStore, one: Variant) -> None:
    async def test() -> None:
        serve = kept(store, one)
        await serve.start()
        app = OipApp(lambda: serve.hosts[0])
        read = serve.read

        async def overtaken() -> dict[str, Any]:
            config = await read()
            serve.config = config | {"max_queued_requests": 7}
            return config

        serve.read = overtaken  # type: ignore[method-assign]
        answer = await ask(app, "POST", REPOSITORY + "unload")
        assert (answer.status, "somebody else" in answer.error) == (409, True)
        assert serve.config["max_queued_requests"] == 7
        assert await scale(app) == 1.0
        await serve.end()

    run(test())


def test_outside_serve_there_is_no_config_to_change(store: ArtifactStore, one: Variant) -> None:
    async def test() -> None:
        host = ModelHost("m", str(store.root), one.id, {"name": "onnxruntime"})
        await host.reconfigure({"repository": True})
        with pytest.raises(ConfigError, match="served by no Serve deployment"):
            await host.unload({})
        await host.__del__()

    run(test())
