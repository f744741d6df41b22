"""Training of the weights that a policy keeps: those of a layer, or of the whole model."""
