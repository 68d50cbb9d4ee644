"""Several models of one shape as one: their probabilities averaged.

Independent seeds: Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using Deep
Ensembles", NeurIPS 2017, section 2.4. Snapshots of one run: Huang et al., "Snapshot Ensembles", ICLR 2017, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cluster.variants import SequenceSpec
from train_jobs.models.ragged import sequence_of


class Ensemble(nn.Module):
    """Inputs of its members -> log of their mean probability (B, K): scores as a single classifier gives them, so that
    it is exported, compressed and served like one; or, where they are `averaging = "outputs"`, their mean output."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        assert members
        self.members = nn.ModuleList(members)
        self._probabilities = getattr(members[0], "averaging", "probabilities") == "probabilities"

    @property
    def preprocess(self) -> nn.Module:
        return self.members[0].preprocess  # type: ignore[return-value]

    @property
    def sequence(self) -> SequenceSpec | None:
        """See `sequence_of`."""
        return sequence_of(self.members[0])

    def forward(self, x: Tensor) -> Tensor:
        answers = torch.stack([member(x) for member in self.members])
        if not self._probabilities:
            return answers.mean(0)
        # log of the mean probability, without leaving the logarithm; the constant log(M) changes no decision
        return torch.logsumexp(torch.log_softmax(answers, dim=-1), dim=0) - torch.log(
            torch.tensor(float(len(self.members)), dtype=answers.dtype, device=answers.device)
        )
