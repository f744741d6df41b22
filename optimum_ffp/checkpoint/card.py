"""Model card, rendered from `ffp_config.json` and `model_card_template.md`."""

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from ..config.texts import Text, TextMix
from ..data import describe_size, describe_windows
from ..utils.record import Record
from .view import format_number, view_record


CARD, TEMPLATE = "README.md", "model_card_template.md"
# The template is in the installed package, or at the top of a checkout.
PACKAGE = Path(__file__).parents[1]
# Names and texts may contain HTML and Markdown.
ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", "\n": " "} | {mark: f"\\{mark}" for mark in "\\`*[]|"})


def render_card(record: Record, name: str) -> str:
    """Render the model card of a checkpoint, whose commands call it `./FOLDER` or by its repository.

    Every value is escaped, unless a filter puts it into a code span or block.
    """
    view = view_record(record)
    quantized = f", {record.quantization['scheme']}" if record.quantization else ""
    title = escape(f"{view['title']}{', recovered' if view['recoveries'] else ''}{quantized}")
    environment = Environment(
        loader=FileSystemLoader([PACKAGE, PACKAGE.parent]),
        autoescape=True,
        finalize=escape,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": format_number,
        "text": lambda dataset: TextMix.parse(dataset).describe(),
        "windows": describe_windows,
        "code": lambda text: Markup(text.replace("\n", " ")),
        "span": lambda text: Markup(f"`{text.replace('`', '')}`"),
        "row": lambda cells: Markup(f"| {' | '.join(map(escape, cells))} |"),
        "rule": lambda cells: Markup("|---" * len(cells) + "|"),
    }
    return environment.get_template(TEMPLATE).render(
        view,
        card_data=Markup(_metadata(view, str(title)).to_yaml()),
        title=title,
        python_name=json.dumps(name, ensure_ascii=False),
        shell_name=shlex.quote(name),
        gguf_file=shlex.quote(f"{Path(name).name}.gguf"),
    )


def escape(value: Any) -> Markup:
    """Escape HTML and Markdown in a value, unless it is `Markup`."""
    return value if isinstance(value, Markup) else Markup(str(value).translate(ESCAPES))


def _metadata(view: Mapping[str, Any], title: str) -> ModelCardData:
    provenance, recoveries = view["provenance"], view["recoveries"]
    steps = [*([] if provenance.given_data else [view["options"]]), *(step.options for step in view["recovery"])]
    mixes = [TextMix.parse(mix) for step in steps for mix in (step["dataset"], step["eval_dataset"]) if mix]
    sources = [text.hub_dataset for mix in mixes for text in mix]
    # A quantized model has not been measured.
    measured = {"tests": [], "samples": []} if view["quantization"] else (recoveries or [view])[-1]
    # Of the relations that the Hub defines (adapter, merge, quantized and finetune), none means pruned.
    relation = "quantized" if view["quantization"] else "finetune"
    return ModelCardData(
        base_model=view["base"] if view["base_url"] else None,
        base_model_relation=relation if view["base_url"] else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["pruned", "optimum-ffp", "structured-pruning"],
        datasets=[*dict.fromkeys(source[0] for source in sources if source)] or None,
        model_name=title,
        eval_results=[*filter(None, map(_evaluation, measured["tests"]))],
        widget=[_widget_example(sample, view["model"].chat) for sample in measured["samples"]] or None,
        **provenance.license,
    )


def _evaluation(test: Mapping[str, Any]) -> EvalResult | None:
    """Return the perplexity of the final model on test windows for the metadata; `None` if it is not finite."""
    # The Hub stores this as JSON, which lacks infinity.
    if test["final"] is None or not math.isfinite(test["final"]):
        return None
    source = Text(test["dataset"]).hub_dataset or ("local", None)
    name = (
        f"{TextMix.parse(test['dataset']).describe()}, {describe_size(test)}{', small sample' if test['note'] else ''}"
    )
    return EvalResult(
        task_type="text-generation",
        task_name="Text generation",
        dataset_type=source[0],
        dataset_name=str(escape(name)),
        dataset_config=source[1],
        dataset_split=str(escape(test["split"])),
        metric_type="perplexity",
        metric_name="Perplexity",
        metric_value=round(test["final"], 4),
    )


def _widget_example(sample: Mapping[str, str], chat: bool) -> dict[str, Any]:
    """Return a prompt and the final model's answer; the model page shows them although the Hub can't run the model."""
    prompt = sample["prompt"]
    example = {"messages": [{"role": "user", "content": prompt}]} if chat else {"text": prompt}
    return example | {"output": {"text": sample.get("recovered", sample["pruned"])}}
