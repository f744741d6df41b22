"""What a prune leaves: a folder with weights, card, plots and report, or a GGUF file."""
