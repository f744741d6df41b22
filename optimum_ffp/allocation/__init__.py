"""Number of groups to keep per unit: policies, budgets, mappings and loss curves."""
