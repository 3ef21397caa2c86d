"""What a run is told: the schema of its configuration, how it is loaded and checked, errors for a user to read."""
