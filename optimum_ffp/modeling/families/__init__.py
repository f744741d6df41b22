"""Family records: names of the projections and sizes of every supported model type.

To add a family, write its record in a file of this folder, add it to `FAMILIES`, and run `make style`, which generates
the modeling code for its checkpoints (`optimum_ffp/modeling/generate.py`). Other packages can register a family by
adding its record to `FAMILIES`, with `Family.modeling` set to the module with its modeling code.
"""

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ...errors import FFPError
from .base import Family, ModelUnit, Slice, find_units
from .fused import GLM4, GPT2, GPT_NEOX, PHI3, TransposedLinear
from .llama import LLAMA_LIKE
from .mixtures import MIXTURES
from .opt import OPT


FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (*LLAMA_LIKE, PHI3, GLM4, GPT_NEOX, GPT2, OPT, *MIXTURES)
}

# Vision-language models whose language model belongs to one of these families.
MULTIMODAL = ("gemma3", "idefics3", "internvl", "llava", "llava_next", "mistral3", "smolvlm")


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
    return model.base_model.get_submodule(find_family(model.config).layers)


def outer_matrices(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return the embeddings, the head and other projections outside of the decoder layers."""
    in_layers = {id(parameter) for parameter in decoder_layers(model).parameters()}
    return [one for one in model.parameters() if one.ndim > 1 and id(one) not in in_layers]
