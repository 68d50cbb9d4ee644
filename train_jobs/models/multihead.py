"""A classifier with further heads on what its last layer decides upon: they teach it, and nobody serves them.

Hard parameter sharing: Caruana, "Multitask Learning", Machine Learning 28, 1997, section 2.

Shapes: B batch, D features, K classes of a head.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class MultiHead(nn.Module):
    """Inputs of its trunk -> the trunk's logits (B, K). What is exported is the trunk alone."""

    def __init__(self, trunk: nn.Module, heads: Mapping[str, int]) -> None:
        """`trunk` has penultimate() and blocks(), the last of which makes logits of it; `heads`: classes by name."""
        super().__init__()
        self.trunk = trunk
        width = self._last.in_features
        self.heads = nn.ModuleDict({name: nn.Linear(width, classes) for name, classes in heads.items()})

    @property
    def _last(self) -> nn.Linear:
        last = self.trunk.blocks()[-1]  # type: ignore[operator]
        assert isinstance(last, nn.Linear)
        return last

    @property
    def preprocess(self) -> nn.Module:
        return self.trunk.preprocess  # type: ignore[return-value]

    def penultimate(self, x: Tensor) -> Tensor:
        """What all heads decide upon, (B, D)."""
        return self.trunk.penultimate(x)  # type: ignore[operator, no-any-return]

    def blocks(self) -> list[nn.Module]:
        """From the input to the heads, which are one block."""
        *before, last = self.trunk.blocks()  # type: ignore[operator]
        return [*before, nn.ModuleList([last, self.heads])]

    def decide(self, features_BD: Tensor, head: str | None = None) -> Tensor:
        """Logits (B, K) of a head, or, without a name, of the trunk's own."""
        decision: Tensor = (self._last if head is None else self.heads[head])(features_BD)
        return decision

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(x)  # type: ignore[no-any-return]
