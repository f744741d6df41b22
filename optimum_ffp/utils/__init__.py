"""What every stage needs, and none of the project alone."""
