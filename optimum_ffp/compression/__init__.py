"""The sorted model and the calibration of its output projections."""
