"""Writes the model card from `model_card_template.md`."""

import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..config import FFPConfig
from ..config.texts import TextMix
from ..data import describe_size
from ..errors import FFPError
from ..hub.naming import dataset_name, escape, is_hub_id, model_name, short_name, without_folders
from .gguf import plan_export
from .result import PruningResult, final, package_versions


TEMPLATE = "model_card_template.md"
# optimum-ffp is not on a package index yet.
INSTALL = "from a checkout of it: `pip install -e .`"


def template_path() -> Path:
    """Path of the template: in the installed package, or at the top of a checkout."""
    packaged = Path(str(files("optimum_ffp"))) / TEMPLATE
    return packaged if packaged.is_file() else packaged.parent.parent / TEMPLATE


def write_card(result: PruningResult, folder: str | os.PathLike, plots: dict[str, str], name: str) -> None:
    """Writes `README.md` with the figures, the plots and the code that loads the model.

    Args:
        result: Result to describe.
        folder: Folder of the checkpoint.
        plots: File names of the plots in it, as returned by `write_plots`.
        name: Final name of the folder; the commands in the card refer to it as `./NAME`.
    """
    fields = _fields(result, plots) | {
        "python_name": json.dumps(f"./{name}", ensure_ascii=False),
        "shell_name": shlex.quote(f"./{name}"),
        "gguf_file": shlex.quote(f"{name}.gguf"),
    }
    card = ModelCard.from_template(_metadata(result), template_path=str(template_path()), **fields)
    card.save(Path(folder) / "README.md")


def _metadata(result: PruningResult) -> ModelCardData:
    base, config = result.base_model, result.config
    found = [] if result.given_data else [text.hub_dataset for text in (*config.texts, *config.reported)]
    return ModelCardData(
        base_model=base if is_hub_id(base) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["pruned", "optimum-ffp", "structured-pruning"],
        datasets=list(dict.fromkeys(dataset[0] for dataset in found if dataset)) or None,
        model_name=f"{short_name(base)}, {result.policy.sparsity:.0%} pruned",
        eval_results=[
            found
            for windows, figures in result.tests
            for found in evaluation_results(windows.describe(), final(figures))
        ],
        **result.license,
    )


def evaluation_results(test: Mapping[str, Any], perplexity: float) -> list[EvalResult]:
    """The perplexity on test windows for a card's metadata; empty if it is not finite.

    Args:
        test: Record of `Windows.describe`.
        perplexity: The perplexity.
    """
    # The Hub stores this as JSON, which has no infinity.
    if not math.isfinite(perplexity):
        return []
    (text, *_) = TextMix.parse(test["dataset"])
    dataset_id, name = text.hub_dataset or (text.published, None)
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=dataset_id,
            dataset_name=f"{dataset_name(test['dataset'])} ({describe_size(test)})",
            dataset_config=name,
            dataset_split=test["split"],
            metric_type="perplexity",
            metric_name="Perplexity",
            metric_value=round(perplexity, 4),
        )
    ]


def _fields(result: PruningResult, plots: dict[str, str]) -> dict[str, Any]:
    base, config = result.base_model, result.config
    return {
        "name": model_name(base),
        "base": _base_link(base, result.revision) if is_hub_id(base) else short_name(base),
        "result": result,
        "config": config,
        "policy": result.policy,
        "search": result.search,
        "tests": [(escape(dataset_name(windows.dataset)), windows, figures) for windows, figures in result.tests],
        "windows": result.search.calibrated_on,
        "data": escape(dataset_name(result.search.calibrated_on["dataset"] if result.given_data else config.dataset)),
        "plots": plots,
        "versions": package_versions(),
        "code_file": result.code_file,
        "trust": ", trust_remote_code=True" if result.code_file else "",
        "class_name": type(result.model).__name__,
        "chat": _chats(result.tokenizer),
        "gguf": _gguf_option(result),
        # torchao quantises `nn.Linear` only; GPT-2 has `Conv1D` instead.
        "linear": any(isinstance(module, nn.Linear) for module in result.model.base_model.modules()),
        "install": INSTALL,
        "command": command_line(result),
    }


def _chats(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template takes a message whose content is a text."""
    if not getattr(tokenizer, "chat_template", None):
        return False
    try:
        return "hello" in tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    except Exception:  # A template is a program and may raise anything.
        return False


def _base_link(base: str, revision: str | None) -> str:
    link = f"[{base}](https://huggingface.co/{base})"
    return f"{link} (revision [{revision[:12]}](https://huggingface.co/{base}/tree/{revision}))" if revision else link


def _gguf_option(result: PruningResult) -> str | None:
    """Options of `ffp export` for this model; `None` if llama.cpp can't run it."""
    for option, pads in (("", False), (" --pad-uniform", True)):
        with suppress(FFPError):
            plan_export(result.model, result.tokenizer, pads)
            return option
    return None


def command_line(result: PruningResult) -> str:
    """The command that reproduces this prune: model, warm start, and all options that differ from the preset."""
    config, search = result.config, result.search
    values = without_folders(config.to_dict())
    agent = search.warm_start
    stated = {
        "model": short_name(result.base_model),
        "revision": result.revision,
        "dtype": result.dtype,
        "trust_remote_code": result.trust_remote_code or None,
        "warm_start": short_name(agent) if agent and config.reads("agent") else None,
        "sparsity": values["sparsity"],
        **_stated_options(config, values),
    }
    return " ".join(["optimum-cli ffp prune", *option_words(stated)])


def option_words(stated: Mapping[str, Any]) -> Iterator[str]:
    """Yields options of a command line with their values, for those that are not `None`."""
    for name, value in stated.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{option}" if value else f"--no-{option}"
        elif isinstance(value, list):
            yield f"--{option} {' '.join(map(str, value))}"
        elif value is not None:
            yield f"--{option} {shlex.quote(str(value))}"


def _stated_options(config: FFPConfig, values: dict[str, Any]) -> dict[str, Any]:
    """The seed, and the options whose values differ from the preset's."""
    for preset in (values["preset"], FFPConfig.preset):
        # `reward` changes the defaults of other options.
        defaults = FFPConfig(preset=preset, reward=values["reward"]).resolve().to_dict()
        # The command line can't set an option to `None`: use the preset whose defaults have it.
        if all(values[name] is not None or default is None for name, default in defaults.items()):
            break
    alone = FFPConfig(preset=preset)
    defaults |= {"preset": FFPConfig.preset, "reward": alone.reward, "seed": None}
    values = values | {"preset": preset}
    in_files = ("sparsity", "fall_back", "relative_outputs")
    read = [name for name in config.option_names() if name not in in_files and config.reads(name)]
    return {name: values[name] for name in read if values[name] != defaults[name]}
