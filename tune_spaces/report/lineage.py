"""Variants -> a tree, parents above children, each with its accuracy in every runtime and the floor's verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.slo import AccuracyFloor
from cluster.stats import Verdict
from cluster.variants import Accuracy, Variant


@dataclass(frozen=True)
class Node:
    """One variant with those that were made from it."""

    variant: Variant
    children: tuple[Node, ...]


def tree(variants: Sequence[Variant]) -> list[Node]:
    """The roots, in the order given; a variant whose parent is not among them is one."""
    known = {v.id for v in variants}

    def below(parent: Variant) -> tuple[Node, ...]:
        return tuple(Node(v, below(v)) for v in variants if v.parent_id == parent.id)

    return [Node(v, below(v)) for v in variants if v.parent_id not in known]


def judged(variant: Variant, floor: AccuracyFloor) -> list[tuple[Accuracy, Verdict]]:
    return [(accuracy, floor.verdict(accuracy)) for accuracy in variant.accuracies]


def lines(nodes: Sequence[Node], indent: str | None = None) -> list[tuple[str, Variant]]:
    """(branches, variant), from top to bottom, as one draws a tree in text; `indent` None: these are roots."""
    drawn: list[tuple[str, Variant]] = []
    for number, node in enumerate(nodes):
        last = number == len(nodes) - 1
        branch, below = ("", "") if indent is None else ("└── ", "    ") if last else ("├── ", "│   ")
        drawn.append((f"{indent or ''}{branch}", node.variant))
        drawn += lines(node.children, f"{indent or ''}{below}")
    return drawn
