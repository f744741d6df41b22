"""How much of every unit is kept: policies, budgets, mappings and loss curves."""
