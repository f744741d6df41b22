"""What a prune will need, and what stands in its way, before it starts."""
