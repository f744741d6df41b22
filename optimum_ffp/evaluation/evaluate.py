"""Measures models side by side, as `optimum-cli ffp evaluate` prints them."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..config.texts import TextMix
from ..data import DataRequest, Windows, load_windows, window_length
from ..errors import FFPError
from ..hub.record import prune_record, recorded_length, recorded_start_token
from ..modeling.loading import LoadOptions, load_any, load_tokenizer, read_any_config
from ..utils.batch_size import memory_errors, with_halving_batches
from ..utils.folders import expand
from ..utils.precision import dtype_name, in_compute_dtype
from .divergence import Predictions
from .latency import measure_speed
from .record import compare_records, perplexity_record, size_record
from .table import comparison_table
from .zero_shot import TaskSuite


logger = logging.getLogger(__name__)
MINIMUMS = {"eval_samples": 1, "seq_len": 2, "num_fewshot": 0, "prompt_tokens": 1, "new_tokens": 1, "batch_size": 1}
REMEDIES = "no speed, which loads one model at a time, a smaller seq_len, dtype bfloat16, or another device"
Source = str | os.PathLike | PreTrainedModel


class Evaluation(dict[str, dict[str, Any]]):
    """Figures of `"model"`, `"baseline"`, `"baseline 2"`, ..., ready for JSON. Printed, they are a table."""

    def __str__(self) -> str:
        return comparison_table(self)


@memory_errors(REMEDIES, stage="the evaluation")
def evaluate(
    model: Source,
    baseline: Source | Sequence[Source] | None = None,
    *,
    dataset: str | None = "wikitext2",
    tasks: Sequence[str] = (),
    tasks_path: str | None = None,
    speed: bool = True,
    eval_samples: int | None = None,
    seq_len: int | None = None,
    text_column: str | None = None,
    limit: float | None = None,
    num_fewshot: int | None = None,
    prompt_tokens: int = 512,
    new_tokens: int = 32,
    batch_size: int = 1,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **load_options: Any,
) -> Evaluation:
    """Measure perplexity, tasks, size and speed of a model beside a baseline, and its divergence from the baseline.

    Perplexity is that of the test split, or of the part of a text without one that a prune reports on. All models are
    measured on the same windows, of the length that the first pruned one of them was last measured with.

    Args:
        model: Hub id, `id@revision`, folder or `.gguf` file of a causal LM, dense or pruned, or one that is loaded.
        baseline: Model to compare with, such as the dense one, or several; the divergence is that from the first.
        dataset: Text to measure perplexity on, or several, separated by commas: a name, Hub id, file or folder, as
            for a prune; no perplexity if `None`.
        tasks: Names of lm-eval tasks, with `*` as a wildcard, or `.yaml` files.
        tasks_path: Folder of `.yaml` tasks, whose data may be local; all of them if `tasks` is empty.
        speed: Whether to measure speed, with all models in memory at once.
        eval_samples: Number of windows of each text, from its start; by default all, or 100 of a text without splits.
        seq_len: Tokens per window; by default as a prune did, or what the models allow, up to 2048.
        text_column: Column of the dataset; by default the first that is known.
        limit: Samples per task, or the fraction of them if below 1.
        num_fewshot: Solved examples before each question of a task; the task's own number by default.
        prompt_tokens: Tokens in the prompt that speed is measured with.
        new_tokens: Tokens to generate after it.
        batch_size: Windows, task requests or prompts per forward pass.
        tokenizer: Tokenizer of models that are loaded; by default that of where they were loaded from.
        load_options: Fields of `LoadOptions`. The revision is that of `model` alone.

    Returns:
        The figures by model.

    Raises:
        FFPError: If a model, text or task can't be read, or memory doesn't suffice.
    """
    arguments = locals()
    for name, minimum in MINIMUMS.items():
        if arguments[name] is not None and arguments[name] < minimum:
            raise FFPError(f"{name} must be at least {minimum}, found {arguments[name]}")
    if limit is not None and limit <= 0:
        raise FFPError(f"limit must be a number of samples, or a fraction of them below 1, found {limit:g}")
    if dataset and TextMix.parse(dataset).includes_self:
        raise FFPError("perplexity on text that a model has generated says little; name another dataset than self")

    options = LoadOptions(**load_options)
    baselines = [baseline] if isinstance(baseline, Source) else baseline or []
    candidates = {"model": _candidate(model, tokenizer, options)}
    for number, source in enumerate(baselines, 1):
        role = "baseline" if number == 1 else f"baseline {number}"
        candidates[role] = _candidate(source, tokenizer, replace(options, revision=None))
    # What can't be read is found before anything is measured.
    suite = TaskSuite(tasks, tasks_path, num_fewshot) if tasks or tasks_path else None
    records = [record for record in map(_Candidate.prune_record, candidates.values()) if record]
    recorded = next(filter(None, map(recorded_length, records)), None)
    request = DataRequest(
        length=min(window_length(seq_len or recorded, each.config()) for each in candidates.values()),
        calibration=0,
        search=0,
        test=eval_samples,
        seed=0,
        text_column=text_column,
        start_token=next(map(recorded_start_token, records), "auto"),
        token=options.token,
    )

    figures = Evaluation({role: {"name": candidate.name} for role, candidate in candidates.items()})
    if speed:
        loaded = {role: candidate.load() for role, candidate in candidates.items()}
        for role, measured in measure_speed(loaded, prompt_tokens, new_tokens, batch_size).items():
            figures[role]["speed"] = measured
        del loaded
    texts: dict[str, tuple[Windows, ...]] = {}
    predictions: list[Predictions] = []
    # The baseline first: the predictions of the others are compared with its own.
    for role in sorted(figures, key=lambda role: role != "baseline"):
        candidate, record = candidates.pop(role), figures[role]
        network = candidate.load()
        record |= size_record(network, candidate.source, **candidate.options.hub())
        if dataset:
            data = load_windows(TextMix.parse(dataset), candidate.tokenizer, network, request)
            for warning in data.warnings(request):
                logger.warning(warning)
            texts[role] = data.tests
        with in_compute_dtype(network):
            record["compute_dtype"] = dtype_name(network.dtype)
            if dataset:
                measured = _perplexities(network, texts[role], role, predictions, batch_size)
                record["perplexity"], *record["other_texts"] = measured
            if suite:
                score = partial(suite.score, network, candidate.tokenizer, limit)
                record["tasks"] = with_halving_batches(score, batch_size)
    compare_records(figures, texts)
    return figures


@dataclass
class _Candidate:
    """A model to measure: `source` is where it is loaded from, `None` if the caller has loaded it."""

    name: str
    source: str | None
    options: LoadOptions
    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None

    def config(self) -> PretrainedConfig:
        return self.model.config if self.model else read_any_config(self.source, self.options)

    def prune_record(self) -> dict[str, Any]:
        return {} if self.model else prune_record(self.source, **self.options.hub())

    def load(self) -> PreTrainedModel:
        if self.model is None:
            self.model, self.tokenizer = load_any(self.source, self.options)
        return self.model


def _candidate(source: Source, tokenizer: PreTrainedTokenizerBase | None, options: LoadOptions) -> _Candidate:
    if isinstance(source, PreTrainedModel):
        if tokenizer is None and not source.name_or_path:
            raise FFPError("a model that wasn't loaded from a folder or the Hub needs tokenizer=...")
        name = source.name_or_path or type(source).__name__
        return _Candidate(name, None, options, source, tokenizer or load_tokenizer(name, options))
    name = os.fspath(source)
    if not expand(name).exists() and "@" in name:
        model_id, _, revision = name.partition("@")
        return _Candidate(name, model_id, replace(options, revision=revision))
    return _Candidate(name, name, options)


def _perplexities(
    model: PreTrainedModel, texts: Sequence[Windows], role: str, predictions: list[Predictions], batch_size: int
) -> list[dict[str, Any]]:
    """Measure the perplexity on every text. The baseline adds its predictions, which others are compared with."""
    records = []
    for number, text in enumerate(texts):
        keep = baseline = None
        if role == "baseline":
            keep = Predictions(model, text.tokens, predictions[0].head if predictions else None)
            predictions.append(keep)
        elif predictions and predictions[number].fit(model, text.tokens):
            baseline = predictions[number]
        measure = partial(perplexity_record, model, text, keep=keep, baseline=baseline, label=f"Perplexity, {role}")
        records.append(with_halving_batches(measure, batch_size))
    return records
