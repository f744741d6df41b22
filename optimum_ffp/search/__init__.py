"""Policy search: methods and agents map scores to policies, and an evaluator says what these are worth."""
