"""Work after the answer: jobs, attempts, events, waiting."""
