"""Variants of an asset: presets, making them, backfills."""
