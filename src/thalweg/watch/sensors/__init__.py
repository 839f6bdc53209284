"""What is measured while a run goes on: one sensor a file, found by being here."""
