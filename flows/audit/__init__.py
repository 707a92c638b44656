"""The audit: how much masks depend on which calibration text was drawn."""
