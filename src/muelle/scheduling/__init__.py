"""Deciders that group requests into batches. No await, no clock, no I/O."""
