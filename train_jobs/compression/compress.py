"""TrainedModel + CompressSpec -> measured variants, each from its parent by its passes. For a classifier, by default:

    fp32-torch (the trained module)      only where there is a module; an imported ONNX file begins at fp32
    ├── fp32 (ONNX)
    │   ├── int8
    │   └── bf16
    └── pruned (ONNX, fine-tuned)
        └── pruned-int8
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from pydantic import JsonValue
from safetensors.torch import save
from torch import nn

from cluster import hardware
from cluster.artifacts import ArtifactStore
from cluster.errors import ConfigError, InvalidRequest, SluiceError, TrainingFailed
from cluster.runtimes import RuntimeName
from cluster.variants import THRESHOLD, Pass, Variant
from train_jobs import weights
from train_jobs.compression import threshold
from train_jobs.compression.passes import Passes, Work
from train_jobs.compression.spec import CompressSpec, Steps, default_spec
from train_jobs.compression.subject import ReconstructSubject
from train_jobs.compression.trained import TrainedModel, described
from train_jobs.evaluate import Bench
from train_jobs.export import to_torch_archive
from train_jobs.models.ragged import sequence_of

Notify = Callable[[str], None]


def compress(
    store: ArtifactStore, model: TrainedModel, dataset: Any, steps: Steps, *, name: str,
    notify: Notify = lambda line: None,
) -> Variant:  # fmt: skip
    """One variant, "<model>/<name>", made by `steps` and measured; what it comes from is stored along with it.

    Raises InvalidRequest, TrainingFailed or ConfigError if a pass cannot be applied, naming the pass's reason.
    """
    line = _Line(store, model, dataset, notify)
    line.roots()
    return line.add(name, steps)


def build_variants(
    store: ArtifactStore, model: TrainedModel, dataset: Any, spec: CompressSpec | None = None, *,
    notify: Notify = lambda line: None,
) -> list[Variant]:  # fmt: skip
    """The variants of `spec`, measured, stored and named "<name>/...", parents before children, after those that all
    start from.

    A variant whose passes this model does not take is left out, and `notify` told why; what it starts from must run.
    Raises InvalidRequest if that does not.
    """
    spec = spec or default_spec(model.family)
    line = _Line(store, model, dataset, notify)
    line.roots()
    # A child's passes begin with all of its parent's, so shorter lists come first.
    for name, steps in sorted(spec.variants.items(), key=lambda item: spec.depth(item[0])):
        try:
            line.add(name, steps)
        except (InvalidRequest, TrainingFailed) as error:
            notify(f"{name}: left out: {error}")
    return line.made


class _Line:
    """The variants of one model in the making."""

    def __init__(self, store: ArtifactStore, model: TrainedModel, dataset: Any, notify: Notify) -> None:
        self.made: list[Variant] = []
        self._model, self._notify = model, notify
        self._subject = model.subject_on(dataset)
        self._passes = Passes(model, self._subject, notify)
        subject = self._subject
        odd_from = partial(threshold.in_runtime, subject=subject) if isinstance(subject, ReconstructSubject) else None
        self._bench = Bench(store, subject.judge(), notify, odd_from)
        self._work: dict[Steps, Work | SluiceError] = {}
        self._variants: dict[Steps, Variant] = {}
        """Those that have a name, by what made them."""
        self._trained: Variant | None = None
        facts: Mapping[str, JsonValue] = {"dataset": described(dataset), "made_on": hardware.fingerprint()}
        # Passes see the one length that the model was trained on; its graphs take others too.
        sequence, inputs = sequence_of(model.module), self._subject.inputs
        self._common: dict[str, Any] = {
            "family": model.family, "inputs": (sequence.freed(inputs) if sequence else inputs,),
            "outputs": self._subject.outputs, "sequence": sequence, "prior": self._subject.prior,
            "labels": self._subject.labels,
            "preprocessing": model.preprocessing, "provenance": {**model.provenance, **facts},
        }  # fmt: skip

    def roots(self) -> None:
        """The trained module, if there is one, and its graph. Raises InvalidRequest if they do not run."""
        module, graph = self._model.module, self._model.onnx
        if module is None and graph is None:
            raise ConfigError(f"model {self._model.name} has neither a module nor an ONNX graph; pass one of them")
        if module is not None:
            files = {"weights.safetensors": save(weights.separate(module))}
            self._trained = self._store(
                "fp32-torch", None, (Pass(name="train"),), module, files, format="torch_export", made_for="torch"
            )
        first = Work(module, graph, (Pass(name="import_onnx"),) if graph is not None else ())
        exported = self._passes.exported(first)
        assert exported.graph is not None
        self._variants[()] = self._store("fp32", self._trained, exported.passes, exported.graph)
        self._work[()] = exported

    def add(self, name: str, steps: Steps) -> Variant:
        """One more variant. Raises what its passes raise."""
        made = self._passes.exported(self._after(steps))
        assert made.graph is not None
        parent, before = self._parent(steps)
        self._variants[steps] = self._store(
            name, parent, made.passes[before:], made.graph, precision=made.precision
        )
        return self._variants[steps]

    def _after(self, steps: Steps) -> Work:
        """What these passes make; nothing is made twice, and what failed fails again in the same words."""
        if steps not in self._work:
            try:
                before = self._after(steps[:-1])
                if steps[-1].of.stage == "module" and before.module is not None:
                    before = Work(before.module, None, _without_export(before.passes), before.precision)
                self._work[steps] = self._passes.apply(steps[-1], before)
            except SluiceError as error:
                self._work[steps] = error
        found = self._work[steps]
        if isinstance(found, SluiceError):
            raise found
        return found

    def _parent(self, steps: Steps) -> tuple[Variant, int]:
        """The variant whose passes these begin with, the longest such, and how many of them it has done. What begins
        on the module comes from the trained module itself."""
        for length in range(len(steps) - 1, 0, -1):
            if steps[:length] in self._variants:
                done = self._passes.exported(self._after(steps[:length])).passes
                trains = steps[length].of.stage == "module"  # and so goes on from the module, not from its graph
                return self._variants[steps[:length]], len(_without_export(done) if trains else done)
        if steps[0].of.stage == "module" and self._trained is not None:
            return self._trained, 0
        return self._variants[()], len(self._after(()).passes)

    def _store(
        self, name: str, parent: Variant | None, passes: tuple[Pass, ...], model: nn.Module | bytes,
        files: Mapping[str, bytes] = MappingProxyType({}), *, format: str = "onnx",
        made_for: RuntimeName = "onnxruntime", precision: str = "fp32",
    ) -> Variant:  # fmt: skip
        common = dict(self._common)
        if isinstance(self._subject, ReconstructSubject):
            found = threshold.of(model, self._subject)
            model = threshold.told(model, found.value)
            common["outputs"] = (*common["outputs"], THRESHOLD)
            common["provenance"] = {**common["provenance"], "threshold": found._asdict()}
        variant = Variant(
            name=f"{self._model.name}/{name}", parent_id=parent.id if parent else None, passes=passes,
            format=format, precision=precision, **common,
        )  # fmt: skip
        if isinstance(model, bytes):
            files = {"model.onnx": model, **files}
        else:
            files = {"model.pt2": to_torch_archive(model, self._subject.inputs), **files}
        self.made.append(self._bench.add(variant, files, made_for))
        return self.made[-1]


def _without_export(passes: tuple[Pass, ...]) -> tuple[Pass, ...]:
    return tuple(each for each in passes if each.name != "export_onnx")
