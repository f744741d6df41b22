"""What is measured of the dense model before any search."""
