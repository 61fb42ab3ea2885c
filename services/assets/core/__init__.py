"""Assets: the noun itself, and what every other room needs of it."""
