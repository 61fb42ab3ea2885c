"""Text and files that people read or write: facts, lengths, ZIP, YAML, documents."""
