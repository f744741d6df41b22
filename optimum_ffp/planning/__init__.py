"""Plans a prune or a recovery before it starts: work, memory and disk, and problems that would stop it."""
