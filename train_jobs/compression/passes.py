"""One pass, applied to a model in the making: module passes first, then passes on the graph that is exported of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import onnxruntime
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from cluster.errors import InvalidRequest, SluiceError, TrainingFailed
from cluster.variants import Pass, Precision
from train_jobs.compression.cast import to_bf16, to_fp16
from train_jobs.compression.dynamic import dynamic
from train_jobs.compression.early_exit import early_exit
from train_jobs.compression.equalise import equalise
from train_jobs.compression.finetune import finetune
from train_jobs.compression.low_rank import low_rank
from train_jobs.compression.mixed import mixed
from train_jobs.compression.optimise import optimise
from train_jobs.compression.prune import prune
from train_jobs.compression.qat import qat, to_qdq
from train_jobs.compression.quantize import quantize
from train_jobs.compression.sparsify import masks, sparsify, zeros
from train_jobs.compression.spec import Step
from train_jobs.compression.student import distill, student_of
from train_jobs.compression.subject import Subject
from train_jobs.compression.trained import TrainedModel
from train_jobs.compression.weight_only import weight_only
from train_jobs.export import to_onnx

_SCORED = 0.1
"""Share of the training samples by which int8_mixed judges its layers: never the test part."""


@dataclass(frozen=True)
class Work:
    """A model between two passes. `passes`: what has been done to it, as manifests tell it."""

    module: nn.Module | None
    graph: bytes | None
    passes: tuple[Pass, ...] = ()
    precision: Precision = "fp32"

    def then(self, step: Step, *told: Pass, **made: Any) -> Work:
        return replace(self, passes=(*self.passes, *told), precision=step.of.precision or self.precision, **made)


class Passes:
    """Applies passes to one trained model."""

    def __init__(self, model: TrainedModel, subject: Subject, notify: Callable[[str], None]) -> None:
        self._model, self._subject, self._notify = model, subject, notify

    def apply(self, step: Step, work: Work) -> Work:
        """The model after one more pass. Raises InvalidRequest for a pass that it does not take, TrainingFailed for
        fine-tuning that fails, ConfigError for settings that do not fit its family."""
        if step.of.stage == "graph":
            graph = self.exported(work).graph
            assert graph is not None
            return self._on_graph(step, self.exported(work), graph)
        if work.module is None:
            raise InvalidRequest(
                f"{step.kind} trains the torch module, and the model is an ONNX file; pass the module instead "
                "(pkg.module:name), or leave the pass out"
            )
        try:
            return self._on_module(step, work, work.module)
        except SluiceError:
            raise
        except Exception as error:  # somebody's own module is in training mode here, perhaps for the first time
            raise TrainingFailed(f"the model does not train here ({error!r})"[:400]) from error

    def exported(self, work: Work) -> Work:
        """With its ONNX graph. Raises InvalidRequest if it cannot be exported."""
        if work.graph is not None:
            return work
        assert work.module is not None
        graph = to_onnx(work.module, self._subject.inputs, [spec.name for spec in self._subject.outputs])
        return replace(work, graph=graph, passes=(*work.passes, Pass(name="export_onnx")))

    def _on_module(self, step: Step, work: Work, module: nn.Module) -> Work:
        config: Any = step.config
        subject, inputs = self._subject, self._subject.inputs
        told = [_told(step, config)]
        match step.kind:
            case "prune":
                smaller = prune(
                    module, config, inputs=inputs, subject=subject, hold_zeros=_is_sparse(work), notify=self._notify
                )
                made = self._finetuned(smaller, config.finetune, frozen_zeros=_held(work, smaller))
            case "sparsify":
                sparse = sparsify(module, config)
                made = self._finetuned(sparse, config.finetune, frozen_zeros=masks(sparse))
                self._notify(f"{zeros(made):.1%} of the weights are zero")
            case "low_rank":
                made = self._finetuned(low_rank(module, config, inputs=inputs), config.finetune)
            case "distill":
                if self._model.config is None or not self._model.shapes:
                    raise InvalidRequest(
                        "distill builds a narrower model of the same kind, and knows no kind of a model that Sluice "
                        "did not train; train it by a recipe, or leave the pass out"
                    )
                student = student_of(self._model.config, self._model.shapes, config.width, config.depth)
                made = distill(student, module, subject, config, notify=self._notify)
            case "finetune":
                made = self._finetuned(module, config, frozen_zeros=_held(work, module))
            case "early_exit":
                found = early_exit(module, subject, config, notify=self._notify)
                self._notify(f"early exit: {found.leaves:.0%} leave at a probability of {found.threshold:.3f} or more")
                told[0] = told[0].model_copy(update={"params": {**told[0].params, "threshold": found.threshold}})
                told.append(Pass(name="finetune", params=config.finetune.model_dump(mode="json")))
                return work.then(step, *told, Pass(name="export_onnx"), module=None, graph=found.graph)
            case "qat":
                trained = qat(
                    module, subject, config, teacher=self._model.module, hold_zeros=_is_sparse(work),
                    notify=self._notify,
                )  # fmt: skip
                plain = self.exported(Work(trained.module, None)).graph
                assert plain is not None
                samples = subject.samples(config.quantize.samples)
                graph = to_qdq(plain, trained, samples, config, inputs=inputs)
                return work.then(step, *told, Pass(name="export_onnx"), module=trained.module, graph=graph)
            case _:
                raise AssertionError(step.kind)
        if hasattr(config, "finetune"):
            told.append(Pass(name="finetune", params=config.finetune.model_dump(mode="json")))
        return work.then(step, *told, module=made, graph=None)

    def _finetuned(self, module: nn.Module, config: Any, **more: Any) -> nn.Module:
        return finetune(
            module, self._subject, config, teacher=self._model.module, notify=self._notify, **more
        )

    def _on_graph(self, step: Step, work: Work, graph: bytes) -> Work:
        config: Any = step.config
        inputs = self._subject.inputs
        told = _told(step, config)
        match step.kind:
            case "int8":
                # Calibration samples come from the training set; the test set judges and nothing else.
                made = quantize(graph, self._subject.samples(config.samples), config, inputs=inputs)
            case "int8_mixed":
                samples = self._subject.samples(config.quantize.samples)
                made, kept = mixed(graph, samples, config, inputs=inputs, score=self._score(graph))
                told = told.model_copy(update={"params": {**told.params, "kept_fp32": list(kept)}})
                self._notify(f"int8_mixed: {len(kept)} layers stay fp32: {', '.join(kept) or 'none'}")
            case "int8_dynamic":
                made = dynamic(graph, config)
            case "weight_only":
                made = weight_only(graph, config)
            case "equalise":
                made = equalise(graph, config, samples=self._subject.samples(config.samples), inputs=inputs)
            case "bf16":
                made = to_bf16(graph)
            case "fp16":
                made = to_fp16(graph)
            case "optimise":
                made = optimise(graph, config.level)
            case _:
                raise AssertionError(step.kind)
        return work.then(step, told, graph=made)

    def _score(self, fp32: bytes) -> Callable[[bytes], float]:
        """Of a graph, on training samples; errors as shares of the fp32 graph's."""

        def value(graph: bytes) -> float:
            return self._subject.validation(_GraphModule(graph), seed=0, validation=_SCORED)

        shares = self._subject.judge().metric.higher_is_better
        whole = 1.0 if shares else max(abs(value(fp32)), 1e-12)
        return lambda graph: value(graph) / whole


def _held(work: Work, module: nn.Module) -> dict[str, Tensor]:
    """What an earlier sparsify set to zero: later training in these passes leaves it so."""
    return masks(module) if _is_sparse(work) else {}


def _is_sparse(work: Work) -> bool:
    return any(done.name == "sparsify" for done in work.passes)


def _told(step: Step, config: BaseModel) -> Pass:
    return Pass(name=step.of.manifest, params=config.model_dump(mode="json", exclude={"finetune"}))


class _GraphModule(nn.Module):
    """A graph that answers as the module does that it was exported of."""

    def __init__(self, graph: bytes) -> None:
        super().__init__()
        self._session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self._entry = self._session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Any:
        made = [torch.from_numpy(each) for each in self._session.run(None, {self._entry: x.contiguous().numpy()})]
        return made[0] if len(made) == 1 else tuple(made)
