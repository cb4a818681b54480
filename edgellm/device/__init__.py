"""Devices: profiles of known ones, what this machine is, and whether a model fits."""
