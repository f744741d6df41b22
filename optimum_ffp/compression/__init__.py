"""The sorted model and the repair of its weights."""
