"""nn.Module -> a smaller nn.Module: whole channels removed, with everything that depends on them.

Which tensors must shrink together is read off the traced graph: Fang et al., "DepGraph: Towards Any Structural
Pruning", CVPR 2023, section 3 (Torch-Pruning). Channels go by the L2 norm of all weights in their group, the smallest
first (section 4.1 there; Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1, for one layer).
"""

from __future__ import annotations

import copy
import warnings

import torch
import torch_pruning as tp
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from cluster.errors import InvalidRequest
from cluster.variants import TensorSpec
from train_jobs.compression.finetune import FinetuneConfig
from train_jobs.export import example_of


class PruneConfig(BaseModel):
    """Parameters of the pass, as they stand in the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    ratio: float = Field(default=0.3, gt=0, lt=1)
    """Share of the channels of each layer that goes."""
    round_to: int = Field(default=8, ge=1)
    """Channels are kept in multiples of this: kernels work in vectors of eight floats or more."""
    finetune: FinetuneConfig = FinetuneConfig()


def prune(model: nn.Module, config: PruneConfig, *, inputs: TensorSpec) -> nn.Module:
    """A smaller copy, not yet fine-tuned; its outputs keep their shape, so that its answers mean the same.

    `model` itself stays as it is. Raises InvalidRequest if it cannot be traced, or no layer has channels to spare.
    """
    # The graph is read off autograd's: what its owner has frozen would be missing there (and could not be fine-tuned).
    pruned = copy.deepcopy(model).eval().requires_grad_(True)
    before = _parameters(pruned)
    try:
        example = example_of(inputs)
        expected = _shape(pruned, example)
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            pruner = tp.pruner.BasePruner(
                pruned, example, importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=config.ratio,
                round_to=config.round_to, ignored_layers=_last_layers(pruned, example),
            )  # fmt: skip
            pruner.step()
        shape = _shape(pruned, example)
    except Exception as error:
        raise InvalidRequest(f"the model cannot be pruned as a graph ({error!r}); leave pruning out") from error
    if shape != expected:
        raise InvalidRequest(f"pruning would change the output from {expected} to {shape}; leave it out")
    if _parameters(pruned) >= before:
        raise InvalidRequest(
            f"no layer has channels to spare at ratio={config.ratio} in steps of round_to={config.round_to}; raise the "
            "ratio or lower round_to"
        )
    return pruned


@torch.inference_mode()
def _shape(model: nn.Module, example: torch.Tensor) -> list[int]:
    return list(model(example).shape)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _last_layers(model: nn.Module, example: torch.Tensor) -> list[nn.Module]:
    """The layer with weights that ran last: its channels are the model's answers."""
    ran: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: ran.append(module))
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    ]
    try:
        with torch.inference_mode():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return ran[-1:]
