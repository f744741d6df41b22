"""Where each model type keeps its projections: one record a family, one table.

To add a family, write its record in a file of this folder, put it into `FAMILIES`, and write the code that its
checkpoints carry into `optimum_ffp/modeling/modeling_ffp_<model_type>.py`.
"""

from ..errors import FFPError
from .base import Family, ModelUnit, Slice, find_units
from .llama import LLAMA, MISTRAL, QWEN2, QWEN3
from .opt import OPT


FAMILIES: dict[str, Family] = {family.model_type: family for family in (LLAMA, MISTRAL, OPT, QWEN2, QWEN3)}


def get_family(model_type: str) -> Family:
    """The record of a model type.

    Raises:
        FFPError: If the model type isn't supported; the message lists those that are.
    """
    if model_type not in FAMILIES:
        raise FFPError(
            f"model type {model_type!r} is not supported; supported are {', '.join(sorted(FAMILIES))}. "
            "The README says how to add one"
        )
    return FAMILIES[model_type]


__all__ = ["FAMILIES", "Family", "ModelUnit", "Slice", "find_units", "get_family"]
