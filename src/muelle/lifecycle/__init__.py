"""Deciders for the life of versions and workers. No await, no clock, no I/O."""
