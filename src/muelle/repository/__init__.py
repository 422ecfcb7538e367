"""The repository: where versions lie. It finds files and says what is there; it loads nothing."""
