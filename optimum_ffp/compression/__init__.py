"""The sorted model, and the calibration of the weights of a policy."""
