"""Runs over many assets, such as cleanup, reconciling, recounting and erasing; export; reports."""
