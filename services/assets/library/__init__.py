"""Albums, search and styles: ways to arrange and find assets."""
