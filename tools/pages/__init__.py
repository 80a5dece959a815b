"""What the documentation's build makes from the code, the records and the repository."""
