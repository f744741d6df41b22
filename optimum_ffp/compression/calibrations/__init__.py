"""Calibrations of the weights that a policy keeps. Every module implements the one of its name with `calibrate`.

`calibrate` takes the `SortedModel` with its ridge factors, the policy, the windows of all roles, whether every text
begins with a start token, the config, and a `Journal` that saves finished work, and returns a `Calibration`.
"""
