"""Families of models: `table` has a record of each, and `units` finds what it names in a loaded model.

To add a family, write its record into the table and run `make style`, which generates the modeling code for its
checkpoints (`optimum_ffp/modeling/generate.py`). Other packages can add a record to `FAMILIES`, with `Family.modeling`
set to the module with its modeling code.
"""

from typing import cast

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ...errors import FFPError
from .base import Family, Mixture, head_dimension
from .table import FAMILIES, MULTIMODAL, TransposedLinear
from .units import ModelUnit, Slice, find_units, units_of_layer


def find_family(config: PretrainedConfig) -> Family:
    """Return the family record for a model's config.

    Raises:
        FFPError: If its model type is not supported, or is that of a vision-language model.
    """
    model_type = config.model_type
    if model_type in MULTIMODAL:
        raise FFPError(
            f"a vision-language model of type {model_type!r} can't be pruned as a whole; "
            "FFPPruner.from_pretrained and the commands load only its language model"
        )
    if model_type not in FAMILIES:
        raise FFPError(
            f"model type {model_type!r} is not supported; supported are {', '.join(sorted(FAMILIES))}. "
            "docs/families.md says how to add one"
        )
    return FAMILIES[model_type]


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder layers of a dense or pruned model of a supported family."""
    return cast(nn.ModuleList, model.base_model.get_submodule(find_family(model.config).layers))


def outer_matrices(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return the embeddings, the head and other projections outside of the decoder layers."""
    in_layers = {id(parameter) for parameter in decoder_layers(model).parameters()}
    return [one for one in model.parameters() if one.ndim > 1 and id(one) not in in_layers]
