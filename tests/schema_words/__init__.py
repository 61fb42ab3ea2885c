"""Per service: which words of rules.py and which enum belong to which column, for
tests/test_schema.py."""
