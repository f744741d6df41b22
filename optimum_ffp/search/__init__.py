"""Finding the policy. Of what is in here `runner` and `evaluator` alone know the language model."""
