"""Plans a prune before it starts: work, memory and disk, and problems that would stop it."""
