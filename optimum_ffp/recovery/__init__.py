"""Recovery of a pruned model: training as a whole, by distillation from the dense model."""
