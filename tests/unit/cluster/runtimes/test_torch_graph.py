"""The JSON of a graph is code to torch: what could run is refused, what only computes passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cluster.errors import ArtifactError
from cluster.runtimes.torch_archive import load_pickle_free, save_pickle_free
from tests.unit.cluster.runtimes.archives import (
    EXAMPLE,
    GRAPH,
    Attack,
    Entries,
    export,
    packed,
    refused_though_torch_falls_for_it,
    tampered,
    unpacked,
)


@pytest.mark.parametrize(
    ("name", "function", "shape"),
    [
        ("string argument", lambda x: nn.functional.gelu(x, approximate="tanh"), (4,)),
        ("einsum", lambda x: torch.einsum("bi,bj->bij", x, x), (4,)),
        ("floor division of a size", lambda x: x.reshape(-1, 2)[: x.shape[0] * 2 // 2], (4,)),
        ("logic", lambda x: ((x > 0) & (x < 1)).float(), (4,)),
        ("pool", lambda x: nn.functional.max_pool2d(x, 2), (1, 8, 8)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ordinary_graphs_pass(name: str, function: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int]) -> None:
    class Wrapped(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x)

    x = torch.randn(3, *shape)
    torch.testing.assert_close(load_pickle_free(save_pickle_free(export(Wrapped(), x))).module()(x), function(x))


def test_an_lstm_passes() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 8, num_layers=2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(x)[0]

    model, x = Recurrent(), torch.randn(3, 5, 4)
    torch.testing.assert_close(load_pickle_free(save_pickle_free(export(model, x))).module()(x), model(x))


def test_a_program_with_a_foreign_operator_is_not_saved() -> None:
    class Scoped(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                doubled = x * 2
            return doubled + 1

    with pytest.raises(ArtifactError, match="higher_order"):
        save_pickle_free(export(Scoped(), EXAMPLE))


def _call(graph: dict[str, Any], target: str, *arguments: dict[str, Any]) -> None:
    """Put a node that calls `target` before all others; it claims to return a tensor, as torch wants."""
    module = graph["graph_module"]["graph"]
    module["tensor_values"]["evil"] = {
        "dtype": 7, "sizes": [{"as_int": 4}], "requires_grad": False, "device": {"type": "cpu", "index": None},
        "strides": [{"as_int": 1}], "storage_offset": {"as_int": 0}, "layout": 7,
    }  # fmt: skip
    node = {
        "target": target, "inputs": [{"kind": 1} | argument for argument in arguments],
        "outputs": [{"as_tensor": {"name": "evil"}}], "metadata": {}, "is_hop_single_tensor_return": None,
        "name": "evil",
    }  # fmt: skip
    module["nodes"].insert(0, node)


def in_an_operator(data: bytes, path: Path) -> Entries:
    arguments = (
        {"name": "filename", "arg": {"as_string": str(path)}},
        {"name": "shared", "arg": {"as_bool": True}},
        {"name": "size", "arg": {"as_int": 4}},
    )
    return tampered(data, GRAPH, lambda graph: _call(graph, "torch.ops.aten.from_file.default", *arguments))


def in_a_size(data: bytes, path: Path) -> Entries:
    def change(graph: dict[str, Any]) -> None:
        for value in graph["graph_module"]["graph"]["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = f"open({str(path)!r}, 'w') and 3"

    return tampered(data, GRAPH, change)


def in_a_size_without_a_quote_or_a_dot(data: bytes, path: Path) -> Entries:
    """sympy leaves eval and chr within reach."""
    code = "+".join(f"chr({ord(letter)})" for letter in f"open({str(path)!r},'w') and 3")

    def change(graph: dict[str, Any]) -> None:
        for value in graph["graph_module"]["graph"]["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = f"eval({code})"

    return tampered(data, GRAPH, change)


def in_the_name_of_an_argument(data: bytes, path: Path) -> Entries:
    """Names are pasted into the source of the graph's function: here, as a default value."""
    text = unpacked(data)[GRAPH].decode()
    name = json.dumps(f"x=open({str(path)!r},'w')")
    return unpacked(data) | {GRAPH: text.replace('"x"', name).encode()}


@pytest.mark.parametrize(
    "attack",
    [
        in_an_operator,
        in_a_size,
        in_a_size_without_a_quote_or_a_dot,
        in_the_name_of_an_argument,
    ],
    ids=lambda attack: attack.__name__,
)
def test_an_attack_that_torch_falls_for_is_refused(attack: Attack, ours: bytes, tmp_path: Path) -> None:
    refused_though_torch_falls_for_it(attack, ours, tmp_path)


@pytest.mark.parametrize("target", ["torch.os.system", "torch.load", "torch.ops.aten.save.default", "torch.hub.load",
                                    "torch.ops.aten.from_file.default", "_operator.methodcaller", "math.prod",
                                    "torch.ops.higher_order.cond", "torch.ops.aten.__class__.mro"])  # fmt: skip
def test_operators_that_are_no_arithmetic_are_refused(target: str, ours: bytes) -> None:
    data = packed(tampered(ours, GRAPH, lambda graph: _call(graph, target)))
    with pytest.raises(ArtifactError, match=target.replace(".", r"\.")):
        load_pickle_free(data)


def _module(graph: dict[str, Any]) -> dict[str, Any]:
    return graph["graph_module"]


@pytest.mark.parametrize(
    "change",
    [
        lambda g: g.update(guards_code=["__import__('os').system('true')"]),
        lambda g: _module(g)["graph"]["nodes"][0].update(metadata={"stack_trace": "File \"/home/me/x.py\""}),
        lambda g: _module(g).update(metadata={"custom": '{"a": 1}'}),
        lambda g: _module(g)["module_call_graph"][0]["signature"].update(forward_arg_names=["x=print(1)"]),
        lambda g: _module(g)["module_call_graph"][0]["signature"].update(
            out_spec='[1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]'
        ),
        lambda g: _module(g)["module_call_graph"][0]["signature"].update(
            in_spec='[1, {"type": "builtins.dict", "context": "[\\"x=print(1)\\"]", "children_spec": []}]'
        ),
        lambda g: g.update({"range_constraints": {"s0; import os": {"min_val": 1, "max_val": 2}}}),
    ],
    ids=["guards", "notes", "custom", "argument-names", "container", "keyword", "key"],
)
def test_whatever_torch_would_paste_into_code_is_refused(change: Callable[[dict[str, Any]], None], ours: bytes) -> None:
    with pytest.raises(ArtifactError, match="export the variant"):
        load_pickle_free(packed(tampered(ours, GRAPH, change)))
