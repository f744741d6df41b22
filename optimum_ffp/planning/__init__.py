"""Plans a prune or a recovery before it starts: memory, disk and tokens, and problems that would stop it."""
