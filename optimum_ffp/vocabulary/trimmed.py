"""How the tokens of a dense model are made of those of a trimmed vocabulary."""

from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import FFPError


class Expanded(NamedTuple):
    """Windows of a dense model in tokens of a trimmed vocabulary.

    Attributes:
        tokens: Ids in the trimmed vocabulary, padded on the right, shape `[windows, longest]`.
        ends: Position in `tokens` of the last piece of every token of the dense model, shape `[windows, length]`.
    """

    tokens: torch.Tensor
    ends: torch.Tensor

    @property
    def predicts(self) -> torch.Tensor:
        """Whether a position predicts a piece of any token but the first of the window, shape of `tokens`."""
        places = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return (places >= self.ends[:, :1]) & (places < self.ends[:, -1:])


@dataclass(frozen=True)
class TrimmedVocabulary:
    """A vocabulary that has some of the tokens of a dense model; the others are spelled in these.

    Attributes:
        kept: Dense ids of the kept tokens by their new id, shape `[size]`.
        pieces: New ids of the tokens that each dense token is replaced by, padded with -1, shape
            `[dense rows, longest]`.
    """

    kept: torch.Tensor
    pieces: torch.Tensor

    @classmethod
    def between(
        cls, dense: PreTrainedTokenizerBase, trimmed: PreTrainedTokenizerBase, rows: int, size: int
    ) -> "TrimmedVocabulary | None":
        """Compare the tokenizers of a dense model and a trimmed one; return `None` if nothing was trimmed.

        Args:
            dense: The dense model's tokenizer.
            trimmed: The trimmed model's tokenizer.
            rows: Rows of the dense model's embedding. A row without a token is replaced by one piece, 0.
            size: Rows of the trimmed model's embedding; those without a token are the first such ones of the dense
                model.

        Raises:
            FFPError: If the trimmed tokenizer has tokens that the dense one lacks.
        """
        dense_ids, new_ids = dense.get_vocab(), trimmed.get_vocab()
        if dense_ids == new_ids and rows == size:
            return None
        if others := sorted(new_ids.keys() - dense_ids.keys()):
            raise FFPError(
                f"the tokenizer has {len(others)} tokens that the dense model's hasn't, such as {others[0]!r}; choose "
                "the dense model that its vocabulary was trimmed from"
            )
        kept = torch.tensor([dense_ids[token] for token in sorted(new_ids, key=new_ids.__getitem__)])
        # The model alone, since the normalizer and pre-tokenizer would change a token, as they do with text.
        model = cast(PreTrainedTokenizerFast, trimmed).backend_tokenizer.model
        pieces = [[0]] * rows
        for token, index in dense_ids.items():
            if index < rows:
                known = new_ids.get(token)
                pieces[index] = [piece.id for piece in model.tokenize(token)] or [0] if known is None else [known]
        lengths = torch.tensor([len(row) for row in pieces])
        padded = torch.full((rows, int(lengths.max())), -1)
        padded[torch.arange(padded.shape[1]) < lengths[:, None]] = torch.tensor([*chain(*pieces)])
        # Tokens may have been added to the tokenizer without resizing the model.
        kept, spare = kept[kept < rows], sorted({*range(rows)} - {*dense_ids.values()})
        return cls(torch.cat([kept, torch.tensor(spare[: size - len(kept)], dtype=kept.dtype)]), padded)

    def to(self, device: torch.device) -> "TrimmedVocabulary":
        """Return the vocabulary with its tensors on a device."""
        return TrimmedVocabulary(self.kept.to(device), self.pieces.to(device))

    def expand(self, windows: torch.Tensor) -> Expanded:
        """Replace every token by its pieces; `windows` are ids in the dense vocabulary, shape `[windows, length]`."""
        pieces = self.pieces[windows]
        is_piece = pieces >= 0
        counts = is_piece.sum(-1)
        ends = counts.cumsum(1) - 1
        tokens = pieces.new_zeros(len(windows), int(ends[:, -1].max()) + 1)
        positions = (ends - counts + 1)[..., None] + torch.arange(pieces.shape[-1], device=pieces.device)
        rows = torch.arange(len(windows), device=pieces.device)[:, None, None].expand_as(pieces)
        tokens[rows[is_piece], positions[is_piece]] = pieces[is_piece]
        return Expanded(tokens, ends)

    def describe(self, windows: torch.Tensor) -> dict[str, Any]:
        """Return the JSON-ready number of tokens of the `dense` and the `pruned` model, and what it does to windows.

        These are the fraction of their tokens that are `split`, and by which fraction they are `longer`.
        """
        counts = (self.pieces[windows] >= 0).sum(-1)
        return {
            "dense": len(self.pieces),
            "pruned": len(self.kept),
            "split": float((counts > 1).double().mean()),
            "longer": float(counts.double().mean() - 1),
        }

    def fold(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Return the probability of every first piece, the sum over all tokens that begin with it.

        Args:
            probabilities: Predictions of the dense model, shape `[positions, dense size]`.

        Returns:
            Probabilities of the tokens of the trimmed vocabulary, shape `[positions, size]`.
        """
        folded = probabilities.new_zeros(len(probabilities), len(self.kept))
        return folded.index_add_(1, self.pieces[:, 0], probabilities)
