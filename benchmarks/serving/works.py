"""What is served: the int8 CNN of 28x28, and a ResNet-18 of 224x224 pictures that come as JPEG.

Found in the store, or made by the product's own commands: the CNN of a finished training run, the ResNet by
`load_model` and the pass int8. Its weights are random (seeded), its batch norms and its last layer set so that pictures
get different answers: how long it takes does not depend on what it has learned.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving_peers.served import picture_of
from cluster.artifacts import ArtifactStore
from cluster.errors import ConfigError, VariantNotFound
from cluster.runtimes import RuntimeConfig, load_runtime
from cluster.variants import Variant

if TYPE_CHECKING:
    import torch

Say = Callable[[str], None]
COUNT = 64
"""Different pictures in a load: enough that no cache of one answer could look fast."""
_RESNET = "serving-resnet18"
_SHAPE = (3, 224, 224)


@dataclass(frozen=True, eq=False)
class Work:
    """A variant, what it is sent, and what it must answer."""

    name: str
    does: str
    store: ArtifactStore
    variant: Variant
    pictures: NDArray[np.uint8]
    """Decoded, (N, C, H, W)."""
    bodies: list[bytes]
    """As clients have them: raw bytes, or JPEG."""
    jpeg: bool
    logits: NDArray[np.float32]
    """The runtime's own, on one ONNX Runtime thread, a picture at a time."""
    exact: bool
    """Batches of every size give the very same bytes, so an answer can be told from its bytes."""

    @property
    def classes(self) -> list[int]:
        return [int(each) for each in self.logits.argmax(1)]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.pictures.shape[1:]

    @property
    def model(self) -> Path:
        """The graph's file, as peers load it."""
        return self.store.blob_path(self.variant.model_file.sha256)


def work_named(name: str, store: ArtifactStore, runs_dir: Path, say: Say) -> Work:
    """One of WORKS. Raises ConfigError for another name, or if it can be neither found nor made."""
    if name not in WORKS:
        raise ConfigError(f"work={name!r} is none of {', '.join(WORKS)}; pass one of them")
    return WORKS[name](store, runs_dir, say)


def cnn(store: ArtifactStore, runs_dir: Path, say: Say) -> Work:
    """cnn_fashion_mnist/int8, or what the shorter training gave."""
    from train_jobs import datasets

    variant = _found(store, "cnn_fashion_mnist/int8") or _compressed(store, "cnn_fashion_mnist", runs_dir, say)
    pictures = datasets.load("fashion-mnist", notify=say).x_test[:COUNT]
    does = f"{variant.name} ({variant.id}), 784 bytes in"
    return _work("cnn", does, store, variant, pictures, [picture.tobytes() for picture in pictures], jpeg=False)


def resnet(store: ArtifactStore, runs_dir: Path, say: Say) -> Work:
    """ResNet-18, int8, random weights."""
    variant = _found(store, f"{_RESNET}/int8") or _made_resnet(store, say)
    jpegs = jpeg_pictures(COUNT)
    does = f"{variant.name} ({variant.id}), seeded random weights, JPEG of 224x224 in ({_mean_kib(jpegs)} each)"
    return _work("resnet18", does, store, variant, _decoded(jpegs), jpegs, jpeg=True)


WORKS: dict[str, Callable[[ArtifactStore, Path, Say], Work]] = {"cnn": cnn, "resnet18": resnet}


def _mean_kib(bodies: Sequence[bytes]) -> str:
    return f"{sum(map(len, bodies)) / len(bodies) / 1024:.0f} KiB"


def _found(store: ArtifactStore, name: str) -> Variant | None:
    try:
        return store.get(name)
    except VariantNotFound:
        return None


def _compressed(store: ArtifactStore, run: str, runs_dir: Path, say: Say) -> Variant:
    """What `sluice compress RUN --variant int8=int8` makes."""
    from train_jobs import runs
    from train_jobs.compression.compress import build_variants
    from train_jobs.compression.spec import chosen
    from train_jobs.compression.trained import of_finished

    try:
        finished = runs.load(run, runs_dir)
    except ConfigError as error:
        raise ConfigError(
            f"{store.root} has no variant {run}/int8 and {runs_dir} no finished run to make it of ({error}); train it: "
            f"sluice train {run}"
        ) from error
    dataset = finished.config.task.load(finished.config.dataset, notify=say)
    build_variants(store, of_finished(finished, dataset, runs_dir=runs_dir), dataset, chosen(None, ["int8=int8"]),
                   notify=say)  # fmt: skip
    return store.get(f"{run}/int8")


def _made_resnet(store: ArtifactStore, say: Say) -> Variant:
    """What `sluice compress --model benchmarks.serving.works:resnet18 --data DATA --variant int8=int8` makes."""
    from train_jobs.bring import load_model
    from train_jobs.compression.compress import build_variants
    from train_jobs.compression.spec import chosen
    from train_jobs.datasets.labelled import of_arrays

    say("the ResNet-18 is not in the store yet: making it, which takes a few minutes once")
    x = _decoded(jpeg_pictures(192))
    y = np.arange(len(x), dtype=np.int64) % 10
    arrays = {"x_train": x[:128], "y_train": y[:128], "x_test": x[128:], "y_test": y[128:],
              "labels": [str(each) for each in range(10)]}  # fmt: skip
    dataset = of_arrays(arrays, name="serving-pictures", source="benchmarks.serving", spec="serving-pictures",
                        notify=None)  # fmt: skip
    model = load_model("benchmarks.serving.works:resnet18", dataset, name=_RESNET)
    build_variants(store, model, dataset, chosen(None, ["int8=int8"]), notify=say)
    return store.get(f"{_RESNET}/int8")


def resnet18() -> torch.nn.Module:
    """The module: seeded weights, batch norms and last layer set on pictures."""
    import torch

    from train_jobs.models.vision import VisionConfig

    torch.manual_seed(0)
    model = VisionConfig(kind="resnet18").build(_SHAPE, (10,))
    x = torch.from_numpy(_decoded(jpeg_pictures(32)))
    with torch.no_grad():
        model.train()
        for _ in range(20):  # running means come near those of the pictures
            model(x)
        model.eval()
        logits = model(x)
        model.head.weight.div_(logits.std(0).mean())
        model.head.bias.sub_(model(x).mean(0))
    return model


def jpeg_pictures(count: int) -> list[bytes]:
    """Photographs of clothing where they are at hand ($SLUICE_DATA_DIR), else noise of the same size, smoothed."""
    from train_jobs.datasets import clothing

    path = clothing.file_of("clothing-224")
    if path is not None and path.exists():
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
            step = len(names) // count
            return [archive.read(name) for name in names[::step][:count]]
    return [_noise(seed) for seed in range(count)]


def _noise(seed: int) -> bytes:
    from PIL import Image

    small = np.random.default_rng(seed).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    kept = io.BytesIO()
    Image.fromarray(small).resize(_SHAPE[:0:-1], Image.Resampling.BICUBIC).save(kept, "JPEG", quality=85)
    return kept.getvalue()


def _decoded(jpegs: Sequence[bytes]) -> NDArray[np.uint8]:
    from PIL import Image

    return np.stack([picture_of(Image.open(io.BytesIO(each)), _SHAPE) for each in jpegs])


def _work(
    name: str, does: str, store: ArtifactStore, variant: Variant, pictures: NDArray[Any], bodies: list[bytes], *,
    jpeg: bool,
) -> Work:  # fmt: skip
    runtime = load_runtime(store, variant, RuntimeConfig(name="onnxruntime"))
    entry, output = variant.inputs[0].name, variant.outputs[0].name
    try:
        logits = np.concatenate([runtime.infer({entry: picture[None]})[output] for picture in pictures])
        exact = all(
            np.array_equal(runtime.infer({entry: pictures[:size]})[output], logits[:size]) for size in (2, 3, 8, 16, 64)
        )
    finally:
        runtime.close()
    return Work(name, does, store, variant, pictures, bodies, jpeg, logits.astype(np.float32), exact)


