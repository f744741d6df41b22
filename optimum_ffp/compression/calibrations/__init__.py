"""Calibrations of the weights that a policy keeps. Every module implements the one of its name with `calibrate`.

`calibrate` takes a `CalibrationTask` and returns a `Calibration`.
"""
