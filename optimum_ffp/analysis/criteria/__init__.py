"""Importance of the groups of a unit. Every module is the criterion of its name: its `score` orders the groups.

`score` takes the output projection's weight, shape `[out_features, features]`, the `Statistics` of its input and the
number of columns of a group, and returns one score per group, shape `[groups]`; the higher, the more important. The
weight that a criterion called `fisher_*` is given is multiplied by the root of its output's Fisher matrix, so that it
counts loss. `WORKSPACE_BYTES` is what it holds beside the Gram matrix, in bytes per entry of it, if that is much.
"""
