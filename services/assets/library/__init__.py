"""Ways to keep and find assets: albums, search, styles."""
