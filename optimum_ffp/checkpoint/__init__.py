"""Output of a prune: a folder with weights, card, plots and report, or a GGUF file."""
