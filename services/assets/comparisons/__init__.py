"""Comparisons: two pictures side by side."""
