"""From a model type to the class of its pruned models."""

import copy
import importlib
import logging
import os
from typing import Any

from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from ..errors import FFPError
from ..families import Family, get_family
from ..policy import PruningPolicy


# It warns whoever reads a global size of a heterogeneous config; our models ask to be allowed to.
logging.getLogger("transformers.integrations.heterogeneity.configuration_utils").setLevel(logging.ERROR)
AUTO_CLASSES = {"AutoModel": "Model", "AutoModelForCausalLM": "ForCausalLM"}


def pruned_model_class(family: Family) -> type[PreTrainedModel]:
    """The causal LM class of a family's pruned models.

    It is registered for `AutoModelForCausalLM`, by which `save_pretrained` copies its source file along.
    """
    module = importlib.import_module(f".{family.modeling_module}", __package__)
    model_class = next(
        value
        for name, value in vars(module).items()
        if name.startswith("FFP") and name.endswith(AUTO_CLASSES["AutoModelForCausalLM"])
    )
    model_class.register_for_auto_class("AutoModelForCausalLM")
    return model_class


def pruned_config(dense_config: PretrainedConfig, family: Family, policy: PruningPolicy) -> PretrainedConfig:
    """The config of a pruned model: the dense one, the sizes of every layer, and where its code is.

    Global sizes stay the dense model's. `head_dim` is always written, since some families derive it from the number of
    heads. `auto_map` names `AutoModel` too: without it `AutoModel.from_config` would silently build the dense model.
    """
    config = copy.deepcopy(dense_config)
    sizes: dict[int, dict[str, int]] = {}
    for unit, size in zip(policy.units, policy.sizes):
        sizes.setdefault(unit.layer, {})[unit.kind] = size
    overrides = {layer: family.layer_overrides(dense_config, layer_sizes) for layer, layer_sizes in sizes.items()}
    config.head_dim = family.heads(dense_config)[2]
    config.allow_global_per_layer_attribute_access = True
    config.per_layer_config = {layer: values for layer, values in overrides.items() if values}
    causal_lm = pruned_model_class(family).__name__
    stem = causal_lm.removesuffix(AUTO_CLASSES["AutoModelForCausalLM"])
    config.architectures = [causal_lm]
    config.auto_map = {auto: f"{family.modeling_module}.{stem}{suffix}" for auto, suffix in AUTO_CLASSES.items()}
    return config


def is_pruned(config: PretrainedConfig) -> bool:
    """Whether a checkpoint's config gives layers sizes of their own."""
    return bool(getattr(config, "is_heterogeneous", False)) or any(
        "modeling_ffp_" in str(entry) for entry in (getattr(config, "auto_map", None) or {}).values()
    )


class FFPModelForCausalLM:
    """Loads a pruned checkpoint as a real `PreTrainedModel`, without `trust_remote_code`."""

    def __init__(self) -> None:
        raise OSError("FFPModelForCausalLM is loaded by FFPModelForCausalLM.from_pretrained(id_or_folder)")

    @classmethod
    def from_pretrained(cls, model_id: str | os.PathLike, **kwargs: Any) -> PreTrainedModel:
        """Loads a model that `FFPPruner.save_pretrained` has written.

        The class comes from this package, so that no code of the repository runs.

        Args:
            model_id: Hub id or folder.
            kwargs: As for `AutoModelForCausalLM.from_pretrained` (`dtype`, `device_map`, `revision`, `token`, ...).

        Raises:
            FFPError: If the checkpoint isn't a pruned one, or its family isn't supported.
        """
        kwargs.pop("trust_remote_code", None)
        hub = {name: kwargs[name] for name in ("revision", "token", "cache_dir", "subfolder") if name in kwargs}
        config = kwargs.pop("config", None) or AutoConfig.from_pretrained(model_id, **hub)
        if not is_pruned(config):
            raise FFPError(f"{model_id} was not pruned by optimum-ffp; load it with AutoModelForCausalLM")
        return pruned_model_class(get_family(config.model_type)).from_pretrained(model_id, config=config, **kwargs)
