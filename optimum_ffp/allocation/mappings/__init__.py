"""From scores to policies that meet a budget. Every module is the mapping of its name.

Its `map_scores` takes raw scores, shape `[units]`, and a `Budget`, and returns a `PruningPolicy`. That of `curves` is
made from the loss curves of one model: `CurveMapping`.
"""
