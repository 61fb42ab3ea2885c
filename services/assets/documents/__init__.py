"""Documents (PDF) about assets."""
