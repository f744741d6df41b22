"""Search methods. Every module implements the method of its name in `search`.

`search` takes a `SearchTask`, the config and, for a warm start, the state of an agent of an earlier search. Random
search, evolutionary search and the policies without a search are baselines for the agents of `ffp`. All methods use
the same evaluator.
"""
