"""The model card, from `model_card_template.md`."""

import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from .data import NAMED
from .modeling.auto import AUTO_CLASSES
from .result import PruningResult, package_versions


TEMPLATE = "model_card_template.md"


def template_path() -> Path:
    """Where the template is: in an installed package, or at the top of a checkout."""
    packaged = Path(str(files("optimum_ffp"))) / TEMPLATE
    return packaged if packaged.is_file() else packaged.parent.parent / TEMPLATE


def write_card(result: PruningResult, folder: str | os.PathLike, plots: dict[str, str]) -> None:
    """Writes `README.md` with the figures, the plots and the lines that load the model.

    Args:
        result: What to describe.
        folder: The checkpoint's folder.
        plots: File names of the pictures in it, as `write_plots` returns them.
    """
    card = ModelCard.from_template(_metadata(result), template_path=str(template_path()), **_fields(result, plots))
    card.save(Path(folder) / "README.md")


def is_hub_id(model_id: str) -> bool:
    """Whether a model's name can be one of the Hub's, and not that of something local."""
    return model_id.count("/") == 1 and not model_id.startswith((".", "/", "~")) and not Path(model_id).exists()


def _base_license(base_model: str) -> str | None:
    try:
        if is_hub_id(base_model):
            return ModelCard.load(base_model).data.license
        readme = Path(base_model).expanduser() / "README.md"
        return ModelCard.load(readme).data.license if readme.is_file() else None
    except (EntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        # A card is a courtesy: a base model without a readable one is pruned all the same.
        return None


def _metadata(result: PruningResult) -> ModelCardData:
    base = result.base_model
    dataset = result.config.dataset
    hub_dataset = NAMED[dataset][0] if dataset in NAMED else None
    final = list(result.perplexities)[-1]
    test = result.test
    return ModelCardData(
        base_model=base if is_hub_id(base) else None,
        license=_base_license(base),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["pruned", "optimum-ffp", "structured-pruning"],
        datasets=[hub_dataset] if hub_dataset else None,
        model_name=f"{short_name(base)}, {result.policy.sparsity:.0%} pruned",
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=NAMED.get(test.dataset, (short_name(test.dataset),))[0],
                dataset_name=f"{short_name(test.dataset)} ({len(test)} windows of {test.length} tokens)",
                dataset_split=test.split,
                metric_type="perplexity",
                metric_value=round(result.perplexities[final], 4),
            )
        ],
    )


def _fields(result: PruningResult, plots: dict[str, str]) -> dict[str, Any]:
    family_class = type(result.model).__name__.removesuffix(AUTO_CLASSES["AutoModelForCausalLM"])
    return {
        "name": short_name(result.base_model),
        "base": result.base_model if is_hub_id(result.base_model) else short_name(result.base_model),
        "result": result,
        "config": result.config,
        "policy": result.policy,
        "search": result.search,
        "test": result.test,
        "test_dataset": short_name(result.test.dataset),
        "dataset": short_name(result.config.dataset),
        "plots": plots,
        "versions": package_versions(),
        "code_file": f"modeling_ffp_{result.model.config.model_type}.py",
        "model_class": family_class,
        "command": command_line(result),
    }


def short_name(source: str) -> str:
    """A model's or dataset's name without the folders of the machine that it was on."""
    return source if is_hub_id(source) else Path(source).name or source


def command_line(result: PruningResult) -> str:
    """The command that repeats this prune, all settings that differ from the preset's included."""
    config = result.config
    defaults = type(config)(preset=config.preset).to_dict() | {"preset": type(config)().preset, "seed": None}
    words = ["optimum-cli ffp prune", f"--model {short_name(result.base_model)}", f"--sparsity {config.sparsity:g}"]
    for name in config.knob_names():
        value = getattr(config, name)
        if name == "sparsity" or value is None or config.to_dict()[name] == defaults[name]:
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, tuple):
            words.append(f"--{option} {' '.join(map(str, value))}")
        else:
            words.append(f"--{option} {short_name(value) if name in ('dataset', 'eval_dataset') else value}")
    return " ".join(words)
