"""What is stored and served: quotas, usage, reports, costs."""
