"""The graph of a torch.export archive as JSON -> the same JSON, proved to be nothing but tensor arithmetic.

torch rebuilds Python source from this JSON and runs it: a size's expression goes through sympy's `eval`, guards and
arguments' names are pasted into code, an operator is looked up from `torch` downward (only a later check of torch's own
keeps "torch.os.system" out), and some of ATen's make files. So what may stand here is listed, and the rest is refused:
operators of ATen that touch no file, expressions built from sympy's own constructors, containers of Python's own, and
otherwise plain names.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from cluster.errors import ArtifactError

_OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!(from_file|save|load)\.)((?!__)\w+|__i?(and|or|xor|lshift|rshift)__)\.(?!__)\w+"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|torch\.sym_(float|int|max|min|not|sum|ite|sqrt)",
    re.ASCII,
)
_PLAIN = re.compile(r"[\w.+]*", re.ASCII)
_TEXT = re.compile(r"[\w.,>+ -]*", re.ASCII)
"""A string argument of an operator, as in einsum's "bij,bjk->bik": torch quotes it."""
_CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict"}
_CONSTRUCTORS = {
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "And", "Or", "Not", "Equality",
    "Unequality", "LessThan", "StrictLessThan", "GreaterThan", "StrictGreaterThan", "FloorDiv", "ModularIndexing",
    "Where", "PythonMod", "Mod", "CleanDiv", "CeilDiv", "CeilToInt", "FloorToInt", "TruncToInt", "RoundToInt",
    "PowByNatural", "IntTrueDiv", "FloatTrueDiv", "ToFloat", "Identity",
}  # fmt: skip
_NODES = (ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.UnaryOp, ast.USub)


def without_notes(graph: dict[str, Any]) -> dict[str, Any]:
    """`graph` without what torch keeps for its developers: source lines with their paths, and guards as code.

    A guard says what TensorSpec says too; what stays is the arithmetic alone, so it hashes alike wherever it was made.
    """
    module = graph["graph_module"]
    nodes = [node | {"metadata": {}} for node in module["graph"]["nodes"]]
    return graph | {
        "guards_code": [],
        "graph_module": module | {"metadata": {}, "graph": module["graph"] | {"nodes": nodes}},
    }


def refuse_code(text: str) -> None:
    """Raise ArtifactError unless the JSON in `text` is a graph of listed operators on plainly named values."""
    graph = json.loads(text)
    if graph.get("guards_code"):
        raise ArtifactError(_refusal("guards as code", graph["guards_code"]))
    _walk(graph, "")


def _walk(value: Any, key: str) -> None:
    """Check every string below `value`, which stands under `key`."""
    if isinstance(value, dict):
        for name, below in value.items():
            if not _PLAIN.fullmatch(name):
                raise ArtifactError(_refusal("the name", name))
            _walk(below, name)
    elif isinstance(value, list):
        for below in value:
            _walk(below, key)
    elif isinstance(value, str):
        _check(value, key)


def _check(value: str, key: str) -> None:
    if key in ("target", "as_operator"):
        if value.startswith(("torch", "_operator", "math", "#")) and not _OPERATOR.fullmatch(value):
            raise ArtifactError(_refusal("the operator", value))
    elif key == "expr_str":
        _check_expression(value)
        return
    elif key in ("in_spec", "out_spec"):
        _check_tree(json.loads(value)[1])
        return
    if not (_TEXT if key == "as_string" else _PLAIN).fullmatch(value):
        raise ArtifactError(_refusal(f"under {key!r}", value))


def _check_expression(text: str) -> None:
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ArtifactError(_refusal("the size", text)) from error
    for node in nodes:
        known = isinstance(node, _NODES)
        if isinstance(node, ast.Call):
            known = isinstance(node.func, ast.Name) and node.func.id in _CONSTRUCTORS
        elif isinstance(node, ast.Name):
            known = node.id in _CONSTRUCTORS or node.id in ("true", "false")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            known = bool(_PLAIN.fullmatch(node.value))
        if not known:
            raise ArtifactError(_refusal("the size", text))


def _check_tree(tree: dict[str, Any]) -> None:
    """How arguments nest: containers of Python's own, and a dict's keys, which become names of arguments."""
    if tree["type"] not in _CONTAINERS:
        raise ArtifactError(_refusal("the container", tree["type"]))
    context = json.loads(tree["context"]) if tree["context"] else None
    names = context if isinstance(context, list) else [context]
    if not all(name is None or (isinstance(name, str) and _PLAIN.fullmatch(name)) for name in names):
        raise ArtifactError(_refusal("the argument", tree["context"]))
    for child in tree["children_spec"]:
        _check_tree(child)


def _refusal(what: str, value: object) -> str:
    return f"the torch archive holds {what} {str(value)[:120]!r}, which could run code; export the variant without it"
