"""The loss of recovery: the distance of the pruned model's predictions from those of the dense model."""

from collections.abc import Sequence
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from torch.nn.functional import log_softmax
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ..utils.lm_head import decode, logits_in_pieces, replaced_forward, without_hooks


# Label of positions without a loss, as in transformers.
UNLABELLED = -100


class DistillationLoss:
    """The forward pass of a pruned model in training: `student.forward = DistillationLoss(student, teacher)`.

    For every token that has a label, with the logits `z` of the student and `y` of the teacher before it,

        (1 - m) · τ² · KL(softmax(y / τ) ‖ softmax(z / τ)) + m · cross-entropy(softmax(z), label)
            + w · mean over layers of ‖h - g‖² / ‖g‖²

    where `h` and `g` are the hidden states of student and teacher at the position before it, after every layer but the
    last. Logits are computed for `POSITIONS` positions at a time and differentiated at once, so that neither those of
    a window nor their gradients are ever in memory together. As the forward pass of the module it works under
    whatever wraps that, such as DDP, FSDP or peft.

    Args:
        student: The pruned model.
        teacher: The dense model. It is not trained.
        temperature: τ.
        label_share: m, the share of the language-model loss.
        hidden_weight: w, the weight of the distance of the hidden states.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        temperature: float = 1.0,
        label_share: float = 0.0,
        hidden_weight: float = 0.0,
    ):
        self.student, self.teacher = student, teacher
        self.temperature, self.label_share, self.hidden_weight = temperature, label_share, hidden_weight
        self._forward = MethodType(type(student).forward, student)

    def __call__(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
        **options: Any,
    ) -> dict[str, torch.Tensor]:
        """Return the loss of a batch of windows.

        Args:
            input_ids: Token ids, shape `[windows, window length]`.
            labels: The same, `UNLABELLED` for tokens without a loss.
            num_items_in_batch: Number to divide the sum over tokens by; that of the batch's labels if `None`.
            options: Ignored: what `Trainer` passes to models.

        Returns:
            `loss`; and, without gradients, the sums over the tokens with a label of the divergence, `kl`, and of their
            negative log-likelihoods, `nll`, in nats, and their number, `tokens`.
        """
        # An evaluation reads the divergence alone.
        matches = self.hidden_weight > 0 and torch.is_grad_enabled()
        with torch.no_grad():
            wanted = decode(self.teacher, input_ids, hidden_states=matches)
        head = self.student.get_output_embeddings()
        with replaced_forward(self.student, self._forward):
            # FSDP may keep the weights in host memory.
            decoded, forward = decode(self.student, input_ids, input_ids.device, matches), head.forward

            def of_pieces(hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
                # An evaluation would make the gradients of a head as large as the vocabulary for nothing.
                trained = [one for one in head.parameters() if one.requires_grad and torch.is_grad_enabled()]
                with without_hooks(head), replaced_forward(head, forward):
                    return _HeadLoss.apply(self, decoded, wanted, labels, hidden, *trained)

            # As the head's forward pass, so that FSDP, which may shard the head apart, sees it run once.
            with replaced_forward(head, of_pieces):
                loss, kl, nll = head(decoded.last_hidden_state)
        if matches:
            known = _next_tokens(labels, 0, labels.shape[1]) != UNLABELLED
            loss = loss + self.hidden_weight * _hidden_distance(decoded, wanted, known)
        tokens = (labels[:, 1:] != UNLABELLED).sum()
        # Windows of a step may have no label at all.
        loss = loss / torch.as_tensor(tokens if num_items_in_batch is None else num_items_in_batch).clamp_min(1)
        return {"loss": loss, "kl": kl, "nll": nll, "tokens": tokens}

    def of_piece(
        self, logits: torch.Tensor, wanted: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the gradient of the loss of a piece at its logits, and the sums of divergences and of the nll.

        Args:
            logits: Logits of the student, shape `[positions, vocabulary]`.
            wanted: Logits of the teacher, of the same shape.
            labels: Labels, shape `[positions]`.
        """
        known, share, scale = labels != UNLABELLED, self.label_share, self.temperature
        found, wanted = logits.detach().float(), wanted.float()
        logs, wanted = log_softmax(found / scale, -1), log_softmax(wanted / scale, -1)
        # Divided by the temperature once, as the divergence is multiplied by its square.
        gradient = (logs.exp() - wanted.exp()).mul_((1 - share) * scale)
        kl = (wanted.exp() * (wanted - logs)).sum(-1).mul(scale**2)
        if scale != 1:
            logs = log_softmax(found, -1)
        chosen = torch.arange(len(labels), device=labels.device), labels.clamp_min(0)
        nll = -logs[chosen]
        if share:
            gradient.add_(logs.exp(), alpha=share)
            gradient[chosen] -= share
        gradient *= known[:, None]
        return gradient, (kl * known).sum(), (nll * known).sum()


class _HeadLoss(torch.autograd.Function):
    """Runs both heads piece by piece, and the student's back, all in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: DistillationLoss,
        decoded: ModelOutput,
        wanted: ModelOutput,
        labels: torch.Tensor,
        hidden: torch.Tensor,
        *trained: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        differentiates = any(ctx.needs_input_grad)
        ending = hidden.detach().requires_grad_(differentiates)
        sources = [ending, *trained]
        sums, gradients = [], [torch.zeros_like(one, dtype=torch.float32) for one in sources if differentiates]
        with torch.set_grad_enabled(differentiates):
            of_student = logits_in_pieces(loss.student, replace(decoded, last_hidden_state=ending))
            for (start, logits), (_, target) in zip(of_student, logits_in_pieces(loss.teacher, wanted)):
                of_piece = _next_tokens(labels, start, logits.shape[1]).flatten()
                gradient, *found = loss.of_piece(logits.flatten(0, 1), target.flatten(0, 1), of_piece)
                sums.append(torch.stack(found))
                if differentiates:
                    gradient = gradient.view_as(logits).to(logits.dtype)
                    _add(gradients, torch.autograd.grad(logits, sources, gradient))
                del logits, target, gradient
        kl, nll = torch.stack(sums).sum(0)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(kl, nll)
        return (1 - loss.label_share) * kl + loss.label_share * nll, kl, nll

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *unused: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, None, None, None, *(gradient * one for one in ctx.saved_tensors)


def _next_tokens(labels: torch.Tensor, start: int, positions: int) -> torch.Tensor:
    """Return the labels of the tokens after each position of a piece; the last of a window has none."""
    found = labels[:, start + 1 : start + 1 + positions]
    return torch.nn.functional.pad(found, (0, positions - found.shape[1]), value=UNLABELLED)


def _hidden_distance(decoded: ModelOutput, wanted: ModelOutput, known: torch.Tensor) -> torch.Tensor:
    """Return the sum over positions of the squared distance, relative to the teacher's hidden state, by layer."""
    # The first are embeddings, the last what the head reads.
    layers = list(zip(decoded.hidden_states, wanted.hidden_states))[1:-1]
    total = torch.zeros((), device=known.device)
    for found, target in layers:
        target = target.float()
        distances = (found.float() - target).square().sum(-1) / target.square().sum(-1)
        total = total + (distances * known).sum()
    return total / max(1, len(layers))


def _add(totals: Sequence[torch.Tensor], parts: Sequence[torch.Tensor]) -> None:
    for total, part in zip(totals, parts):
        total.add_(part)
