"""Distillation loss: the divergence of the pruned model's predictions from those of the dense model."""

from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from torch.nn.functional import kl_div
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ...utils.lm_head import POSITIONS, decode, head_logits, replaced_forward, without_hooks


class DistillationLoss:
    """The forward pass of a pruned model in training: `student.forward = DistillationLoss(student, teacher)`.

    For every token but the first of a window, with the logits `z` of the student and `y` of the teacher before it,

        (1 - m) · τ² · KL(softmax(y / τ) ‖ softmax(z / τ)) + m · cross-entropy(softmax(z), token)

    Logits are computed in chunks of positions, and recomputed in the backward pass, so that those of a window are
    never materialized. As the module's forward pass, the loss works with any wrapper, such as DDP, FSDP or peft.

    Args:
        student: The pruned model.
        teacher: The dense model. It is not trained.
        temperature: τ.
        label_share: m, the share of the language-model loss.
        positions: Number of positions per chunk.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        temperature: float = 1.0,
        label_share: float = 0.0,
        positions: int = POSITIONS,
    ):
        self.student, self.teacher = student, teacher
        self.temperature, self.label_share, self.positions = temperature, label_share, positions
        self._forward = MethodType(type(student).forward, student)

    def __call__(self, input_ids: torch.Tensor, **options: Any) -> dict[str, torch.Tensor]:
        """Compute the loss of a batch of windows.

        Args:
            input_ids: Token ids, shape `[windows, window length]`.
            options: Ignored arguments that wrappers pass.

        Returns:
            `loss`, the mean over all predicted tokens; and `measured`, without gradients, the loss, divergence and
            negative log-likelihood of each window, in nats per predicted token, shape `[windows, 3]`.
        """
        predicted = input_ids.shape[1] - 1
        with torch.no_grad():
            teacher_decoded = decode(self.teacher, input_ids)
        with replaced_forward(self.student, self._forward):
            # FSDP may offload the weights to host memory.
            student_decoded = decode(self.student, input_ids, input_ids.device)
        head = self.student.get_output_embeddings()
        plain_forward = head.forward

        def sum_chunks(hidden: torch.Tensor) -> torch.Tensor:
            sums = torch.zeros(2, len(hidden), device=hidden.device)
            for start in range(0, predicted, self.positions):
                chunk = slice(start, min(start + self.positions, predicted))
                sums = sums + checkpoint(
                    self._chunk_sums,
                    replace(student_decoded, last_hidden_state=hidden[:, chunk].contiguous()),
                    replace(
                        teacher_decoded, last_hidden_state=teacher_decoded.last_hidden_state[:, chunk].contiguous()
                    ),
                    input_ids[:, 1:][:, chunk],
                    plain_forward,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            return sums

        # As the head's forward pass, since FSDP, which may shard the head separately, must see a single call.
        with replaced_forward(head, sum_chunks):
            kl, nll = head(student_decoded.last_hidden_state) / predicted
        loss = (1 - self.label_share) * kl + self.label_share * nll
        return {"loss": loss.mean(), "measured": torch.stack([loss, kl, nll], 1).detach()}

    def _chunk_sums(
        self, student: ModelOutput, teacher: ModelOutput, tokens: torch.Tensor, head_forward: Any
    ) -> torch.Tensor:
        """Return the sums of divergences and of negative log-likelihoods, shape `[2, windows]`."""
        head, scale = self.student.get_output_embeddings(), self.temperature
        with (
            replaced_forward(self.student, self._forward),
            without_hooks(head),
            replaced_forward(head, head_forward),
        ):
            logits = head_logits(self.student, student).float()
        with torch.no_grad():
            teacher_log_probs = (head_logits(self.teacher, teacher).float() / scale).log_softmax(-1)
        log_probs = logits.log_softmax(-1)
        nll = -log_probs.gather(-1, tokens[..., None])
        if scale != 1:
            log_probs = (logits / scale).log_softmax(-1)
        kl = kl_div(log_probs, teacher_log_probs, reduction="none", log_target=True) * scale**2
        return torch.stack([kl.sum((1, 2)), nll.sum((1, 2))])
