"""Configs, classes and loading of pruned models."""

import copy
import importlib
import logging
import os
import re
from types import ModuleType
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..allocation.policy import Group, PruningPolicy
from ..errors import FFPError, convert_errors, one_line
from ..hub.record import prune_record
from ..hub.validate_checkpoint import check_checkpoint
from ..utils.lm_head import embedding_of, head_of
from .families import FAMILIES, Family, Mixture, find_family


# Silence warnings about reading global sizes of a heterogeneous config, which pruned models do on purpose.
logging.getLogger("transformers.integrations.heterogeneity.configuration_utils").setLevel(logging.ERROR)
# Masks, frequencies and positions that earlier releases of transformers saved as buffers.
SAVED_BUFFERS = r"((attn|attention)\.(masked_)?bias|rotary_emb\.inv_freq|embeddings\.position_ids)$"
# Config attributes with one entry per layer.
PER_LAYER_LISTS = ("layer_types", "no_rope_layers")
HUB_OPTIONS = ("revision", "token", "cache_dir", "subfolder", "force_download", "local_files_only")


def pruned_model_class(family: Family, auto_class: str = "AutoModelForCausalLM") -> type[PreTrainedModel]:
    """Return the class of a family's pruned models that an auto class loads."""
    return getattr(_modeling(family), family.classes[auto_class])


def _modeling(family: Family) -> ModuleType:
    return importlib.import_module(family.modeling or f"{__package__}.{family.modeling_module}")


def pruned_config(dense_config: PretrainedConfig, policy: PruningPolicy) -> PretrainedConfig:
    """Return the config of a pruned model: the dense config with the sizes of every layer and an `auto_map`.

    Global sizes are those of the dense model. `head_dim` is always set, since some families derive it from the number
    of heads. Without an `AutoModel` entry in `auto_map`, `AutoModel.from_config` would silently build the dense model.
    """
    config, family = _with_layers(dense_config, policy), find_family(dense_config)
    overrides = _layer_overrides(dense_config, policy)
    config.head_dim = family.heads(dense_config)[2]
    setattr(config, family.width_attribute, family.width(dense_config))
    config.allow_global_per_layer_attribute_access = True
    config.per_layer_config = {layer: values for layer, values in enumerate(overrides) if values}
    config.architectures = [family.classes["AutoModelForCausalLM"]]
    config.auto_map = family.auto_map
    return config


def homogeneous_config(model: PreTrainedModel, policy: PruningPolicy) -> PretrainedConfig | None:
    """Return the config of a pruned model for the dense model's class, or `None` if that doesn't support its sizes.

    All layers must have the same sizes, and the class must accept these as global sizes: some families derive the head
    dimension from the number of heads, or require it to divide the hidden size.
    """
    model_class, dense_config, family = type(model), model.config, find_family(model.config)
    if isinstance(family, Mixture):
        return _mixture_config(model, family, policy)
    first, *rest = _layer_overrides(dense_config, policy)
    if "skip" in first or any(overrides != first for overrides in rest):
        return None
    pruned = pruned_config(dense_config, policy)
    values = _with_layers(dense_config, policy).to_dict()
    values |= {"head_dim": pruned.head_dim, "architectures": [model_class.__name__]} | first
    values.pop("auto_map", None)
    try:
        config = type(dense_config).from_dict(values)
        with torch.device("meta"):
            built = model_class(config), pruned_model_class(family)(pruned)
    except (ValueError, RuntimeError, StrictDataclassError):
        return None
    shapes, expected = ({name: weight.shape for name, weight in one.named_parameters()} for one in built)
    if shapes != expected:
        return None
    # For transformers before 5, in addition to `rope_parameters`. Set through `vars`, since `rope_scaling` is an alias
    # of that in version 5.
    if hasattr(_modeling(family), "legacy_rope_config"):
        vars(config).update(_modeling(family).legacy_rope_config(config))
    return config


def _mixture_config(model: PreTrainedModel, family: Mixture, policy: PruningPolicy) -> PretrainedConfig:
    config = copy.deepcopy(model.config)
    vars(config).pop("auto_map", None)
    config.architectures = [type(model).__name__]
    setattr(config, family.count, policy.sizes[0])
    # Transformers 5 saves some of these under another name, which earlier releases and other software don't read.
    vars(config)[family.count] = policy.sizes[0]
    return config


def is_homogeneous(model: PreTrainedModel, policy: PruningPolicy) -> bool:
    """Return whether all layers of a policy have the same sizes, and the class of the dense model supports them."""
    return homogeneous_config(model, policy) is not None


def _with_layers(dense_config: PretrainedConfig, policy: PruningPolicy) -> PretrainedConfig:
    """Return a copy of the config of a model with the layers that a policy keeps, which are renumbered."""
    config, layers = copy.deepcopy(dense_config), policy.kept_layers(dense_config.num_hidden_layers)
    config.num_hidden_layers = len(layers)
    for name in ("pruned_units", "trimmed_vocab_size"):
        vars(config).pop(name, None)
    for name in PER_LAYER_LISTS:
        if entries := getattr(config, name, None):
            setattr(config, name, [entries[layer] for layer in layers])
    return config


def _layer_overrides(dense_config: PretrainedConfig, policy: PruningPolicy) -> list[dict[str, Any]]:
    """Return the overrides of every kept layer."""
    family, kept = find_family(dense_config), policy.kept_layers(dense_config.num_hidden_layers)
    sizes: dict[int, dict[Group, int]] = {layer: {} for layer in kept}
    for unit, size in zip(policy.units, policy.sizes):
        if unit.layer in sizes:
            sizes[unit.layer][unit.group] = size
    return [family.layer_overrides(dense_config, layer_sizes) for layer_sizes in sizes.values()]


def is_pruned(config: PretrainedConfig) -> bool:
    """Return whether a config is that of a pruned model, with sizes per layer or our modeling code."""
    # Some dense models of other families are heterogeneous too.
    sizes = getattr(config, "is_heterogeneous", False) and config.model_type in FAMILIES
    code = (getattr(config, "auto_map", None) or {}).values()
    return bool(sizes) or any("modeling_ffp_" in str(entry) for entry in code)


def attention_of(config: PretrainedConfig) -> dict[str, Any]:
    """Return arguments of `from_pretrained` for models whose softcap SDPA ignores, if transformers selects it."""
    is_capped = getattr(config, "attn_logit_softcapping", None) is not None
    return {"attn_implementation": "eager"} if is_capped else {}


def mark_untied(model: PreTrainedModel) -> None:
    """Unset `tie_word_embeddings` in a config if the checkpoint has a separate head, which transformers leaves set."""
    if not getattr(model.config, "tie_word_embeddings", False) or model.get_output_embeddings() is None:
        return
    head, embedding = head_of(model).weight, embedding_of(model).weight
    # They may be on different devices.
    if not (head is embedding or head.is_meta or embedding.is_meta) and not torch.equal(head.cpu(), embedding.cpu()):
        model.config.tie_word_embeddings = False


def load_strictly(model_class: type, model_id: str | os.PathLike, **kwargs: Any) -> PreTrainedModel:
    """Call `from_pretrained` of a class. Raises `FFPError` if the checkpoint doesn't contain exactly its weights.

    Transformers initializes missing weights at random and ignores unexpected ones.
    """
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_not_load_report)
    try:
        # Mismatched weights are then listed in the loading info.
        model, info = model_class.from_pretrained(
            model_id, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs
        )
    finally:
        logger.removeFilter(_is_not_load_report)
    unexpected = [key for key in info["unexpected_keys"] if not re.search(SAVED_BUFFERS, key)]
    mismatched = [
        f"{key}, of shape {list(shape)} instead of {list(expected)}"
        for key, shape, expected in info["mismatched_keys"]
    ]
    problems = "the weights have no", "the config has no place for", "the weights have"
    for problem, keys in zip(problems, (info["missing_keys"], unexpected, mismatched)):
        if keys:
            raise FFPError(
                f"config.json and the weights of {model_id} don't match: {problem} {min(keys)} (1 of {len(keys)}); "
                "fix config.json, or download the checkpoint again"
            )
    mark_untied(model)
    return model


def _is_not_load_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


class FFPModelForCausalLM:
    """Loads a pruned checkpoint as a `PreTrainedModel`, without `trust_remote_code`."""

    @classmethod
    def from_pretrained(cls, model_id: str | os.PathLike, **kwargs: Any) -> PreTrainedModel:
        """Load a model saved by `FFPPruner.save_pretrained`.

        The model class comes from this package, or from transformers if all layers have the same sizes, so that no
        code of the repository runs.

        Args:
            model_id: Hub id or folder.
            kwargs: As for `AutoModelForCausalLM.from_pretrained` (`dtype`, `device_map`, `revision`, `token`, ...).

        Raises:
            FFPError: If the checkpoint is not that of a pruned model of a supported family, or references files or
                code outside it.
        """
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        check_checkpoint(model_id, **hub)
        with convert_errors(lambda error: f"{model_id} can't be loaded: {one_line(error)}"):
            config = kwargs.pop("config", None) or AutoConfig.from_pretrained(model_id, trust_remote_code=False, **hub)
            if is_pruned(config):
                family = find_family(config)
                model_class, auto_map = pruned_model_class(family), family.auto_map
            elif prune_record(model_id, **hub):
                model_class, auto_map = AutoModelForCausalLM, {}
                kwargs = attention_of(config) | kwargs
            else:
                raise FFPError(f"{model_id} was not pruned by optimum-ffp; load it with AutoModelForCausalLM")
            # This code does not run here, but would if the saved model is loaded elsewhere.
            for auto, entry in (getattr(config, "auto_map", None) or {}).items():
                if str(entry).removeprefix(f"{os.fspath(model_id)}--") != auto_map.get(auto):
                    raise FFPError(
                        f"auto_map in config.json of {model_id} names code that optimum-ffp doesn't write: {auto} "
                        f"{entry!r}, expected {auto_map.get(auto)!r}; don't trust this checkpoint"
                    )
            if auto_map:
                config.auto_map = auto_map
            # Override the caller: remote code is not needed, and pickled weights can run code.
            kwargs |= hub | {"trust_remote_code": False, "use_safetensors": True}
            return load_strictly(model_class, model_id, config=config, **kwargs)
