"""The "before" of every figure: the model served the way Ray's own quick start does it.

fp32 eager torch in a stock deployment behind the default proxy, JSON in and out, one picture a request, no batching,
one replica. Deliberately plain, and not a straw man either: inference mode, uint8 in, one torch thread per core given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from starlette.requests import Request

IMPORT_PATH = "tune_spaces.baseline:build"


@serve.deployment(name="StockClassifier", num_replicas=1)
class StockClassifier:
    """Eager model class plus state dict, as a user would write it on day one."""

    def __init__(self, store: str, variant: str) -> None:
        import safetensors.torch
        import torch

        from cluster.artifacts import ArtifactStore
        from train_jobs.averaging import ensemble_of
        from train_jobs.config import TrainConfig

        self._torch = torch
        artifacts = ArtifactStore(Path(store))
        manifest = artifacts.get(variant)
        config = TrainConfig.model_validate(manifest.provenance["config"])
        self._model = ensemble_of(
            config.model.build(manifest.inputs[0].shape[1:], manifest.outputs[0].shape[1:]), config.ensemble_size
        )
        self._model.load_state_dict(safetensors.torch.load(artifacts.read(manifest, "weights.safetensors")))
        self._model.eval()

    async def __call__(self, request: Request) -> dict[str, Any]:
        body = await request.json()
        tensor = body["inputs"][0]
        picture = self._torch.tensor(tensor["data"], dtype=self._torch.uint8).reshape(tensor["shape"])
        with self._torch.inference_mode():
            logits = self._model(picture)
        return {
            "outputs": [
                {"name": "logits", "datatype": "FP32", "shape": list(logits.shape), "data": logits.flatten().tolist()}
            ]
        }


def build(args: dict[str, str]) -> Application:
    """Serve's builder: args are `store` (path) and `variant` (id of the torch_export variant with its weights)."""
    return StockClassifier.bind(args["store"], args["variant"])  # type: ignore[attr-defined]


def serve_config(*, store: Path, variant_id: str, port: int, num_cpus: float) -> dict[str, Any]:
    """The Serve config of the baseline; nothing in it but what a stock deployment needs."""
    return {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "before",
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": {"store": str(store), "variant": variant_id},
                "deployments": [{"name": "StockClassifier", "ray_actor_options": {"num_cpus": num_cpus}}],
            }
        ],
    }
