"""Scores on tasks of lm-eval (extra `eval`)."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from numbers import Real
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config.fields import suggest_name
from ..errors import FFPError, convert_errors, named_line
from ..utils.batch_size import out_of_memory
from ..utils.folders import expand


class TaskSuite:
    """Tasks of lm-eval. The constructor loads their data, so that errors occur before models are scored.

    Args:
        names: Names of tasks, groups or tags, with `*` as a wildcard, or `.yaml` files; by default all of `folder`.
        folder: Folder with `.yaml` tasks, instead of the tasks that come with lm-eval.
        num_fewshot: Number of examples before each question; the task's setting if `None`.
        confirm_run_unsafe_code: Whether to allow tasks that run what the model writes.

    Raises:
        FFPError: If lm-eval is not installed, or a task is unknown, can't be read or isn't allowed.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: str | None = None,
        num_fewshot: int | None = None,
        confirm_run_unsafe_code: bool = False,
    ):
        try:
            from lm_eval.tasks import TaskManager
        except ImportError:
            raise FFPError("tasks need the lm-eval package: pip install lm-eval") from None
        # Suppress warnings about intended use: models in memory, and local tasks that override others.
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        # Reading the 15,000 tasks of lm-eval takes seconds.
        self.manager = TaskManager(include_path=folder and str(expand(folder)), include_defaults=folder is None)
        self.num_fewshot = num_fewshot
        self.names = [match for name in names or self.manager.all_subtasks for match in self._find(name)]
        if not self.names:
            raise FFPError(f"there are no tasks in {folder}; a task is a .yaml file of lm-eval")
        with self._converted_errors():
            tasks = self.manager.load(self.names)["tasks"]
        for name, task in tasks.items():
            if task.config.unsafe_code and not confirm_run_unsafe_code:
                raise FFPError(
                    f"{name} runs programs that the model writes; allow it with confirm_run_unsafe_code, on a machine "
                    "whose files they may read"
                )

    def _converted_errors(self) -> AbstractContextManager[None]:
        return convert_errors(
            lambda error: f"{', '.join(self.names)} can't be evaluated: {named_line(error)}", passes=out_of_memory
        )

    def _find(self, name: str) -> list[str]:
        file = expand(name)
        if file.suffix == ".yaml" and file.is_file():
            return [str(file)]
        matches = self.manager.match_tasks([name])
        if not matches:
            advice = suggest_name(name, self.manager.all_tasks) or "; `lm_eval ls tasks` lists them"
            raise FFPError(f"there is no task {name!r}{advice}")
        return matches

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        limit: float | None = None,
        batch_size: int = 1,
    ) -> list[dict[str, Any]]:
        """Score a model, as `lm_eval --model hf` does, and return a record per task and group.

        `limit` is the number of samples per task, or the fraction of them if below 1. Records of tasks have
        `per_sample`, lists of scores by metric, and the correct `answers`, as formatted by lm-eval.

        Raises:
            FFPError: If a task can't be run.
        """
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        with self._converted_errors():
            evaluated = simple_evaluate(
                # lm-eval's decorator hides the arguments.
                model=cast(Any, HFLM)(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
                tasks=[*self.names],
                task_manager=self.manager,
                num_fewshot=self.num_fewshot,
                limit=limit,
                confirm_run_unsafe_code=True,
            )
        results = cast(dict[str, Any], evaluated)
        return [
            {
                "task": name,
                "samples": results["n-samples"].get(name, {}).get("effective"),
                "fewshot": results["n-shot"].get(name),
                "version": results["versions"].get(name),
                "lm_eval": version("lm_eval"),
            }
            | _metrics(scores)
            | _per_sample(results.get("samples", {}).get(name, []))
            for name, scores in results["results"].items()
        ]


def _metrics(scores: dict[str, Any]) -> dict[str, dict[str, float]]:
    record: dict[str, dict[str, float]] = {"metrics": {}, "stderr": {}}
    for key, value in scores.items():
        # Scores have keys `metric,filter`; other entries are names.
        metric, comma, kind = key.partition(",")
        if comma and isinstance(value, (int, float)):
            values = record["stderr" if metric.endswith("_stderr") else "metrics"]
            values[_with_filter(metric.removesuffix("_stderr"), kind)] = float(value)
    return record


def _with_filter(metric: str, kind: str) -> str:
    return metric if kind == "none" else f"{metric} ({kind})"


def _per_sample(samples: list[dict[str, Any]]) -> dict[str, Any]:
    if not samples:
        return {}
    scores = defaultdict(list)
    for sample in samples:
        for metric in sample["metrics"]:
            # Some metrics, such as perplexity, are not a number per sample.
            if isinstance(sample[metric], Real):
                scores[_with_filter(metric, sample["filter"])].append(float(sample[metric]))
    first = samples[0]["filter"]
    answers = [str(sample["target"]) for sample in samples if sample["filter"] == first]
    return {"per_sample": dict(scores), "answers": answers}
