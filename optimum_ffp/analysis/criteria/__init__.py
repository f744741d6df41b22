"""Importance criteria. Every module implements the criterion of its name with a function `score`.

`score` takes the output projection's weight, shape `[out_features, features]`, the `Statistics` of its input and the
number of columns per group, and returns one score per group, shape `[groups]`; higher is more important. Criteria
called `fisher_*` get the weight multiplied by the square root of the output's Fisher matrix, so that scores measure
the change of the loss.

A criterion with options has a class `Options` too, an instance of which `score` gets as the argument `options`.
"""
