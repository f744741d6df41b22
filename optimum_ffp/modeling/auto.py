"""Configs and classes of pruned models, and their loading."""

import copy
import importlib
import logging
import os
import re
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..allocation.policy import Group, PruningPolicy
from ..errors import FFPError, convert_errors, one_line
from ..hub.record import prune_record
from ..hub.validate_checkpoint import check_checkpoint
from .families import FAMILIES, Family, get_family


# Silence warnings on reading global sizes of a heterogeneous config, which pruned models do on purpose.
logging.getLogger("transformers.integrations.heterogeneity.configuration_utils").setLevel(logging.ERROR)
# Masks, frequencies and positions that earlier releases of transformers saved as buffers.
SAVED_BUFFERS = r"((attn|attention)\.(masked_)?bias|rotary_emb\.inv_freq|embeddings\.position_ids)$"
HUB_OPTIONS = ("revision", "token", "cache_dir", "subfolder", "force_download", "local_files_only")
AUTO_CLASSES = {"AutoModel": "Model", "AutoModelForCausalLM": "ForCausalLM"}


def _modeling(family: Family) -> dict[str, Any]:
    return vars(importlib.import_module(family.modeling or f"{__package__}.{family.modeling_module}"))


def pruned_model_class(family: Family) -> type[PreTrainedModel]:
    """Return the causal LM class of a family's pruned models."""
    return next(
        value
        for name, value in _modeling(family).items()
        if name.startswith("FFP") and name.endswith(AUTO_CLASSES["AutoModelForCausalLM"])
    )


def pruned_config(dense_config: PretrainedConfig, family: Family, policy: PruningPolicy) -> PretrainedConfig:
    """Return the config of a pruned model: the dense config with the sizes of every layer and an `auto_map`.

    Global sizes are those of the dense model. `head_dim` is always set, since some families derive it from the number
    of heads. `auto_map` includes `AutoModel`: without it `AutoModel.from_config` would silently build the dense model.
    """
    config = copy.deepcopy(dense_config)
    overrides = _layer_overrides(dense_config, family, policy)
    config.head_dim = family.heads(dense_config)[2]
    setattr(config, family.width_attribute, family.width(dense_config))
    config.allow_global_per_layer_attribute_access = True
    config.per_layer_config = {layer: values for layer, values in overrides.items() if values}
    model_class = pruned_model_class(family)
    config.architectures = [model_class.__name__]
    config.auto_map = _auto_map(model_class)
    return config


def homogeneous_config(
    model_class: type[PreTrainedModel], dense_config: PretrainedConfig, family: Family, policy: PruningPolicy
) -> PretrainedConfig | None:
    """Return the config of a pruned model in the dense model's own class, or `None` if that can't have its sizes.

    It can if all layers are alike and it has the weights of the pruned model with the sizes as global ones: some
    families derive the head dimension from the number of heads, or want it to divide the hidden size.

    Args:
        model_class: Class of the dense model.
        dense_config: Its config.
        family: The family record.
        policy: The policy of the pruned model.
    """
    first, *others = _layer_overrides(dense_config, family, policy).values()
    if any(other != first for other in others):
        return None
    pruned = pruned_config(dense_config, family, policy)
    own = {name: value for name, value in dense_config.to_dict().items() if name != "auto_map"}
    sizes = {"head_dim": pruned.head_dim, "architectures": [model_class.__name__]} | first
    try:
        config = type(dense_config).from_dict(own | sizes)
        with torch.device("meta"):
            found, wanted = (
                {name: weight.shape for name, weight in one_class(one).named_parameters()}
                for one_class, one in ((model_class, config), (pruned_model_class(family), pruned))
            )
    except (ValueError, RuntimeError, StrictDataclassError):
        return None
    if found != wanted:
        return None
    config._name_or_path = dense_config._name_or_path
    # For programs with a transformers before 5, beside `rope_parameters`. As an attribute, 5 takes `rope_scaling` for
    # another name of that.
    rope_names = _modeling(family).get("earlier_rope_names", lambda config: {})
    vars(config).update(rope_names(config))
    return config


def is_homogeneous(model: PreTrainedModel, family: Family, policy: PruningPolicy) -> bool:
    """Return whether all layers of a policy are alike, and the class of a dense model can have their sizes."""
    return homogeneous_config(type(model), model.config, family, policy) is not None


def _layer_overrides(
    dense_config: PretrainedConfig, family: Family, policy: PruningPolicy
) -> dict[int, dict[str, int]]:
    sizes: dict[int, dict[Group, int]] = {}
    for unit, size in zip(policy.units, policy.sizes):
        sizes.setdefault(unit.layer, {})[unit.group] = size
    return {layer: family.layer_overrides(dense_config, layer_sizes) for layer, layer_sizes in sizes.items()}


def _auto_map(model_class: type[PreTrainedModel]) -> dict[str, str]:
    module = model_class.__module__.rpartition(".")[2]
    stem = model_class.__name__.removesuffix(AUTO_CLASSES["AutoModelForCausalLM"])
    return {auto: f"{module}.{stem}{suffix}" for auto, suffix in AUTO_CLASSES.items()}


def is_pruned(config: PretrainedConfig) -> bool:
    """Return whether a checkpoint's config is that of a pruned model: it has sizes per layer, or names our code."""
    # Layers of some dense models, of other families, have sizes of their own too.
    sizes = getattr(config, "is_heterogeneous", False) and config.model_type in FAMILIES
    code = (getattr(config, "auto_map", None) or {}).values()
    return bool(sizes) or any("modeling_ffp_" in str(entry) for entry in code)


def attention_of(config: PretrainedConfig) -> dict[str, str]:
    """Return the argument of `from_pretrained` for a model whose softcap SDPA leaves out.

    Some versions of transformers choose it all the same.
    """
    return {"attn_implementation": "eager"} if config.model_type == "gemma2" else {}


def note_untied(model: PreTrainedModel) -> None:
    """Say in the config of a model that its head is not the embeddings, if it says so and a checkpoint has both.

    Transformers loads both then and leaves the config as it is.
    """
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if not getattr(model.config, "tie_word_embeddings", False) or head is None or head.weight is embeddings.weight:
        return
    loaded = not (head.weight.is_meta or embeddings.weight.is_meta)
    # They may be on different devices.
    if loaded and not torch.equal(head.weight.cpu(), embeddings.weight.cpu()):
        model.config.tie_word_embeddings = False


def load_whole(model_class: type, model_id: str | os.PathLike, **kwargs: Any) -> PreTrainedModel:
    """Load a model, and check that the checkpoint holds exactly its weights.

    Transformers initializes missing weights at random and ignores unexpected ones.

    Args:
        model_class: Class with `from_pretrained`.
        model_id: Hub id or folder.
        kwargs: Arguments of `from_pretrained`.

    Raises:
        FFPError: If config and weights don't agree.
    """
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_no_report)
    try:
        # Mismatched weights are then listed in the loading info.
        model, info = model_class.from_pretrained(
            model_id, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs
        )
    finally:
        logger.removeFilter(_no_report)
    unexpected = [key for key in info["unexpected_keys"] if not re.search(SAVED_BUFFERS, key)]
    mismatched = [
        f"{key}, of shape {list(found)} in place of {list(wanted)}" for key, found, wanted in info["mismatched_keys"]
    ]
    for problem, keys in (
        ("the weights have no", info["missing_keys"]),
        ("the config has no place for", unexpected),
        ("the weights have", mismatched),
    ):
        if keys:
            raise FFPError(
                f"config.json and the weights of {model_id} don't agree: {problem} {min(keys)} (1 of {len(keys)}); "
                "put config.json right, or download the checkpoint again"
            )
    note_untied(model)
    return model


def _no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


class FFPModelForCausalLM:
    """Loads a pruned checkpoint as a `PreTrainedModel`, without `trust_remote_code`."""

    @classmethod
    def from_pretrained(cls, model_id: str | os.PathLike, **kwargs: Any) -> PreTrainedModel:
        """Load a model saved by `FFPPruner.save_pretrained`.

        The model class comes from this package, or from transformers if all layers are alike, so that no code of the
        repository runs.

        Args:
            model_id: Hub id or folder.
            kwargs: As for `AutoModelForCausalLM.from_pretrained` (`dtype`, `device_map`, `revision`, `token`, ...).

        Raises:
            FFPError: If the checkpoint is not a pruned one, its family is not supported, or it names files or code
                outside the checkpoint.
        """
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        check_checkpoint(model_id, kwargs.get("variant"), **hub)
        with convert_errors(lambda error: f"{model_id} can't be loaded: {one_line(error)}"):
            config = AutoConfig.from_pretrained(model_id, trust_remote_code=False, **hub)
        if is_pruned(config):
            model_class = pruned_model_class(get_family(config.model_type))
            ours = _auto_map(model_class)
            cls._check_code(model_id, config, ours)
            config.auto_map = ours
        elif prune_record(model_id, **hub):
            model_class = AutoModelForCausalLM
            cls._check_code(model_id, config, {})
            kwargs = attention_of(config) | kwargs
        else:
            raise FFPError(f"{model_id} was not pruned by optimum-ffp; load it with AutoModelForCausalLM")
        with convert_errors(lambda error: f"{model_id} can't be loaded: {one_line(error)}"):
            # Override the caller: remote code is not needed, and pickled weights can run code.
            kwargs |= hub | {"trust_remote_code": False, "use_safetensors": True}
            return load_whole(model_class, model_id, config=config, **kwargs)

    @staticmethod
    def _check_code(model_id: str | os.PathLike, config: PretrainedConfig, ours: dict[str, str]) -> None:
        """Check `auto_map`. Code that it names does not run here, but would if the saved model is loaded elsewhere."""
        for auto, entry in (getattr(config, "auto_map", None) or {}).items():
            if str(entry).removeprefix(f"{os.fspath(model_id)}--") != ours.get(auto):
                raise FFPError(
                    f"config.json of {model_id} names code in auto_map that optimum-ffp doesn't write: {auto} "
                    f"{entry!r}, allowed is {ours.get(auto)!r}; don't trust this checkpoint"
                )
