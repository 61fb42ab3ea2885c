"""Background work: jobs, attempts, events, waiting."""
