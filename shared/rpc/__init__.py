"""Calls: the server, its guard, callers, errors, pages."""
