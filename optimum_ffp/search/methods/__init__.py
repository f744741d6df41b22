"""Search methods. Every module implements the method of its name in `search`.

`search` takes a `SearchTask`, the config and, for a warm start, the state of an agent of an earlier search, and
returns what `SearchTask.conclude` or `SearchTask.choose` does. Random search, evolutionary search and the policies
without a search are baselines for the agents of `ffp`. All methods use the same evaluator. A module with
`IS_BASELINE = True` is no search: it isn't compared with the policies without a search, and doesn't count steps.
"""
