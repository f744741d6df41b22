"""Mappings from scores to policies that meet a budget. Every module implements the mapping of its name.

`map_scores` takes raw scores, shape `[units]`, and a `Budget`, and returns a `PruningPolicy`. The mapping `curves`
depends on the loss curves of a model and is an instance of `CurveMapping` instead.
"""
