"""Each service's module says which words of rules.py and which enum belong to which column.
tests/test_schema.py reads it."""
