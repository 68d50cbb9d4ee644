"""TrainedModel + CompressConfig -> measured variants, each from its parent by one pass:

    fp32-torch (the trained module)      only where there is a module; an imported ONNX file begins at fp32
    ├── fp32 (ONNX)
    │   ├── int8
    │   └── bf16
    └── pruned (ONNX, fine-tuned)
        └── pruned-int8
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, JsonValue
from safetensors.torch import save
from torch import nn

from cluster import hardware
from cluster.artifacts import ArtifactStore
from cluster.errors import ConfigError, InvalidRequest, TrainingFailed
from cluster.runtimes import RuntimeName
from cluster.tensors import DATATYPE_OF_NUMPY
from cluster.variants import Pass, Precision, TensorSpec, Variant
from train_jobs import datasets, weights
from train_jobs.compression.cast import to_bf16
from train_jobs.compression.finetune import finetune
from train_jobs.compression.prune import PruneConfig, prune
from train_jobs.compression.quantize import QuantizeConfig, quantize
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset
from train_jobs.evaluate import Bench
from train_jobs.export import output_spec, to_onnx, to_torch_archive
from train_jobs.tasks import CLASSIFIERS

PASSES = ("int8", "bf16", "prune")
_Made = TypeVar("_Made")


class CompressConfig(BaseModel):
    """Which passes run, and how; None leaves a pass out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    int8: QuantizeConfig | None = QuantizeConfig()
    bf16: bool = True
    prune: PruneConfig | None = PruneConfig()

    def without(self, passes: list[str]) -> CompressConfig:
        """Raises ConfigError for a pass that there is not."""
        if unknown := sorted(set(passes) - set(PASSES)):
            raise ConfigError(f"without={unknown} names no pass; passes: {', '.join(PASSES)}")
        return self.model_copy(update={name: False if name == "bf16" else None for name in passes})


@dataclass(frozen=True)
class TrainedModel:
    """What compression starts from: a module, or the ONNX graph of one; samples in, a score per class out."""

    name: str
    """Names the variants: "<name>/int8"."""
    family: str
    inputs: TensorSpec
    outputs: TensorSpec
    module: nn.Module | None = None
    onnx: bytes | None = None
    preprocessing: str = ""
    provenance: dict[str, JsonValue] = field(default_factory=dict)


def of_run(model: nn.Module, config: TrainConfig, dataset: LabelledDataset) -> TrainedModel:
    """A finished run's model. Raises ConfigError if the data set is not the one that it was trained on, or the model
    gives no score per class: the variants of the other families are not measured yet."""
    datasets.require(dataset, config.dataset)
    if config.task.kind not in CLASSIFIERS:
        raise ConfigError(
            f"{config.recipe} does task.kind={config.task.kind}; Sluice compresses classifiers so far "
            f"({', '.join(sorted(CLASSIFIERS))})"
        )
    described = getattr(model.preprocess, "describe", None)
    return TrainedModel(
        name=config.recipe, family=config.model.family, inputs=input_spec(dataset), module=model,
        outputs=output_spec(len(dataset.labels)), preprocessing=described() if described else "none",
        provenance={"config": config.model_dump(mode="json")},
    )  # fmt: skip


def input_spec(dataset: LabelledDataset) -> TensorSpec:
    """What a model of these samples takes."""
    pictures = dataset.x_train.dtype == np.uint8 and dataset.x_train.ndim == 4
    return TensorSpec(
        name="image" if pictures else "input", datatype=DATATYPE_OF_NUMPY[dataset.x_train.dtype],
        shape=(-1, *dataset.x_train.shape[1:]),
    )  # fmt: skip


def build_variants(
    store: ArtifactStore, model: TrainedModel, dataset: LabelledDataset, config: CompressConfig | None = None, *,
    notify: Callable[[str], None] = lambda line: None,
) -> list[Variant]:  # fmt: skip
    """The variants of `config`, measured, stored and named "<name>/...", parents before children.

    A pass that this model does not take is left out, and `notify` told why; what it starts from must run. Raises
    InvalidRequest if that does not.
    """
    return _Line(store, model, dataset, notify).make(config or CompressConfig())


class _Line:
    """The variants of one model in the making."""

    def __init__(
        self, store: ArtifactStore, model: TrainedModel, dataset: LabelledDataset, notify: Callable[[str], None]
    ) -> None:
        self._model, self._dataset, self._notify = model, dataset, notify
        self._bench = Bench(store, dataset, notify)
        self._made: list[Variant] = []
        self._common: dict[str, Any] = {
            "family": model.family,
            "inputs": (model.inputs,),
            "outputs": (model.outputs,),
            "labels": dataset.labels,
            "preprocessing": model.preprocessing,
            "provenance": model.provenance
            | {
                "dataset": {"name": dataset.name, "spec": dataset.spec, "test_sha256": dataset.test_sha256},
                "made_on": hardware.fingerprint(),
            },
        }

    def make(self, config: CompressConfig) -> list[Variant]:
        root = self._trained() if self._model.module is not None else None
        graph = self._model.onnx if self._model.onnx is not None else self._exported(self._model.module)
        step = Pass(name="export_onnx" if root else "import_onnx")
        fp32 = self._add("fp32", root, (step,), {"model.onnx": graph})
        self._int8("int8", fp32, graph, config.int8)
        if config.bf16:
            with_bf16 = self._try("bf16", lambda: to_bf16(graph))
            if with_bf16 is not None:
                steps = (Pass(name="cast_bf16"),)
                self._try("bf16", lambda: self._add("bf16", fp32, steps, {"model.onnx": with_bf16}, precision="bf16"))
        if config.prune is not None:
            self._pruned(root, config.prune, config.int8)
        return self._made

    def _trained(self) -> Variant:
        assert self._model.module is not None
        program = to_torch_archive(self._model.module, self._model.inputs)
        files = {"model.pt2": program, "weights.safetensors": save(weights.separate(self._model.module))}
        return self._add("fp32-torch", None, (Pass(name="train"),), files, format="torch_export", made_for="torch")

    def _pruned(self, root: Variant | None, config: PruneConfig, int8: QuantizeConfig | None) -> None:
        if root is None or self._model.module is None:
            self._notify("pruned: left out, since fine-tuning needs the torch module and the model is an ONNX file")
            return
        module = self._model.module
        made = self._try("pruned", lambda: self._finetuned(prune(module, config, inputs=self._model.inputs), config))
        if made is None:
            return
        params = config.model_dump(mode="json", exclude={"finetune"})
        steps = (
            Pass(name="prune_channels", params=params),
            Pass(name="finetune", params=config.finetune.model_dump(mode="json")),
            Pass(name="export_onnx"),
        )
        graph = self._exported(made)
        pruned = self._try("pruned", lambda: self._add("pruned", root, steps, {"model.onnx": graph}))
        if pruned is not None:
            self._int8("pruned-int8", pruned, graph, int8)

    def _finetuned(self, pruned: nn.Module, config: PruneConfig) -> nn.Module:
        try:
            return finetune(pruned, self._dataset, config.finetune, notify=self._notify)
        except TrainingFailed:
            raise
        except Exception as error:  # somebody's own module is in training mode here, perhaps for the first time
            raise TrainingFailed(f"the model does not train here ({error!r})"[:400]) from error

    def _int8(self, name: str, parent: Variant, graph: bytes, config: QuantizeConfig | None) -> None:
        if config is None:
            return
        # Calibration samples come from the training set; the test set judges and nothing else.
        made = self._try(name, lambda: quantize(graph, self._dataset.x_train, config, inputs=self._model.inputs))
        if made is not None:
            step = Pass(name="quantize_static_int8", params=config.model_dump(mode="json"))
            self._try(name, lambda: self._add(name, parent, (step,), {"model.onnx": made}, precision="int8"))

    def _exported(self, module: nn.Module | None) -> bytes:
        if module is None:
            raise ConfigError(f"model {self._model.name} has neither a module nor an ONNX graph; pass one of them")
        return to_onnx(module, self._model.inputs, self._model.outputs.name)

    def _try(self, name: str, step: Callable[[], _Made]) -> _Made | None:
        try:
            return step()
        except (InvalidRequest, TrainingFailed) as error:
            self._notify(f"{name}: left out: {error}")
            return None

    def _add(
        self, name: str, parent: Variant | None, passes: tuple[Pass, ...], files: dict[str, bytes], *,
        precision: Precision = "fp32", format: str = "onnx", made_for: RuntimeName = "onnxruntime",
    ) -> Variant:  # fmt: skip
        variant = Variant(
            name=f"{self._model.name}/{name}", parent_id=parent.id if parent else None, passes=passes, format=format,
            precision=precision, **self._common,
        )  # fmt: skip
        self._made.append(self._bench.add(variant, files, made_for))
        return self._made[-1]
