"""Distillation loss: the divergence of the pruned model's predictions from those of the dense model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ...utils.lm_head import POSITIONS, DecoderOutput, decode, head_logits, head_of, replaced_forward


# Number of positions whose log-probabilities are computed at once: they should fit into the cache of a CPU.
BLOCK = 32


class DistillationLoss:
    """The forward pass of a pruned model in training: `student.forward = DistillationLoss(student, teacher)`.

    For every token but the first of a window, with the logits `z` of the student and `y` of the teacher before it,

        (1 - m) · τ² · KL(softmax(y / τ) ‖ softmax(z / τ)) + m · cross-entropy(softmax(z), token)

    Logits are computed in chunks of positions, and their gradients along with the loss, so that those of a window are
    never materialized and the head runs once. As the module's forward pass, the loss works with any wrapper, such as
    DDP, FSDP or peft.

    τ is the `temperature`, and m the `label_share`. Neither the head of the student nor the teacher is trained.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        temperature: float = 1.0,
        label_share: float = 0.0,
    ):
        self.student, self.teacher = student, teacher
        self.temperature, self.label_share = temperature, label_share
        self._forward = MethodType(type(student).forward, student)

    def __call__(self, input_ids: torch.Tensor, **options: Any) -> dict[str, torch.Tensor]:
        """Compute the loss of windows, token ids of any integer type, ignoring other arguments that wrappers pass.

        Returns:
            `loss`, the mean over all predicted tokens; and `measured`, without gradients, the loss, divergence and
            negative log-likelihood of each window, in nats per predicted token, shape `[windows, 3]`.
        """
        input_ids = input_ids.long()
        with torch.no_grad():
            teacher_decoded = decode(self.teacher, input_ids)
        # FSDP may offload the weights to host memory.
        decoded = decode(self.student, input_ids, input_ids.device)
        head, tokens = head_of(self.student), input_ids[:, 1:]
        run = partial(self._run_head, decoded, teacher_decoded, tokens, head.forward)
        # As the head's forward pass, since FSDP, which may shard the head separately, must see a single call.
        with replaced_forward(head, lambda hidden: _WithGradient.apply(run, hidden[:, :-1].flatten(0, 1))):
            total, measured = head(decoded.last_hidden_state)
        return {"loss": total / tokens.numel(), "measured": measured.view(*tokens.shape, 3).mean(1)}

    def _run_head(
        self,
        student: DecoderOutput,
        teacher: DecoderOutput,
        tokens: torch.Tensor,
        head_forward: Callable[..., Any],
        hidden: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return `_losses` of all tokens, and the gradient of the loss's sum with respect to the hidden states."""
        head, losses, gradients = head_of(self.student), [], []
        rows = hidden, teacher.last_hidden_state[:, :-1].flatten(0, 1), tokens.flatten()
        with replaced_forward(self.student, self._forward), replaced_forward(head, head_forward), _without_hooks(head):
            for states, teacher_states, targets in zip(*(tensor.split(POSITIONS) for tensor in rows)):
                states = states[None].detach().requires_grad_(hidden.requires_grad)
                with torch.set_grad_enabled(hidden.requires_grad):
                    logits = head_logits(self.student, replace(student, last_hidden_state=states))
                teacher_logits = head_logits(self.teacher, replace(teacher, last_hidden_state=teacher_states[None]))
                logits_gradient = torch.empty_like(logits)
                chunk = logits.detach()[0], teacher_logits[0], targets, logits_gradient[0]
                losses += [self._losses(*block) for block in zip(*(tensor.split(BLOCK) for tensor in chunk))]
                if hidden.requires_grad:
                    gradients.append(torch.autograd.grad(logits, states, logits_gradient)[0][0])
        return torch.cat(losses), torch.cat(gradients) if gradients else None

    def _losses(
        self, logits: torch.Tensor, teacher_logits: torch.Tensor, tokens: torch.Tensor, gradient: torch.Tensor
    ) -> torch.Tensor:
        """Return loss, divergence and negative log-likelihood of tokens, and write the gradient of the loss's sum."""
        share, scale = self.label_share, self.temperature
        log_probs = logits.float().log_softmax(-1)
        teacher_log_probs = (teacher_logits.float() / scale).log_softmax(-1)
        nll = -log_probs.gather(-1, tokens[:, None])[:, 0]
        scaled_log_probs = log_probs if scale == 1 else (log_probs / scale).log_softmax(-1)
        expected = teacher_log_probs.exp()
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
    def forward(ctx: Any, run: Callable[..., Any], hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        losses, ctx.gradient = run(hidden)
        ctx.mark_non_differentiable(losses)
        return losses[:, 0].sum(), losses

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, ctx.gradient.mul_(gradients[0])
