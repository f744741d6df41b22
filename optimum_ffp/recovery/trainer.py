"""The Trainer of a recovery."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import rewrite_logs

from ..data.windows import without_mask
from ..errors import FFPError
from ..evaluation import to_perplexity
from ..utils import processes
from ..utils.tracking import Tracker
from . import training_state
from .loss import UNLABELLED


class LabelledWindows(Dataset):
    """Windows as `Trainer` takes them.

    Args:
        tokens: Token ids, shape `[windows, window length]`; `-1 - id` for tokens without a loss.
    """

    def __init__(self, tokens: torch.Tensor):
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = self.tokens[index].long()
        return {"input_ids": without_mask(tokens), "labels": tokens.masked_fill(tokens < 0, UNLABELLED)}


class TrackerCallback(TrainerCallback):
    """Logs what `Trainer` does, under the names that its own callbacks take.

    Args:
        tracker: Where to log it.
    """

    def __init__(self, tracker: Tracker):
        self.tracker = tracker

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float],
        **others: Any,
    ) -> None:
        """Logs the numbers of a step."""
        self.tracker.log(rewrite_logs(logs), state.global_step)


class RecoveryTrainer(Trainer):
    """Trains a pruned model whose forward pass is a `DistillationLoss`.

    It differs from `Trainer` in four ways. Windows are taken in the order of the dataset, so that every number of
    processes trains on the same ones in a step. An evaluation gives the divergence from the dense model and the
    perplexity on the held-out windows, `eval_kl` and `eval_perplexity`, and the mean of the divergence and the log of
    the perplexity by their shares in the training, `eval_loss`. Checkpoints are safetensors and JSON, but for those of
    FSDP, which are accelerate's; their folders are made in time for `Trainer` to find the best one.

    Args:
        arguments: Arguments of `Trainer`.
        label_share: Share of the language-model loss, as for `DistillationLoss`.
        options: Arguments of `Trainer`.
    """

    def __init__(self, *arguments: Any, label_share: float = 0.0, **options: Any):
        super().__init__(*arguments, **options)
        self.label_share = label_share

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        return SequentialSampler(train_dataset or self.train_dataset)

    @torch.no_grad()
    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measures and logs the divergence (nats per token), the perplexity and the loss on held-out windows.

        Args:
            eval_dataset: Windows; those of the constructor if `None`.
            ignore_keys: Ignored.
            metric_key_prefix: Prefix of the names of the figures.

        Raises:
            FFPError: If the loss is not finite.
        """
        windows, world = eval_dataset or self.eval_dataset, self.args.world_size
        self.model_wrapped.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        # Every process runs the model as often as the others, since FSDP gathers weights of all of them.
        for first in range(0, len(windows), world):
            index = first + self.args.process_index
            batch = {name: row[None] for name, row in windows[index % len(windows)].items()}
            found = self.model_wrapped(**self._prepare_inputs(batch))
            if index < len(windows):
                # In two steps: some devices have no float64.
                sums += torch.stack([found[name].float() for name in ("kl", "nll", "tokens")]).cpu().double()
        kl, nll, tokens = processes.sum_(sums).tolist()
        kl, nll, share = kl / tokens, nll / tokens, self.label_share
        figures = {"kl": kl, "perplexity": to_perplexity(nll), "loss": (1 - share) * kl + share * nll}
        # With patience the best weights are kept in any case.
        if not math.isfinite(figures["loss"]) and self.state.best_metric is None:
            if not self.state.global_step:
                raise FFPError(
                    "the loss on held-out windows is not finite before the training: a model is damaged, or needs a "
                    "dtype of more bits"
                )
            # Before the checkpoint of this step is saved in place of the last.
            raise FFPError(
                f"the loss on held-out windows is not finite after {self.state.global_step} steps; lower "
                "learning_rate (ffp recover --learning-rate), or raise warmup_ratio, and begin again with --overwrite"
            )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the weights, or with sharded ones makes the folder that FSDP will write them to.

        `Trainer` looks right after this whether the folder of the best weights exists, and otherwise loads older ones.
        """
        Path(output_dir or self.args.output_dir).mkdir(parents=True, exist_ok=True)
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        # Without the arguments, which are a pickle.
        self.model.save_pretrained(output_dir, state_dict=state_dict, is_main_process=self.args.should_save)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            training_state.save_optimiser(self.optimizer, Path(output_dir))
            training_state.save_schedule(self.lr_scheduler, Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
        else:
            training_state.load_optimiser(self.optimizer, Path(checkpoint))
            training_state.load_schedule(self.lr_scheduler, Path(checkpoint))

    def _save_rng_state(self, output_dir: str) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        training_state.save_random_state(Path(output_dir), self.args.process_index)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            training_state.load_random_state(Path(checkpoint), self.args.process_index)
