"""Policy search: methods and agents propose scores, which are mapped to policies and evaluated."""
