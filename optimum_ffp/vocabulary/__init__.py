"""Vocabularies with fewer tokens."""

from .tokenizer import remap_ids, trim_tokenizer
from .tokens import choose_tokens, count_tokens
from .trimmed import TrimmedVocabulary
