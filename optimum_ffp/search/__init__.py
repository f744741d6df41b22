"""Policy search. Only `runner` and `evaluator` depend on the language model."""
