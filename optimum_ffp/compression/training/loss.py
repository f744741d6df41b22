"""Distillation loss: the divergence of the pruned model's predictions from those of the dense model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.functional import one_hot
from transformers import PreTrainedModel

from ...utils.lm_head import POSITIONS, DecoderOutput, decode, head_logits, head_of, replaced_forward
from ...vocabulary.trimmed import Expanded, TrimmedVocabulary


# Number of positions whose log-probabilities are computed at once: they should fit into the cache of a CPU.
BLOCK = 32


@dataclass(frozen=True)
class Predicted:
    """What a pruned model has to predict in a batch of windows of its dense model, one row per prediction.

    Attributes:
        inputs: Tokens of the pruned model, shape `[windows, length]`.
        positions: Position of the prediction in the flattened inputs.
        teacher_positions: Position of the dense model's prediction in its flattened windows.
        targets: The token that follows.
        inner: Whether that is a later piece of a token that the pruned model lacks.
        counts: Number of rows of every window.
    """

    inputs: torch.Tensor
    positions: torch.Tensor
    teacher_positions: torch.Tensor
    targets: torch.Tensor
    inner: torch.Tensor
    counts: list[int]

    @classmethod
    def of(cls, windows: torch.Tensor, vocabulary: TrimmedVocabulary | None) -> "Predicted":
        """Return what a model with a trimmed vocabulary, or that of the windows, has to predict in them.

        The first token of a window is not predicted, whatever its pieces are.
        """
        own = Expanded(windows, torch.arange(windows.shape[1], device=windows.device).expand_as(windows))
        expanded = vocabulary.expand(windows) if vocabulary else own
        (inputs, ends), is_predicted = expanded, expanded.predicts
        places = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
        # The token of the dense model that ends at a position, or before it.
        tokens = torch.searchsorted(ends.contiguous(), places.contiguous(), right=True) - 1
        is_end = torch.zeros_like(is_predicted).scatter_(1, ends, torch.ones_like(ends, dtype=torch.bool))
        offsets = windows.shape[1] * torch.arange(len(windows), device=windows.device)[:, None]
        return cls(
            inputs=inputs,
            positions=is_predicted.flatten().nonzero()[:, 0],
            teacher_positions=(tokens + offsets)[is_predicted],
            targets=inputs.roll(-1, 1)[is_predicted],
            inner=~is_end[is_predicted],
            counts=is_predicted.sum(1).tolist(),
        )


class DistillationLoss:
    """The forward pass of a pruned model in training: `student.forward = DistillationLoss(student, teacher)`.

    For every token but the first of a window, with the logits `z` of the student and `y` of the teacher before it,

        (1 - m) · τ² · KL(softmax(y / τ) ‖ softmax(z / τ)) + m · cross-entropy(softmax(z), token)

    With a trimmed vocabulary, the first piece of a token is predicted instead, whose probability is that of all tokens
    that begin with it (`TrimmedVocabulary.fold`). A later piece adds its cross-entropy. So figures are those of the
    same text, per token of the dense model.

    Logits are computed in chunks of positions, and their gradients along with the loss, so that those of a window are
    never materialized and the head runs once. As the module's forward pass, the loss works with any wrapper, such as
    DDP, FSDP or peft.

    τ is the `temperature`, and m the `label_share`. Neither the head of the student nor the teacher is trained. The
    `vocabulary` is that of the student, if it isn't the teacher's.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        temperature: float = 1.0,
        label_share: float = 0.0,
        vocabulary: TrimmedVocabulary | None = None,
    ):
        self.student, self.teacher = student, teacher
        self.temperature, self.label_share = temperature, label_share
        self.vocabulary = vocabulary and vocabulary.to(teacher.device)
        self._forward = MethodType(type(student).forward, student)

    def __call__(self, input_ids: torch.Tensor, **options: Any) -> dict[str, torch.Tensor]:
        """Compute the loss of windows, token ids of the teacher, ignoring other arguments that wrappers pass.

        Returns:
            `loss`, the mean over all predicted tokens; and `measured`, without gradients, the loss, divergence and
            negative log-likelihood of each window, in nats per predicted token, shape `[windows, 3]`.
        """
        windows = input_ids.long()
        predicted, count = Predicted.of(windows, self.vocabulary), windows.shape[1] - 1
        with torch.no_grad():
            teacher_decoded = decode(self.teacher, windows)
        # FSDP may offload the weights to host memory.
        decoded, head = decode(self.student, predicted.inputs, windows.device), head_of(self.student)
        run = partial(self._run_head, decoded, teacher_decoded, predicted, head.forward)
        # As the head's forward pass, since FSDP, which may shard the head separately, must see a single call.
        with replaced_forward(
            head, lambda hidden: _WithGradient.apply(run, hidden.flatten(0, 1)[predicted.positions], head.weight)
        ):
            total, measured = head(decoded.last_hidden_state)
        means = [losses.sum(0) / count for losses in measured.split(predicted.counts)]
        return {"loss": total / (len(windows) * count), "measured": torch.stack(means)}

    def _run_head(
        self,
        student: DecoderOutput,
        teacher: DecoderOutput,
        predicted: Predicted,
        head_forward: Callable[..., Any],
        hidden: torch.Tensor,
        weight: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return `_losses` of all rows, and the gradients of their sum for the hidden states and the head's weight."""
        head, losses, gradients = head_of(self.student), [], []
        weight_gradient = torch.zeros_like(weight) if weight.requires_grad and hidden.requires_grad else None
        teacher_hidden = teacher.last_hidden_state.flatten(0, 1)[predicted.teacher_positions]
        rows = hidden, teacher_hidden, predicted.targets, predicted.inner
        with replaced_forward(self.student, self._forward), replaced_forward(head, head_forward), _without_hooks(head):
            for states, teacher_states, *targets in zip(*(tensor.split(POSITIONS) for tensor in rows)):
                states = states[None].detach().requires_grad_(hidden.requires_grad)
                with torch.set_grad_enabled(hidden.requires_grad):
                    logits = head_logits(self.student, replace(student, last_hidden_state=states))
                teacher_logits = head_logits(self.teacher, replace(teacher, last_hidden_state=teacher_states[None]))
                logits_gradient = torch.empty_like(logits)
                chunk = logits.detach()[0], teacher_logits[0], *targets, logits_gradient[0]
                losses += [self._losses(*block) for block in zip(*(tensor.split(BLOCK) for tensor in chunk))]
                if hidden.requires_grad:
                    needed = [states] if weight_gradient is None else [states, weight]
                    of_states, *of_weight = torch.autograd.grad(logits, needed, logits_gradient)
                    gradients.append(of_states[0])
                    if weight_gradient is not None:
                        weight_gradient += of_weight[0]
        return torch.cat(losses), torch.cat(gradients) if gradients else None, weight_gradient

    def _losses(
        self,
        logits: torch.Tensor,
        teacher_logits: torch.Tensor,
        tokens: torch.Tensor,
        inner: torch.Tensor,
        gradient: torch.Tensor,
    ) -> torch.Tensor:
        """Return loss, divergence and negative log-likelihood of rows, and write the gradient of the loss's sum."""
        share, scale = self.label_share, self.temperature
        log_probs = logits.float().log_softmax(-1)
        teacher_log_probs = (teacher_logits.float() / scale).log_softmax(-1)
        nll = -log_probs.gather(-1, tokens[:, None])[:, 0]
        scaled_log_probs = log_probs if scale == 1 else (log_probs / scale).log_softmax(-1)
        expected = teacher_log_probs.exp()
        if self.vocabulary:
            expected = self.vocabulary.fold(expected)
            expected[inner] = one_hot(tokens[inner], logits.shape[-1]).to(expected.dtype)
            teacher_log_probs = expected.clamp_min(torch.finfo(expected.dtype).tiny).log()
        kl = (expected * (teacher_log_probs - scaled_log_probs)).sum(-1) * scale**2
        slope = scaled_log_probs.exp().sub_(expected).mul_((1 - share) * scale)
        if share:
            slope += share * log_probs.exp()
            slope.scatter_add_(-1, tokens[:, None], slope.new_full((len(tokens), 1), -share))
        gradient.copy_(slope)
        return torch.stack([(1 - share) * kl + share * nll, kl, nll], -1)


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    """Disable a module's hooks, such as FSDP's that gather weights, for the duration of the context."""
    hooks_by_name = {name: hooks for name, hooks in vars(module).items() if name.endswith("_hooks")}
    vars(module).update({name: type(hooks)() for name, hooks in hooks_by_name.items()})
    try:
        yield
    finally:
        vars(module).update(hooks_by_name)


class _WithGradient(torch.autograd.Function):
    """The sum of losses from a function that also computes its gradient, so that no logits are saved."""

    @staticmethod
    def forward(
        ctx: Any, run: Callable[..., Any], hidden: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses, *ctx.gradients = run(hidden, weight)
        ctx.mark_non_differentiable(losses)
        return losses[:, 0].sum(), losses

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *(None if one is None else one.mul_(gradients[0]) for one in ctx.gradients)
