"""Documents: checklists and renovation plans as PDFs, with pictures that are assets."""
