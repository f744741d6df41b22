"""Model card, rendered from `ffp_config.json` and `model_card_template.md`."""

import json
import math
import shlex
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..config.texts import Text, TextMix
from ..data import describe_size
from .view import describe_text, format_number, is_on_hub, measured_on, view_record


CARD, TEMPLATE = "README.md", "model_card_template.md"


def template_path() -> Path:
    """Return the path of the template: in the installed package, or at the top of a checkout."""
    packaged = Path(str(files("optimum_ffp"))) / TEMPLATE
    return packaged if packaged.is_file() else packaged.parent.parent / TEMPLATE


def render_card(record: Mapping[str, Any], name: str) -> str:
    """Render the model card of a checkpoint.

    Args:
        record: Content of `ffp_config.json`.
        name: Model name in the commands of the card: `./FOLDER`, or a repository on the Hub.
    """
    view = view_record(record)
    title = f"{view['name']}, {record['policy']['sparsity']:.0%} pruned".replace("%", " %")
    title += ", recovered" if view["recoveries"] else ""
    card = ModelCard.from_template(
        _metadata(record, title),
        template_path=str(template_path()),
        **view,
        title=title,
        python_name=json.dumps(name, ensure_ascii=False),
        shell_name=shlex.quote(name),
        gguf_file=shlex.quote(f"{Path(name).name}.gguf"),
        number=format_number,
        text=describe_text,
    )
    return f"{card.content}\n"


def _metadata(record: Mapping[str, Any], title: str) -> ModelCardData:
    provenance, recoveries = record["provenance"], record.get("recovery", [])
    tests = measured_on(recoveries[-1] if recoveries else provenance)
    steps = [*([] if provenance["given_data"] else [record]), *(recovery["options"] for recovery in recoveries)]
    mixes = [TextMix.parse(mix) for step in steps for mix in (step["dataset"], step["eval_dataset"]) if mix]
    sources = [text.hub_dataset for mix in mixes for text in mix]
    return ModelCardData(
        base_model=provenance["base_model"] if is_on_hub(provenance) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["pruned", "optimum-ffp", "structured-pruning"],
        datasets=[*dict.fromkeys(source[0] for source in sources if source)] or None,
        model_name=title,
        eval_results=[*filter(None, map(_evaluation, tests))],
        **provenance.get("license", {}),
    )


def _evaluation(test: Mapping[str, Any]) -> EvalResult | None:
    """Return the perplexity of the final model on test windows for the metadata; `None` if it is not finite."""
    perplexity = [*test["figures"].values()][-1]
    # The Hub stores this as JSON, which lacks infinity.
    if perplexity is None or not math.isfinite(perplexity):
        return None
    source = Text(test["dataset"]).hub_dataset or (test["dataset"], None)
    return EvalResult(
        task_type="text-generation",
        task_name="Text generation",
        dataset_type=source[0],
        dataset_name=f"{TextMix.parse(test['dataset']).describe()} ({describe_size(test)})",
        dataset_config=source[1],
        dataset_split=test["split"],
        metric_type="perplexity",
        metric_name="Perplexity",
        metric_value=round(perplexity, 4),
    )
