"""Series of differing lengths in one batch: those that end early go on in rows of NaN, which stand for "not there".

A graph finds out by itself where each of its series ends, so one input says all, and what is answered to a series does
not depend on how far it was padded: a recurrent network reads forwards, and nobody looks at what comes after the end. A
NaN before the end is no padding, and is not understood: serve_apps/sequences.py refuses it.

Last rows are looked up by their place among all rows of the batch (index_select, ONNX's Gather), where every runtime
looks whether there is such a place. `gather` would become GatherElements, where OpenVINO does not, so that it is
refused (cluster/runtimes/openvino_runtime.py); to add up all states, others than the last as noughts, takes longer.

Shapes: B batch, L rows or steps of the longest series, C values of each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cluster.variants import SequenceSpec


def sequence_of(model: nn.Module | None) -> SequenceSpec | None:
    """The lengths that a model takes; None where there is only one."""
    found = getattr(model, "sequence", None)
    return found if isinstance(found, SequenceSpec) else None


def ended(rows: Tensor) -> Tensor:
    """Where series are over, for rows (..., C): bool (..., 1), by the first value of each row."""
    return rows[..., :1].isnan()


def emptied(rows: Tensor, ended: Tensor) -> Tensor:
    """Nought in place of what is not there."""
    return rows.masked_fill(ended, 0.0)


def last_step(states_SBD: Tensor, ended_SB1: Tensor) -> Tensor:
    """Each series' own last state, (B, D)."""
    batch = states_SBD.shape[1]
    places_B = _there(ended_SB1[1:, :, 0], 0) * batch + torch.arange(batch, device=states_SBD.device)
    return states_SBD.flatten(0, 1).index_select(0, places_B)


def last_row(x_BLC: Tensor) -> Tensor:
    """Each series' own last row, (B, 1, C)."""
    batch, longest = x_BLC.shape[:2]
    places_B = _there(x_BLC[:, 1:, 0].isnan(), 1) + longest * torch.arange(batch, device=x_BLC.device)
    return x_BLC.flatten(0, 1).index_select(0, places_B).unsqueeze(1)


def last_rows(x_BLC: Tensor, count: int) -> Tensor:
    """Each series' own last `count` rows, (B, count, C); a shorter one has its first row several times."""
    batch, longest = x_BLC.shape[:2]
    back_R = torch.arange(1 - count, 1, device=x_BLC.device)
    own_BR = (_there(x_BLC[:, 1:, 0].isnan(), 1).unsqueeze(1) + back_R).clamp(min=0)
    places_BR = own_BR + longest * torch.arange(batch, device=x_BLC.device).unsqueeze(1)
    return x_BLC.flatten(0, 1).index_select(0, places_BR.flatten()).reshape(batch, count, -1)


def mean_row(x_BLC: Tensor) -> Tensor:
    """Mean over each series' own rows, (B, 1, C). They are counted in whole numbers: bf16 knows none above 256 but the
    even ones."""
    ended_BL1 = ended(x_BLC)
    return emptied(x_BLC, ended_BL1).sum(1, keepdim=True) / (~ended_BL1).sum(1, keepdim=True)


def _there(ended: Tensor, axis: int) -> Tensor:
    """How many there are along `axis`. Of those after the first this is the place of the last one, and never below
    nought: nobody is answered by what lies before him in memory."""
    return (~ended).sum(axis)
