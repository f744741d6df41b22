"""Recovery of pruned models by distillation from the dense model."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from ..checkpoint.pushing import push_result
from ..checkpoint.recovered import save_recovered, source_folder
from ..checkpoint.result import package_versions, perplexities_by_text
from ..compression.calibration import is_improvement
from ..compression.training.batch import Batch
from ..compression.training.end_to_end import Training, TrainingOutput, check_launch, default_rate
from ..config import RecoveryConfig, RecoveryPlan
from ..config.training import TRAINED_RATE
from ..data import DataRequest, DataSplits, load_windows, training_windows
from ..data.samples import write_samples
from ..errors import FFPError, NotRecoveredError
from ..evaluation import window_losses
from ..modeling.loading import LoadOptions, load_any, load_pruned, pin_commit, resolve_device
from ..utils import processes
from ..utils.batch_size import memory_errors
from ..utils.lm_head import head_of
from ..utils.precision import compute_dtype, computes_in_bfloat16, convert, dtype_name
from ..utils.profiling import StageMeter
from ..utils.progress import progress_bar
from ..utils.record import RecoveryRecord
from ..utils.resume import Journal, fingerprint
from ..utils.tracking import Tracker, check_trackers
from ..vocabulary.trimmed import TrimmedVocabulary
from .plan import make_recovery_plan
from .teacher import check_teacher, find_teacher


REMEDIES = "gradient_checkpointing, a smaller batch_size or seq_len, lora, more GPUs, or another device"


class FFPRecovery:
    """Recovers a pruned model by training it to reproduce the predictions of the dense model.

    Training uses `Trainer`, and supports everything that accelerate launches: several GPUs, DDP, FSDP 2. In
    distributed runs all processes must make the same calls.

    Args:
        student: The pruned model. It is trained in float32 and saved in its dtype.
        teacher: The dense model, on the device to train on.
        tokenizer: Their tokenizer.
        config: Options of the recovery.
        source: Folder or Hub id of the pruned model, whose record and card are extended.
        teacher_id: Hub id, folder or file of the dense model, for the record.
        work_folder: Folder for finished work, from which `recover(resume=True)` resumes after an interruption; nothing
            is saved if `None`.
        report_to: Where to log the training: one or several of `"tensorboard"`, `"trackio"`, `"wandb"`.
        options: Options that the models were loaded with.
        teacher_tokenizer: Tokenizer of the teacher, if the vocabulary of the student is trimmed.

    Attributes:
        record: Record of the recovery, once finished.
        losses: Losses of every test window of every text, in nats per token, by model: `dense` (the teacher), `pruned`
            and `recovered`.

    Raises:
        FFPError: If the student's vocabulary isn't that of the teacher or a part of it, the models have the same
            weights, or an option can't be used.

    Example:
        >>> recovery = FFPRecovery.from_pretrained("out", RecoveryConfig(dataset="my_text.jsonl", max_tokens="2M"))
        >>> recovery.recover()
        >>> recovery.save_pretrained("out-recovered")
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: RecoveryConfig | RecoveryPlan,
        source: str | os.PathLike,
        teacher_id: str | os.PathLike,
        work_folder: str | os.PathLike | None = None,
        report_to: str | Sequence[str] = (),
        options: LoadOptions | None = None,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        self.report_to = check_trackers(report_to)
        self.student, self.teacher, self.tokenizer = student, teacher, tokenizer
        self.source, self.teacher_id = os.fspath(source), os.fspath(teacher_id)
        self.options, self.teacher_tokenizer = options or LoadOptions(), teacher_tokenizer or tokenizer
        sizes = (len(head_of(model).weight) for model in (teacher, student))
        self.vocabulary = TrimmedVocabulary.between(self.teacher_tokenizer, tokenizer, *sizes)
        is_planned = isinstance(config, RecoveryPlan)
        self.plan = config if is_planned else make_recovery_plan(config, self.source, self.options)
        check_launch(teacher.device, self.options.offload, work_folder is not None)
        self.record: RecoveryRecord | None = None
        self.losses: dict[str, list[list[float]]] = {}
        self.journal, self.work_folder = Journal(), work_folder
        self.learning_rate = self.plan.learning_rate or default_rate(student, TRAINED_RATE)
        self.plan = replace(self.plan, learning_rate=self.learning_rate)
        self.bf16 = computes_in_bfloat16(teacher.device, self.plan.bf16)
        self.batch = Batch.of_recovery(self.plan, student.config, processes.count())
        self.stored_dtype = student.dtype
        self.dense_teacher = check_teacher(
            self.source, student, self.teacher_id, teacher, self.options, self.vocabulary
        )

    @classmethod
    @memory_errors(REMEDIES)
    def from_pretrained(
        cls,
        model_id: str | os.PathLike,
        config: RecoveryConfig | RecoveryPlan | None = None,
        teacher: str | os.PathLike | None = None,
        work_folder: str | os.PathLike | None = None,
        report_to: str | Sequence[str] = (),
        **options: Any,
    ) -> "FFPRecovery":
        """Load a pruned model and its dense model.

        Args:
            model_id: Folder or Hub id of the pruned model.
            config: Options of the recovery; the defaults if `None`.
            teacher: Hub id, folder or `.gguf` file of the dense model; by default the one in `ffp_config.json`.
            work_folder: As for the class.
            report_to: As for the class.
            options: Fields of `LoadOptions` except `offload`.

        Raises:
            FFPError: If a model can't be loaded, the dense model isn't known, the tokenizers differ, or the launch is
                not supported.
        """
        config, name, load_options = config or RecoveryConfig(), os.fspath(model_id), LoadOptions(**options)
        processes.join(load_options.device)
        check_launch(resolve_device(load_options.device), load_options.offload, work_folder is not None)
        load_options = pin_commit(name, load_options)
        student, tokenizer = load_pruned(name, load_options)
        # Download files that the result includes before the training.
        processes.on_main(lambda: str(source_folder(name, load_options.hub())))
        teacher_id, teacher_options = find_teacher(name, None if teacher is None else os.fspath(teacher), load_options)
        dense, teacher_tokenizer = load_any(teacher_id, teacher_options, dequantize=True)
        convert(dense, compute_dtype(dense.device, dense.dtype))
        return cls(
            student,
            dense,
            tokenizer,
            config,
            name,
            teacher_id,
            work_folder,
            report_to,
            load_options,
            teacher_tokenizer,
        )

    @memory_errors(REMEDIES, "the recovery")
    def recover(self, resume: bool = False, callbacks: Sequence[TrainerCallback] = ()) -> RecoveryRecord:
        """Train, and measure the models before and after.

        Args:
            resume: Whether to resume from the last checkpoint in the work folder.
            callbacks: Callbacks for the `Trainer`.

        Returns:
            The record of the recovery; also stored as `self.record`. `self.student` is the recovered model.

        Raises:
            NotRecoveredError: If the training has not lowered the divergence on the held-out windows.
            FFPError: If the text can't be used, memory is exhausted, or the work folder contains the state of another
                run.
        """
        if self.record:
            raise FFPError("recover() can be called once per FFPRecovery; create a new instance")
        self._open_journal(resume)
        meter = StageMeter()
        with meter.stage("recovery"):
            data, windows = self._load_data()
            self._measure(self.teacher, data, "dense")
            self._measure(self.student, data, "pruned")
            # Before the training, which converts the dense model.
            dtypes = {"dense": self.teacher.dtype, "pruned": compute_dtype(self.teacher.device, self.stored_dtype)}
            trained = self._train(windows["tokens"], data.held_out.tokens, callbacks)
            self.student = trained.model
            self._measure(self.student, data, "recovered")
            # Measuring converted it to the compute dtype.
            convert(self.student, self.stored_dtype)
            samples = processes.on_main(partial(write_samples, self.student, self.tokenizer))
        rows = zip(data.tests, perplexities_by_text(self.losses))
        first, *rest = (perplexities | test.describe() for test, perplexities in rows)
        self.record = RecoveryRecord(
            options=self.plan.to_dict(),
            source=self.source,
            teacher=self.teacher_id,
            dense_teacher=self.dense_teacher,
            window_length=self.batch.length,
            windows_per_step=self.batch.windows,
            passes=dict(zip((text.name for text in self.plan.texts if not text.is_self), windows["passes"].tolist())),
            curve=trained.curve,
            kept=trained.best,
            held_out=data.held_out.describe(),
            samples=samples,
            compute_dtypes={name: dtype_name(dtype) for name, dtype in dtypes.items()},
            dtype=dtype_name(self.stored_dtype),
            bf16=self.bf16,
            seconds=round(meter.seconds["recovery"], 2),
            peak_gib=round(meter.peak_bytes["recovery"] / 2**30, 3),
            processes=processes.count(),
            versions=package_versions(),
            tokens=trained.curve[-1]["tokens"],
            perplexity=first,
            other_texts=rest,
        )
        return self.record

    def save_pretrained(self, directory: str | os.PathLike, overwrite: bool = False) -> None:
        """Write the recovered model as a checkpoint like that of the pruned model, with an extended card and record.

        Args:
            directory: Folder to write, atomically.
            overwrite: Whether to replace an empty folder, or a checkpoint of optimum-ffp without other files. One
                written by this run before it was resumed is always replaced.

        Raises:
            FFPError: If nothing has been recovered, or the folder exists and may not be replaced.
        """
        save = self._saver()
        processes.on_main(lambda: save(directory, overwrite, work_folder=self.journal.folder))
        self.journal.remove()
        self.journal = Journal()

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the result to the Hub in one commit from the main process, and return its URL.

        Arguments are as for `checkpoint.pushing.push_checkpoint`. Raises `FFPError` if there is no result, or the
        upload fails.
        """
        return push_result(self._saver(), repo_id, **options)

    @property
    def finished(self) -> RecoveryRecord:
        """The record of the recovery. Raises `FFPError` if it has not finished."""
        if self.record is None:
            raise FFPError("nothing to save yet; call recover() first")
        return self.record

    def _saver(self) -> Callable[..., Path]:
        return partial(save_recovered, self.finished, self.student, self.tokenizer, hub=self.options.hub())

    def _open_journal(self, resume: bool) -> None:
        if self.work_folder is None:
            if resume:
                raise FFPError("nothing to resume from; set work_folder of FFPRecovery")
            return
        identity = {
            "model": fingerprint(self.student),
            "teacher": fingerprint(self.teacher),
            "config": self.plan.to_dict(),
            **processes.on_main(self.plan.hash_files),
            "windows_per_step": self.batch.windows,
            # Sharded checkpoints have other files.
            "fsdp": os.environ.get("FSDP_STATE_DICT_TYPE", "") if processes.shards_models() else None,
            "versions": package_versions(),
        }
        self.journal = Journal.open(self.work_folder, identity, resume, on_disk=True)

    def _load_data(self) -> tuple[DataSplits, dict[str, torch.Tensor]]:
        """Load test and held-out windows, training windows, and the passes over every text that isn't generated."""
        request = DataRequest.of(self.plan, self.batch.length, self.options.token)

        def training_tensors() -> dict[str, torch.Tensor]:
            count = self.batch.steps * self.batch.windows
            tokens, passes = training_windows(self.teacher_tokenizer, self.teacher, request, count)
            return {"tokens": tokens, "passes": torch.tensor([*passes.values()], dtype=torch.float64)}

        tokenizer = self.teacher_tokenizer
        load = partial(processes.on_main, lambda: load_windows(tokenizer, self.teacher, request).to_list())
        is_measured = self.journal.has("evaluation-dense")
        try:
            data = DataSplits.from_list(self.journal.value("data", load))
            return data, self.journal.tensors("data-windows", partial(processes.tensors_on_main, training_tensors))
        except FFPError:
            if not is_measured:
                # There is nothing worth resuming.
                self.journal.remove()
            raise

    def _measure(self, model: PreTrainedModel, data: DataSplits, name: str) -> None:
        """Measure the losses of a model on the test windows of each text."""
        # Also if they are saved: what follows must not depend on that.
        convert(model, compute_dtype(self.teacher.device, model.dtype), self.teacher.device).eval()
        vocabulary = None if model is self.teacher else self.vocabulary

        def measure() -> list[list[float]]:
            with progress_bar(sum(map(len, data.tests)), f"Perplexity, {name}", "window") as bar:
                shares = (test.tokens[processes.share(len(test))] for test in data.tests)
                losses = (window_losses(model, share, on_batch=bar.update, vocabulary=vocabulary) for share in shares)
                return [processes.gather(rows).tolist() for rows in losses]

        self.losses[name] = self.journal.value(f"evaluation-{name}", measure)

    def _train(
        self, windows: torch.Tensor, held_out: torch.Tensor, callbacks: Sequence[TrainerCallback]
    ) -> TrainingOutput:
        """Train the student; the result keeps its dtype."""
        if self.bf16:
            convert(self.teacher, torch.bfloat16)
        with Tracker(self.report_to, f"{Path(self.source).name}-recovered", self.plan.to_dict()) as tracker:
            training = Training(
                student=self.student,
                teacher=self.teacher,
                dtype=self.stored_dtype,
                options=self.plan,
                learning_rate=self.learning_rate,
                batch=self.batch,
                bf16=self.bf16,
                vocabulary=self.vocabulary,
                tracker=tracker,
                callbacks=callbacks,
            )
            trained = training.run(windows, held_out, self.journal.checkpoints)
        if not is_improvement("the training", trained.curve[0], trained.best):
            # Resuming would end the same.
            self.journal.remove()
            raise NotRecoveredError(
                "the training did not lower the divergence on the held-out windows, and nothing was written; lower "
                "learning_rate (--learning-rate), or train on more tokens (--max-tokens)"
            )
        return trained
