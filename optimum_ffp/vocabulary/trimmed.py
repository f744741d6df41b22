"""How the tokens of a dense model are made of those of a trimmed vocabulary."""

from dataclasses import dataclass
from itertools import chain
from typing import cast

import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import FFPError


@dataclass(frozen=True)
class TrimmedVocabulary:
    """A vocabulary that has some of the tokens of a dense model; the others are spelled in these.

    Attributes:
        kept: Dense ids of the kept tokens by their new id, [size].
        pieces: New ids of the tokens that each dense token is replaced by, padded with -1, [dense rows, longest].
    """

    kept: torch.Tensor
    pieces: torch.Tensor

    @classmethod
    def between(
        cls, dense: PreTrainedTokenizerBase, trimmed: PreTrainedTokenizerBase, rows: int
    ) -> "TrimmedVocabulary | None":
        """Compare the tokenizers of a dense model and a trimmed one; return `None` if their tokens are the same.

        Args:
            dense: The dense model's tokenizer.
            trimmed: The trimmed model's tokenizer.
            rows: Rows of the dense model's embedding. A row without a token is replaced by one piece, 0.

        Raises `FFPError` if the trimmed tokenizer has other tokens than the dense one.
        """
        dense_ids, new_ids = dense.get_vocab(), trimmed.get_vocab()
        if dense_ids == new_ids:
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
        return cls(kept[kept < rows], padded)
