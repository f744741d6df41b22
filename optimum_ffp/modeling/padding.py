"""A pruned model in the layout of its dense model, by which it is pruned further as the dense one is pruned."""

import copy
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ..allocation.policy import Group, PruningPolicy, UnitSize
from ..errors import convert_errors, one_line
from .families import TransposedLinear, decoder_layers, find_family, find_units, outer_matrices


def padded(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    rows: Sequence[UnitSize],
    kept_tokens: torch.Tensor | None = None,
) -> PreTrainedModel:
    """Return a model of the dense model's sizes that computes what the pruned one does, with zeros for what it lacks.

    If its vocabulary is trimmed to `kept_tokens`, the others have the rows of the dense model. The groups that remain
    come first. Its config has the rows of the policy, `pruned_units`. Raises `FFPError` if the policy isn't one of
    this dense model.
    """
    model = copy.deepcopy(dense)
    model.config.pruned_units = rows
    groups: dict[int, Group] = {row.layer: row.group for row in rows if row.unit == "attention"}
    units = find_units(model, find_family(model.config), group=groups)
    policy = PruningPolicy.from_rows(rows, [unit.unit for unit in units])
    weights, names = weights_of(pruned, model, policy), {module: name for name, module in model.named_modules()}
    for parameter in decoder_layers(model).parameters():
        parameter.data.zero_()
    with convert_errors(lambda error: f"base_model isn't the model that was pruned: {one_line(error)}; pass that one"):
        for unit, size in zip(units, policy.sizes):
            for module, name, parts in unit.tensors() if size else ():
                dim, left = parts[0].dim, weights.pop(f"{names[module]}.{name}")
                whole = getattr(module, name).data.split([part.length(unit.unit.groups) for part in parts], dim)
                for target, entries in zip(whole, left.split([part.length(size) for part in parts], dim)):
                    target.narrow(dim, 0, entries.shape[dim]).copy_(entries)
        for name, weight in weights.items():
            model.get_parameter(name).data.copy_(weight)
        for matrix, weight in zip(outer_matrices(model), outer_matrices(pruned)):
            rows_kept = slice(None) if len(matrix) == len(weight) else kept_tokens
            matrix.data[rows_kept] = weight.to(matrix.device, matrix.dtype)
    if kept_tokens is not None:
        model.config.trimmed_vocab_size = len(kept_tokens)
    return model


def weights_of(pruned: PreTrainedModel, model: PreTrainedModel, policy: PruningPolicy) -> dict[str, torch.Tensor]:
    """Return the weights of a pruned model in host memory, by their names and in the layout of the dense model.

    Its outer matrices are left out. The policy is that of the pruned model.
    """
    names = {module: name for name, module in model.named_modules()}
    transposed = {name for module, name in names.items() if isinstance(module, TransposedLinear)}
    prefixes = [f"{names[layer]}." for layer in decoder_layers(model)]
    numbers = {prefixes[new]: prefixes[old] for new, old in enumerate(policy.kept_layers(len(prefixes)))}
    outer, weights = {id(matrix) for matrix in outer_matrices(pruned)}, {}
    for name, parameter in pruned.named_parameters():
        if id(parameter) not in outer:
            prefix = next((one for one in numbers if name.startswith(one)), "")
            name = numbers.get(prefix, "") + name.removeprefix(prefix)
            weight = parameter.detach().cpu()
            weights[name] = weight.t().contiguous() if name.removesuffix(".weight") in transposed else weight
    return weights
