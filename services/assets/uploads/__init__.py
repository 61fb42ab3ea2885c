"""How bytes come in, and how they are verified."""
