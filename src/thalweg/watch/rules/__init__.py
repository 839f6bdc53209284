"""What readings mean: one rule a file, found by being here."""
