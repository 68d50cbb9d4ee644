"""nn.Module -> graph bytes: an ONNX file or a torch.export archive, preprocessing inside; the batch is free,
and the length of series in models that take any (train_jobs/models/ragged.py)."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch._decomp import global_decomposition_table

from cluster.errors import InvalidRequest
from cluster.runtimes.torch_archive import save_pickle_free
from cluster.tensors import NUMPY_OF_DATATYPE
from cluster.variants import TensorSpec
from train_jobs.models.ragged import sequence_of

INPUT = TensorSpec(name="image", datatype="UINT8", shape=(-1, 1, 28, 28))
"""What our own picture classifiers take."""
_AXIS = numpy_helper.from_array(np.array([1], np.int64), "axis_of_directions")


def output_spec(classes: int) -> TensorSpec:
    """Logits, float32 (B, classes)."""
    return TensorSpec(name="logits", datatype="FP32", shape=(-1, classes))


def example_of(spec: TensorSpec, rows: int = 2) -> torch.Tensor:
    """Zeros of that shape and datatype. Two rows: a batch of one would be taken for a constant."""
    dtype = NUMPY_OF_DATATYPE[spec.datatype]
    return torch.zeros((rows, *spec.shape[1:]), dtype=getattr(torch, dtype.name))


def to_onnx(model: nn.Module, inputs: TensorSpec = INPUT, outputs: Sequence[str] = ("logits",)) -> bytes:
    """The model as ONNX, opset 18, its answers named `outputs`, weights inside the file; the same model gives the same
    bytes wherever it is made.

    Raises InvalidRequest, with torch's words, if it is no graph of a free batch.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter's notes to its own developers
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        path = Path(folder) / "model.onnx"
        try:
            with _cells_of_any_length():
                torch.onnx.export(
                    model.eval(), (example_of(inputs),), str(path), dynamo=True, opset_version=18, external_data=False,
                    verbose=False, input_names=[inputs.name], output_names=list(outputs), dynamic_shapes=_free(model),
                )  # fmt: skip
        except Exception as error:
            raise InvalidRequest(_no_graph("ONNX", error)) from error
        return bytes(_lean(without_notes(onnx.load(path))).SerializeToString())


def without_notes(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` without what its exporter noted for its own developers: stack traces with the paths of one machine."""
    for holder in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        for field in ("metadata_props", "doc_string"):
            if any(described.name == field for described in holder.DESCRIPTOR.fields):
                holder.ClearField(field)
    return model


def _lean(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` without what the exporter puts around recurrent cells, which costs as much as a step of a small one:
    first states of nought, with which ONNX begins by itself, and how it takes out an axis that is 1 long."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "LSTM" and all(_is_nought(name, makers, constants) for name in node.input[5:7]):
            del node.input[4:]  # lengths, which it leaves out, and both states
        turned = makers.get(node.input[0]) if node.op_type == "Reshape" else None
        if turned is None or turned.op_type != "Transpose" or not _gives_states(makers.get(turned.input[0])):
            continue
        node.input[0] = turned.input[0]  # (S, 1, B, D): turned or not, its values lie alike
        if node.input[1] not in constants:  # (S, B, D), told by what it was
            node.op_type = "Squeeze"
            node.input[1] = _AXIS.name
            del node.attribute[:]
    graph.initializer.append(_AXIS)
    _sweep(graph)
    return model


def _sweep(graph: onnx.GraphProto) -> None:
    """Leave what its outputs need."""
    read, nodes = {output.name for output in graph.output}, []
    for node in reversed(graph.node):
        if read.intersection(node.output):
            nodes.append(node)
            read.update(node.input)
    constants = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(constants)


def _gives_states(node: onnx.NodeProto | None) -> bool:
    """Of a cell that reads forwards alone?"""
    return node is not None and node.op_type == "LSTM" and all(
        each.s == b"forward" for each in node.attribute if each.name == "direction"
    )


def _is_nought(name: str, makers: dict[str, onnx.NodeProto], constants: dict[str, onnx.TensorProto]) -> bool:
    """Noughts of whatever shape?"""
    while name in makers and makers[name].op_type in ("Slice", "Expand"):
        name = makers[name].input[0]
    return name in constants and not numpy_helper.to_array(constants[name]).any()


def to_torch_archive(model: nn.Module, inputs: TensorSpec = INPUT) -> bytes:
    """The model as an exported torch program. Raises InvalidRequest as `to_onnx` does."""
    try:
        with _cells_of_any_length():
            program = torch.export.export(model.eval(), (example_of(inputs),), dynamic_shapes=_free(model))
    except Exception as error:
        raise InvalidRequest(_no_graph("a torch program", error)) from error
    # A size such as 24 * steps has limits of its own there; those of the steps say as much.
    for size in [size for size in program.range_constraints if not size.is_Symbol]:
        del program.range_constraints[size]
    return save_pickle_free(program)


def _free(model: nn.Module) -> tuple[dict[int, Any]]:
    """Which axes of the input are free, and by what."""
    axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    sequence = sequence_of(model)
    if sequence is not None:
        # One step and two are computed as well, but torch would have them proved apart: behind the first step there are
        # none or one then, and such sizes have laws of their own.
        steps = torch.export.Dim("steps", min=3)
        axes[sequence.axis] = steps if sequence.multiple_of == 1 else sequence.multiple_of * steps
    return (axes,)


@contextlib.contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """While it exports, torch works out an LSTM's shapes by unrolling it, and takes the example's steps for a law. The
    node in the graph is the same either way; here its shapes come from what it is given. (torch's own remedy, in
    torch/export/_patches.py, does the same to these tables with a loop in place of the node.)"""
    cell = torch.ops.aten.lstm.input
    composite, autograd = torch._C.DispatchKey.CompositeImplicitAutograd, torch._C.DispatchKey.Autograd
    tables: list[tuple[dict[Any, Any], Any]] = [
        (global_decomposition_table["post_autograd"], cell), (cell.py_kernels, composite), (cell.py_kernels, autograd),
    ]  # fmt: skip
    before = [table[key] for table, key in tables]
    for table, key in tables:
        table[key] = _shapes_of_lstm
    cell._dispatch_cache.clear()  # else torch goes on with what it looked up before, and so it would afterwards
    try:
        yield
    finally:
        for (table, key), kernel in zip(tables, before, strict=True):
            table[key] = kernel
        cell._dispatch_cache.clear()


def _shapes_of_lstm(input: Tensor, hx: Sequence[Tensor], *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, bidirectional, _ = settings
    states = input.new_empty((*input.shape[:2], hx[0].shape[2] * (2 if bidirectional else 1)))
    return states, torch.empty_like(hx[0]), torch.empty_like(hx[1])


def _no_graph(what: str, error: Exception) -> str:
    cause = error.__cause__ or error
    told = " ".join(str(cause).split())[:400]
    return (
        f"the model cannot be exported as {what} whose batch is free ({type(cause).__name__}: {told}); write its "
        "forward so that torch.export follows it (no branches on values, no fixed batch), or bring an ONNX file"
    )
