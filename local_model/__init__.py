"""The local tier: engines, the batcher, heads, calibration and training. Imports no other package of the project."""
