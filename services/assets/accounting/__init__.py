"""Accounting of what is stored and sent: usage, quotas, costs."""
