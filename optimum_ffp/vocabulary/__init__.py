"""Vocabularies with fewer tokens: which tokens stay, the tokenizer, and the rows of the model."""
