"""Criteria for the experts of a mixture. Every module implements the criterion of its name with a function `score`.

`score` takes the dense model, its units by layer, the plan and the calibration windows, and returns float64 tensors:
for every layer its `LAYER.scores`, shape `[experts]`, higher for more important experts, and the number of tokens that
are routed to each of them, `LAYER.tokens`.
"""
