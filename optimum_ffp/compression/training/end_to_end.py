"""Training of a pruned model with `Trainer`."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils.data import StackDataset
from transformers import EarlyStoppingCallback, PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments

from ...config import TrainingOptions
from ...config.prune import GRADIENT_COST
from ...engine.layer_runner import score_bytes
from ...errors import FFPError
from ...modeling.families import decoder_layers, outer_matrices
from ...modeling.offloading import shard_layers
from ...utils import processes
from ...utils.lm_head import head_of, logit_bytes
from ...utils.precision import convert, frozen_dtype
from ...utils.progress import progress_bar
from ...utils.tensors import replace_value
from ...utils.tracking import Tracker
from ...vocabulary.trimmed import TrimmedVocabulary
from .batch import Batch
from .loss import DistillationLoss
from .trainer import DistillationTrainer, ReportCallback


# Number of times to log the loss.
LOGS = 50
# α of LoRA relative to its rank.
LORA_SCALE = 2
BETA2 = 0.95


@dataclass(frozen=True)
class TrainingOutput:
    """Result of a training.

    Attributes:
        model: The model in the dtype to save it in, in host memory.
        curve: One record per evaluation: `step`, `tokens`, and on held-out windows `kl` and `perplexity`.
        best: The record of the resulting weights, which have the lowest divergence since the start of the training.
        tokens: Tokens that were read, in forward passes; a backward pass counts as two, with adapters too.
    """

    model: PreTrainedModel
    curve: list[dict[str, Any]]
    best: dict[str, Any]
    tokens: int


@dataclass(frozen=True)
class Training:
    """Trains all weights of a model, or LoRA adapters for its projections, which are merged into them.

    Attributes:
        student: The pruned model. It is changed.
        teacher: The dense model, on the device to train on, in the dtype to compute in.
        dtype: Dtype of the result.
        learning_rate: Peak learning rate.
        bf16: Whether to compute in bfloat16.
        vocabulary: That of the student, if it is trimmed. Windows are in the tokens of the teacher.
        callbacks: Callbacks of `Trainer` besides our own.
    """

    student: PreTrainedModel
    teacher: PreTrainedModel
    dtype: torch.dtype
    options: TrainingOptions
    learning_rate: float
    batch: Batch
    bf16: bool
    vocabulary: TrimmedVocabulary | None = None
    tracker: Tracker | None = None
    callbacks: Sequence[TrainerCallback] = ()

    def run(self, windows: torch.Tensor, held_out: torch.Tensor, folder: Path | None = None) -> TrainingOutput:
        """Train on windows in order, resuming from the last checkpoint in a folder if there is one.

        By default, checkpoints are in a temporary folder and only hold weights.

        Raises:
            FFPError: If a checkpoint can't be written.
        """
        if processes.shards_models():
            # FSDP distributes the shards. In float32, the model may not fit on the device along with the dense model.
            self.student.cpu()
            shard_layers(self.teacher)
        with (
            TemporaryDirectory(prefix="optimum-ffp-") if folder is None else nullcontext(folder) as checkpoint_folder,
            self._in_training(),
            progress_bar(self.batch.steps, f"Training, learning rate {self.learning_rate:g}", "step") as bar,
        ):
            trainer = self._trainer(windows, held_out, Path(checkpoint_folder), weights_only=folder is None)
            trainer.add_callback(ReportCallback(bar, self.tracker))
            trainer.train(resume_from_checkpoint=_last_checkpoint(Path(checkpoint_folder)))
            model = self._unwrapped(trainer)
        curve = [
            {
                "step": row["step"],
                "tokens": row["step"] * self.batch.tokens,
                "kl": row["eval_kl"],
                "perplexity": row["eval_perplexity"],
            }
            for row in trainer.state.log_history
            if "eval_loss" in row
        ]
        trained_on = min(trainer.state.global_step * self.batch.windows, len(windows)) * windows.shape[1]
        return TrainingOutput(
            model=self._merged(model),
            curve=curve,
            # The first evaluation precedes the training, and is the only one if its loss is not finite.
            best=min(curve[1:] or curve, key=lambda row: row["kl"]),
            tokens=(1 + GRADIENT_COST) * trained_on + 2 * len(curve) * held_out.numel(),
        )

    @contextmanager
    def _in_training(self) -> Iterator[None]:
        """Replace the forward pass of the student by the loss for the duration of the context, and disable dropout."""
        student, options = self.student, self.options
        # The teacher has none, so that it would only add noise.
        for module in student.modules():
            for name, rate in vars(module).items():
                if isinstance(rate, float) and ("drop" in name or isinstance(module, torch.nn.Dropout)):
                    setattr(module, name, 0.0)
        # `Trainer` disables it in the config, which is saved.
        use_cache = student.config.use_cache
        student.forward = DistillationLoss(
            student, self.teacher, options.temperature, options.label_share, self.vocabulary
        )
        try:
            yield
        finally:
            del student.forward
            student.config.use_cache = use_cache

    def _trainer(
        self, windows: torch.Tensor, held_out: torch.Tensor, folder: Path, weights_only: bool
    ) -> DistillationTrainer:
        options = self.options
        # Any rows can be stacked.
        datasets = [StackDataset(input_ids=rows) for rows in (windows, held_out)]  # pyright: ignore[reportArgumentType]
        trainer = DistillationTrainer(
            self._trainable(self.student),
            self._arguments(folder, weights_only),
            train_dataset=datasets[0],
            eval_dataset=datasets[1],
            callbacks=[*self.callbacks, *([EarlyStoppingCallback(options.patience)] if options.patience else [])],
        )
        # It prints every log.
        trainer.remove_callback(PrinterCallback)
        if processes.shards_models() and self.bf16 and (plugin := trainer.accelerator.state.fsdp_plugin):
            from torch.distributed.fsdp import MixedPrecisionPolicy

            # Accelerate would use bfloat16 for gradients and the loss too.
            plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
            )
        return trainer

    def _trainable(self, student: PreTrainedModel) -> Any:
        """Return a model with adapters, or the student in float32 with a frozen embedding and head.

        A pruned model has the hidden size that these are for.
        """
        rank = self.options.lora
        if not rank:
            convert(student, torch.float32).requires_grad_(True)
            # The dense model's are right, unless words that it knows are read and written in pieces.
            for matrix in outer_matrices(student):
                matrix.requires_grad_(self.vocabulary is not None)
            return student
        from peft import LoraConfig, get_peft_model

        targets = LoraConfig(
            r=rank, lora_alpha=LORA_SCALE * rank, target_modules="all-linear", task_type="CAUSAL_LM", bias="none"
        )
        torch.manual_seed(self.options.seed)
        frozen = frozen_dtype(self.teacher.device, student.dtype, self.bf16)
        return get_peft_model(convert(student, frozen), targets)

    def _arguments(self, folder: Path, weights_only: bool) -> TrainingArguments:
        options, batch = self.options, self.batch
        every = math.ceil(batch.steps / options.evaluations)
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=batch.steps,
            per_device_train_batch_size=batch.at_once,
            per_device_eval_batch_size=batch.at_once,
            train_sampling_strategy="sequential",
            gradient_accumulation_steps=batch.accumulation,
            learning_rate=self.learning_rate,
            warmup_steps=int(options.warmup_ratio * batch.steps),
            weight_decay=options.weight_decay,
            max_grad_norm=options.max_grad_norm,
            adam_beta2=BETA2,
            bf16=self.bf16,
            **(_checkpointing() if options.gradient_checkpointing else {}),
            eval_strategy="steps",
            eval_steps=every,
            eval_on_start=_last_checkpoint(folder) is None,
            save_strategy="steps",
            save_steps=every,
            # The best checkpoint is kept in addition.
            save_total_limit=1,
            save_only_model=weights_only,
            load_best_model_at_end=True,
            metric_for_best_model="kl",
            greater_is_better=False,
            restore_callback_states_from_checkpoint=bool(options.patience),
            logging_steps=max(1, round(batch.steps / LOGS)),
            # It would log a loss of 0 if the loss is not finite.
            logging_nan_inf_filter=False,
            report_to="none",
            seed=options.seed,
            use_cpu=self.teacher.device.type == "cpu",
            disable_tqdm=True,
            # Log tokens and tokens per second.
            include_num_input_tokens_seen="all",
            remove_unused_columns=False,
            ddp_find_unused_parameters=False,
            # FSDP would keep unsharded gradients until the last accumulation step.
            accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": processes.shards_models()}},
        )
        # Override the mixed precision of an accelerate config.
        arguments.mixed_precision = "bf16" if self.bf16 else "no"
        # Prevent `DataParallel` over all visible GPUs.
        arguments._n_gpu = min(1, arguments.n_gpu)
        return arguments

    def _unwrapped(self, trainer: DistillationTrainer) -> Any:
        """Return the trained model without the wrappers of `Trainer`."""
        if not processes.shards_models():
            return trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
        # With FSDP every process has a shard of the weights.
        state: Any = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        state = processes.tensors_on_main(lambda: state)
        with torch.device("meta"):
            base = type(self.student)(self.student.config)
            full_model = self._trainable(base)
        full_model.load_state_dict(state, assign=True)
        base.tie_weights()
        trained = dict(self.student.named_buffers())
        for name, buffer in base.named_buffers():
            if buffer.is_meta:
                replace_value(buffer, trained[name].to("cpu", copy=True))
        return full_model

    def _merged(self, model: Any) -> PreTrainedModel:
        """Return the model in its dtype, with adapters merged."""
        if self.options.lora:
            # On the CPU: in float32, the model may not fit on the device along with the dense model.
            model = convert(model, torch.float32, "cpu").merge_and_unload()
        model.config.dtype = self.dtype
        # Convert on the device to transfer less to host memory.
        return convert(model, self.dtype).cpu().requires_grad_(False).eval()


def check_launch(device: torch.device, offload: str, has_work_folder: bool, can_shard: bool = True) -> None:
    """Raise `FFPError` if the processes of this run can't train a whole model on a device with an offload."""
    if offload != "none":
        raise FFPError(
            f"training the whole model needs its weights on the device, found offload {offload!r}; leave out offload, "
            "prune with calibration 'layers', or recover with FSDP 2"
        )
    if processes.shards_models() and not can_shard:
        raise FFPError(
            "a prune can't train a model that is sharded by FSDP; launch it without FSDP, or prune with calibration "
            "'layers' and recover with FSDP 2"
        )
    if processes.count() > 1 and not has_work_folder:
        raise FFPError("several processes need a work_folder to load the best weights from")
    if processes.count() == 1 and (device.index or 0) > 0:
        # `Trainer` uses the first one.
        raise FFPError(f"training uses the first visible device; set CUDA_VISIBLE_DEVICES={device.index}")


def default_rate(model: PreTrainedModel, relative: float) -> float:
    """Return a learning rate relative to the size of a model's weights, to two digits.

    A step of Adam changes weights by about the learning rate, and those of some models are ten times as large as those
    of others. The size is the median root mean square of the matrices in the layers.
    """
    matrices = (weight.detach().float() for weight in decoder_layers(model).parameters() if weight.ndim > 1)
    return float(f"{relative * median(float(matrix.square().mean().sqrt()) for matrix in matrices):.2g}")


def _checkpointing() -> dict[str, Any]:
    """Return arguments of `TrainingArguments`, which were renamed in transformers 5.24."""
    name = "activation" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient"
    # Reentrant checkpointing loses the gradients of adapters.
    return {f"{name}_checkpointing": True, f"{name}_checkpointing_kwargs": {"use_reentrant": False}}


def _last_checkpoint(folder: Path) -> str | None:
    """Return the path of the last complete checkpoint, whose trainer state is written last."""
    complete = []
    for state in folder.glob("checkpoint-*/trainer_state.json"):
        with suppress(ValueError):
            json.loads(state.read_text(encoding="utf-8"))
            complete.append(str(state.parent))
    return max(complete, key=lambda path: int(path.rpartition("-")[2]), default=None)


def trained_parameters(model: PreTrainedModel, parameters: int, lora: int | None) -> int:
    """Return how many of the parameters of a pruned model, or of those of adapters, are trained.

    Args:
        model: The dense model.
        parameters: Parameters of the pruned model.
        lora: Rank of the adapters.
    """
    if lora:
        matrices = (one for layer in decoder_layers(model) for one in layer.parameters() if one.ndim == 2)
        return lora * sum(sum(one.shape) for one in matrices)
    return parameters - sum(one.numel() for one in outer_matrices(model))


def training_bytes(parameters: int, trained: int, lora: int | None, stored: int, computed: int, shares: int) -> int:
    """Return the bytes of weights, gradients and moments.

    Args:
        parameters: Parameters of the model.
        trained: Those that are trained (`trained_parameters`).
        lora: Rank of the adapters.
        stored: Bytes per weight.
        computed: Bytes per weight in forward passes.
        shares: Number of processes that train together.
    """
    weights = parameters * (stored if stored == computed else stored + computed)
    adapters = 4 * trained if lora else 0
    # Several processes exchange copies of the gradients.
    return weights + adapters + trained * (16 if shares > 1 else 12)


def activation_bytes(model: PreTrainedModel, batch: Batch, itemsize: int, checkpointing: bool = False) -> int:
    """Return the bytes of activations and logits of a forward and backward pass."""
    layers, tokens = decoder_layers(model), batch.at_once * batch.length
    vocabulary, hidden = head_of(model).weight.shape
    # Norms in float32, inputs of projections and of attention, and activations as wide as the FFN.
    activations = len(layers) * (hidden * (16 + 7 * itemsize) + score_bytes(model.config, batch.length))
    widths = ([one.shape[1] for one in layer.parameters() if one.ndim == 2] for layer in layers)
    activations += 4 * itemsize * sum(map(max, widths))
    if checkpointing:
        activations = len(layers) * hidden * itemsize + activations // len(layers)
    return tokens * activations + logit_bytes(vocabulary, tokens)
