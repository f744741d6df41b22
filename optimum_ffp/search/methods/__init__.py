"""Search methods. Every module implements the method of its name in `search`.

`search` takes a `SearchTask`, and returns the result of its `conclude` or `choose`, or the `FoundPolicy` of a policy
that isn't compared with others. Random and evolutionary search and the policies without a search are baselines for the
agents of `ffp`. All methods use the same evaluator. A module with `IS_BASELINE = True` doesn't search: it isn't
compared with the other baselines, and doesn't count steps.
"""
