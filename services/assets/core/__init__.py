"""The noun asset, and the modules about it that every other folder needs."""
