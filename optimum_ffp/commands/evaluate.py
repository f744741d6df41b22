"""`optimum-cli ffp evaluate`."""

import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Collection, Iterable
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from optimum.commands.base import BaseOptimumCLICommand

from ..config.fields import Condition
from ..config.texts import TextMix
from .arguments import ON_THE_HUB, check_read, given_options, on_the_hub
from .errors import one_line_endings
from .evaluate_options import parse_args_ffp_evaluate


if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..data import DataRequest, Row, Windows
    from ..evaluation import Predictions, Speed, TaskSuite
    from ..modeling.loading import LoadOptions

logger = logging.getLogger(__name__)
USED = "{dataset}: a model was calibrated, searched or trained on this text, so that its figures are too good"
LOAD_OPTIONS = ("device", "dtype", "trust_remote_code", "token")
# Minimum value per option.
LEAST = {"eval_samples": 1, "seq_len": 2, "batch_size": 1, "prompt_tokens": 1, "new_tokens": 1, "repeats": 1}
SETTINGS = (
    *LEAST,
    "dataset",
    "text_column",
    "start_token",
    "split",
    "tasks",
    "tasks_path",
    "limit",
    "num_fewshot",
    "revision",
    "baseline_revision",
    "device",
    "dtype",
)
TEXT = Condition("without --no-perplexity", lambda args: not args.no_perplexity)
TASKS = Condition("with --tasks or --tasks-path", lambda args: args.tasks or args.tasks_path)
SPEED = Condition("without --no-speed", lambda args: not args.no_speed)
READ_WHEN = {
    **dict.fromkeys(("dataset", "text_column", "split", "eval_samples", "seq_len", "start_token"), TEXT),
    **dict.fromkeys(("limit", "num_fewshot"), TASKS),
    **dict.fromkeys(("prompt_tokens", "new_tokens", "repeats"), SPEED),
    "revision": ON_THE_HUB,
    "baseline_revision": Condition("with a --baseline on the Hub", lambda args: any(map(on_the_hub, args.baseline))),
}
REMEDIES = "--no-speed, which loads one model at a time, a smaller --seq-len, --dtype bfloat16, or another --device"


class FFPEvaluateCommand(BaseOptimumCLICommand):
    """`optimum-cli ffp evaluate`."""

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Adds the options."""
        return parse_args_ffp_evaluate(parser)

    def run(self) -> None:
        """Runs the command; an `FFPError` ends it with one line and exit code 2."""
        with one_line_endings():
            check_read(given_options(self.parser, self.args), READ_WHEN, self.args)

            from ..utils.batch_size import memory_errors

            with memory_errors(REMEDIES):
                evaluate(self.args)


def check_arguments(args: Namespace) -> None:
    """Raises `FFPError` for values that are wrong for any model."""
    from ..errors import FFPError
    from ..utils.folders import check_apart, check_file

    for name, least in LEAST.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise FFPError(f"--{name.replace('_', '-')} must be at least {least}, found {value}")
    if args.limit is not None and not args.limit > 0:
        raise FFPError(f"--limit is a number of samples, or a fraction of them below 1; found {args.limit:g}")
    if args.num_fewshot is not None and args.num_fewshot < 0:
        raise FFPError(f"--num-fewshot must be at least 0, found {args.num_fewshot}")
    if args.tasks and not task_names(args):
        raise FFPError("--tasks names no task; name some, as --tasks boolq piqa, or leave it out")
    texts = TextMix.parse(args.dataset).names
    if "self" in texts:
        raise FFPError(
            "--dataset self is for pruning only: perplexity on a model's own text says little; name another dataset"
        )
    if args.json:
        check_apart(args.json, filter(None, (args.model, *args.baseline, *texts, args.tasks_path)))
        check_file(args.json, b'{"settings":', overwrite=True)


def task_names(args: Namespace) -> list[str]:
    """Names of the tasks that are asked for; none for all of `--tasks-path`."""
    return [name.strip() for words in args.tasks or [] for name in words.split(",") if name.strip()]


def evaluate(args: Namespace) -> None:
    """Measures the model and its baseline, and prints a table."""
    check_arguments(args)

    from ..data import LONGEST
    from ..evaluation import TaskSuite, compare_records, comparison_table
    from ..hub.record import prune_record, recorded_length, recorded_start_token
    from ..modeling.loading import LoadOptions, load_any, read_any_config

    suite = None
    if args.tasks or args.tasks_path:
        suite = TaskSuite(task_names(args), args.tasks_path, args.num_fewshot)
    sources = {"model": (args.model, args.revision)}
    for number, model_id in enumerate(args.baseline, 1):
        sources["baseline" if number == 1 else f"baseline {number}"] = (model_id, args.baseline_revision)
    shared = {name: getattr(args, name) for name in LOAD_OPTIONS}
    sources = {
        role: (model_id, LoadOptions(revision=revision, **shared)) for role, (model_id, revision) in sources.items()
    }
    known = [prune_record(model_id, **options.hub()) for model_id, options in sources.values()]
    # That of the pruned model, so that its figures are those of its card.
    args.start_token = args.start_token or next(map(recorded_start_token, filter(None, known)), "auto")
    measured_with = [length for length in map(recorded_length, known) if length]
    used = used_texts(known)
    takes_length = args.seq_len is None and (measured_with or args.baseline)
    # Without speed models are loaded one by one: what can't be read is told before anything is scored.
    reads = args.no_speed or takes_length
    configs = [read_any_config(model_id, options) for model_id, options in sources.values()] if reads else []
    if takes_length:
        # A baseline may have fewer positions, and all models are measured on the same windows.
        positions = [getattr(config, "max_position_embeddings", None) for config in configs]
        args.seq_len = min([measured_with[0] if measured_with else LONGEST, *filter(None, positions)])
    texts = [] if args.no_perplexity else [read_text(args, name, used) for name in TextMix.parse(args.dataset).names]

    def load(role: str) -> Loaded:
        model_id, options = sources[role]
        return Loaded(role, model_id, options, *load_any(model_id, options, gguf=True))

    # Speed is measured in turns, with all models in memory. Loading errors then show before anything is scored.
    held = {} if args.no_speed else {role: load(role) for role in sources}
    records, tokens, speeds, predictions = {}, {}, {}, []
    try:
        # The others are compared with what it predicts.
        for role in sorted(sources, key="baseline".__ne__):
            loaded = held.get(role) or load(role)
            records[role], tokens[role] = measure(args, loaded, texts, suite, predictions)
            del loaded
        predictions.clear()
        speeds = time_models(args, {role: loaded.model for role, loaded in held.items()})
    finally:
        if records := {role: records[role] for role in sources if role in records}:
            compare_records(records, tokens, speeds)
            # Print before writing: the figures must not be lost if the file can't be written.
            print(comparison_table(records))
        # Not of some of the models alone.
        if args.json and len(records) == len(sources):
            write_report(args, records)


def used_texts(known: Iterable[dict[str, Any]]) -> set[str]:
    """Names, without folders, of the texts that the models were calibrated, searched or trained on."""
    steps = [
        step for record in known for step in (record, *(one.get("options", {}) for one in record.get("recovery", [])))
    ]
    found = [step.get("dataset", "") for step in steps]
    # A file of another folder may have a name like that of a mix.
    return {*found, *(name for dataset in found if dataset for name in TextMix.parse(dataset).names)} - {""}


class Text(NamedTuple):
    """A split, or a text without splits, of which the test part alone may be wanted."""

    dataset: str
    split: str
    rows: "list[Row]"
    test_part: bool


class Loaded(NamedTuple):
    """A loaded model and its source."""

    role: str
    model_id: str
    options: "LoadOptions"
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"


def measure(
    args: Namespace, loaded: Loaded, texts: list[Text], suite: "TaskSuite | None", predictions: "list[Predictions]"
) -> tuple[dict[str, Any], "list[torch.Tensor]"]:
    """Record of one model, without its speed, and the windows of its perplexities, shape `[windows, tokens]`.

    The baseline leaves what it predicts for each text in `predictions`, which others are compared with.
    """
    from ..evaluation import Predictions, perplexity_record, size_record
    from ..utils.batch_size import with_halving_batches
    from ..utils.precision import dtype_name, in_compute_dtype
    from ..utils.progress import progress_bar

    model, tests = loaded.model, [cut_windows(args, text, loaded) for text in texts]
    record = size_record(model, loaded.model_id, **loaded.options.hub())

    def perplexity(number: int, batch_size: int) -> dict[str, Any]:
        windows, own, known = tests[number], None, None
        if loaded.role == "baseline":
            # Those of an earlier batch size.
            del predictions[number:]
            own = Predictions(model, windows.tokens, *predictions[:1])
            predictions.append(own)
        elif predictions and predictions[number].fit(model, windows.tokens):
            known = predictions[number]
        with progress_bar(len(windows), f"Perplexity, {loaded.role}", "window") as bar:
            return perplexity_record(model, windows.tokens, windows.describe(), batch_size, bar.update, own, known)

    if not (tests or suite):
        return record, []
    with in_compute_dtype(model):
        record["compute_dtype"] = dtype_name(model.dtype)
        figures = [
            with_halving_batches(partial(perplexity, number), args.batch_size, REMEDIES)
            for number in range(len(tests))
        ]
        if figures:
            record["perplexity"], *record["other_texts"] = figures
        if suite:
            score = partial(suite.score, model, loaded.tokenizer, args.limit)
            record["tasks"] = with_halving_batches(score, args.batch_size, REMEDIES)
    return record, [windows.tokens for windows in tests]


def read_text(args: Namespace, dataset: str, used: Collection[str]) -> Text:
    """Reads the requested split; the test part of a file that models were calibrated or trained on."""
    from ..data import find_files, is_test_split, read_splits
    from ..errors import FFPError

    splits = read_splits(dataset, data_request(args), [args.split or "test"])
    if len(splits) > 1:
        if args.split not in (None, *splits):
            raise FFPError(f"{dataset} has the splits {', '.join(splits)}, found --split {args.split}")
        split = args.split or "test"
        if split != "test" and used & names_of(dataset):
            print(USED.format(dataset=f"{dataset} ({split})"))
        return Text(dataset, split, splits[split], False)
    if args.split not in (None, "test", "all"):
        raise FFPError(
            f"{dataset} is read as one text, found --split {args.split}; give all to use it whole, or test for the "
            "part that a prune reports on"
        )
    ((split, rows),) = splits.items()
    tests = is_test_split(dataset, split)
    # Of a dataset of the Hub a prune that left no record may have calibrated on the other parts.
    test_part = not tests and (args.split == "test" or not (args.split or find_files(dataset)))
    if args.split != "all" and not test_part and used & names_of(dataset):
        print(f"{dataset}: a model was calibrated or trained on other parts; its test part is used (or --split all)")
        test_part = True
    elif name_of_splits(dataset) in used:
        print(USED.format(dataset=dataset))
    return Text(dataset, split, rows, test_part)


def names_of(dataset: str) -> set[str]:
    """Names that a record may have of a text: its own, that of the file it links to, that of a folder of one file."""
    from ..data import find_files
    from ..hub.naming import short_name
    from ..utils.folders import resolve

    names = {short_name(dataset)}
    if find_files(dataset):
        path = resolve(dataset)
        names.add(path.name)
        if [*folder_of(dataset).values()] == [[path]]:
            names.add(path.parent.name)
    return names


def name_of_splits(dataset: str) -> str | None:
    """The name of the folder of several splits that a file is in, unless it is what that has for tests."""
    from ..utils.folders import resolve

    path, folder = resolve(dataset), folder_of(dataset)
    return path.parent.name if len(folder) > 1 and path not in folder.get("test", []) else None


def folder_of(dataset: str) -> "dict[str, list[Path]]":
    """Files by split of the folder that a file is in; empty for what is none of them."""
    from ..data import find_files
    from ..errors import FFPError
    from ..utils.folders import resolve

    path = resolve(dataset)
    # The folder may hold something else.
    with suppress(FFPError):
        if path.is_file() and path in chain.from_iterable((files := find_files(str(path.parent))).values()):
            return files
    return {}


def cut_windows(args: Namespace, text: Text, loaded: Loaded) -> "Windows":
    """The first windows of a text."""
    from ..data import TEST_WINDOWS, Windows, cut_rows, find_start_token, part_for_test, window_length

    count, length = args.eval_samples, window_length(args.seq_len, loaded.model.config)
    dataset, split = text.dataset, text.split
    start = find_start_token(loaded.tokenizer, args.start_token)
    tokens = cut_rows(text.rows, loaded.tokenizer, loaded.model, length, f"{dataset} ({split})", start)
    if text.test_part:
        tokens = tokens[part_for_test(len(tokens)).start :]
        split, count = f"test part of {split}", count or TEST_WINDOWS
    wanted = args.eval_samples or 0
    if loaded.role == "model" and len(tokens) < wanted:
        logger.warning("%s (%s) has %d of %d windows of %d tokens", dataset, split, len(tokens), wanted, length)
    return Windows(tokens[:count], dataset, split, start is not None)


def data_request(args: Namespace) -> "DataRequest":
    """A request for test windows alone, of `LONGEST` tokens if neither the model nor the user sets a length."""
    from ..data import LONGEST, DataRequest

    columns = {"text_column": args.text_column, "token": args.token}
    return DataRequest(args.seq_len or LONGEST, 0, 0, args.eval_samples, seed=0, **columns)


def time_models(args: Namespace, models: dict[str, "PreTrainedModel"]) -> dict[str, "Speed"]:
    """Speed of the models, measured in turns; empty if there are none or memory runs out."""
    from ..evaluation import measure_speed
    from ..utils.batch_size import out_of_memory
    from ..utils.progress import progress_bar

    if not models:
        return {}
    counts = (args.prompt_tokens, args.new_tokens, args.batch_size, args.repeats)
    with progress_bar((args.repeats + 1) * len(models), "Speed", "measurement") as bar:
        try:
            return measure_speed(models, *counts, on_measured=bar.update)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            logger.warning("out of memory: speed is left out; lower --batch-size or --prompt-tokens to measure it")
            return {}


def write_report(args: Namespace, records: dict[str, dict[str, Any]]) -> None:
    """Writes the records, settings and package versions as JSON."""
    from ..checkpoint.result import package_versions
    from ..errors import FFPError
    from ..utils.folders import expand
    from ..utils.json import write_json

    settings = {name: getattr(args, name) for name in SETTINGS}
    report = {"settings": settings, "versions": package_versions(), **records}
    try:
        path = expand(args.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, report)
    except OSError as error:
        raise FFPError(f"--json {args.json} can't be written: {error}") from None
