"""Options of an evaluation."""

from dataclasses import dataclass

from ..errors import FFPError
from .fields import Config, named_options, option, same_as
from .prune import SEQ_LEN_DEFAULT, FFPConfig
from .texts import TextMix, mark_local_paths


TASKS = "Tasks (needs lm-eval: pip install lm-eval)"


@named_options
@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Config):
    """Options of `evaluate` and `optimum-cli ffp evaluate`.

    Raises:
        FFPError: If a value is not allowed, or an option is unknown.
    """

    dataset: str | None = option(
        "wikitext2",
        "Text to measure perplexity on: wikitext2, c4, a Hub id, a file, or a folder with train, validation and test "
        "files. Several texts, separated by commas, are reported separately. Only the test split is read; for a text "
        "without splits, the part that a prune reserves for testing.",
        "Perplexity",
    )
    text_column: str | None = same_as(FFPConfig, "text_column", group="Perplexity")
    eval_samples: int | None = same_as(FFPConfig, "eval_samples", group="Perplexity")
    seq_len: int | None = option(
        None,
        "Tokens per window.",
        "Perplexity",
        low=2,
        default_text=f"as in the prune or recovery of the first pruned model, otherwise {SEQ_LEN_DEFAULT}",
    )
    perplexity: bool = option(True, "Whether to measure perplexity and divergence.", "Perplexity")
    tasks: tuple[str, ...] = option(
        (),
        "lm-eval tasks to run: names, with * as a wildcard, or .yaml files.",
        TASKS,
        cli={"nargs": "+", "metavar": "TASK"},
    )
    tasks_path: str | None = option(
        None, "Folder of .yaml tasks, whose data may be local; all of them are run if tasks is empty."
    )
    limit: float | None = option(None, "Samples per task, or a fraction if below 1.", TASKS, default_text="all")
    num_fewshot: int | None = option(None, "Examples before each question.", TASKS, default_text="the task's setting")
    confirm_run_unsafe_code: bool = option(
        False,
        "Allow tasks that run programs the model writes: as the current user, without network where optimum-ffp runs "
        "them.",
        TASKS,
    )
    speed: bool = option(True, "Whether to measure speed. Without it, only one model is in memory at a time.", "Speed")
    prompt_tokens: int = option(512, "Number of tokens in the prompt.", "Speed", low=1)
    new_tokens: int = option(32, "Number of tokens to generate.", "Speed", low=1)
    batch_size: int = option(1, "Windows, task requests or prompts per forward pass.", "Loading and running", low=1)

    @property
    def texts(self) -> TextMix:
        """Texts to measure perplexity on."""
        return TextMix.parse(mark_local_paths(self.dataset)) if self.perplexity and self.dataset else TextMix(())

    def check(self) -> None:
        """Check the number of samples and the texts."""
        if self.limit is not None and self.limit <= 0:
            raise FFPError(f"limit must be a number of samples, or a fraction of them below 1, found {self.limit:g}")
        if self.texts.includes_self:
            raise FFPError(
                "perplexity on text that the model is generating isn't comparable; choose a dataset without self"
            )
