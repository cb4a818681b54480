"""Measuring what a bundle does: speed and quality."""
