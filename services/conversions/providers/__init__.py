"""Providers of models. Each is one module with one class, which implements the protocols in
`contract` for the kinds of jobs that it serves. `__main__` says which provider serves which
kind."""
