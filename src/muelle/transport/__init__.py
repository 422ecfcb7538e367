"""Lanes: connections in, answers out. They know HTTP, not models."""
