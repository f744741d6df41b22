"""Checkpoints of pruned and recovered models: weights, record, card, plots and report."""
