"""What runs from time to time: cleanup, reconciling, recounting, erasing."""
