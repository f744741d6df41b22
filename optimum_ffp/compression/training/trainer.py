"""`Trainer` subclass that distills from the dense model."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.integrations.integration_utils import rewrite_logs

from ...errors import convert_errors, one_line
from ...evaluation import to_perplexity
from ...utils.profiling import STOPWATCH
from ...utils.tracking import Tracker


class ReportCallback(TrainerCallback):
    """Shows steps and the last evaluation on a progress bar, and logs under the names of the callbacks of Trainer."""

    def __init__(self, bar: tqdm, tracker: Tracker | None):
        self.bar, self.tracker, self.began = bar, tracker, 0.0

    def on_log(self, args: Any, state: TrainerState, control: Any, *, logs: Mapping[str, float], **_: Any) -> None:
        """Log the numbers of a step."""
        if self.tracker:
            self.tracker.log(rewrite_logs(logs), state.global_step)

    def on_train_begin(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        """Count the steps and the time before an interruption."""
        self.bar.update(state.global_step)
        self.began = STOPWATCH.read()
        STOPWATCH.total += state.log_history[-1]["seconds"] if state.log_history else 0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Count a step."""
        self.bar.update()

    def on_evaluate(self, args: Any, state: TrainerState, *_: Any, metrics: Mapping[str, float], **__: Any) -> None:
        """Show the divergence and perplexity on held-out windows, and save the time so far in the checkpoint."""
        state.log_history[-1]["seconds"] = STOPWATCH.read() - self.began
        kl, perplexity = metrics["eval_kl"], metrics["eval_perplexity"]
        self.bar.set_postfix_str(f"held out: divergence {kl:.3f}, perplexity {perplexity:.2f}")


class DistillationTrainer(Trainer):
    """Trains a pruned model whose forward pass is a `DistillationLoss`.

    An evaluation gives the divergence from the dense model and the perplexity on the held-out windows, `eval_kl` and
    `eval_perplexity`, and the loss, `eval_loss`. The best weights have the lowest divergence. A loss that is not
    finite ends the training.
    """

    model_wrapped: nn.Module

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LambdaLR:
        """Create a schedule of linear warmup and cosine decay; those of transformers begin or end with idle steps."""
        warmup = self.args.warmup_steps

        def factor(step: int) -> float:
            progress = max(0, step - warmup) / max(1, num_training_steps - warmup)
            return min((step + 1) / (warmup + 1), (1 + math.cos(math.pi * progress)) / 2)

        self.lr_scheduler = LambdaLR(optimizer or self.create_optimizer(), factor)
        return self.lr_scheduler

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure and log the figures on the held-out windows."""
        self.model_wrapped.eval()
        rows = []
        for batch in self.get_eval_dataloader():
            measured = self.model_wrapped(**self._prepare_inputs(batch))["measured"]
            # Convert on the CPU, since some devices lack float64.
            rows.append(torch.as_tensor(self.accelerator.gather_for_metrics(measured)).cpu().double())
        loss, kl, nll = torch.cat(rows).mean(0).tolist()
        metrics = {"eval_loss": loss, "eval_kl": kl, "eval_perplexity": to_perplexity(nll)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control.should_training_stop |= not math.isfinite(loss)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the weights, or if they are sharded, create the folder for FSDP.

        `Trainer` then checks whether the folder of the best weights exists, and otherwise loads older ones.
        """
        Path(output_dir or str(self.args.output_dir)).mkdir(parents=True, exist_ok=True)
        super().save_model(output_dir, _internal_call)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Suppress the warning about tied weights, which are missing from the files by design."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Weights, optimizer and state are written by libraries that raise different exceptions if the disk is full.
        with convert_errors(
            lambda error: (
                f"the training stopped: {one_line(error)}; if the disk is full, free space, then resume "
                "with --resume (resume=True)"
            )
        ):
            super()._save_checkpoint(model, trial)
