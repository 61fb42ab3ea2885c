"""Formats of text and files for people: facts, lengths, names, numbers, ZIP, YAML, PDF."""
