"""Clients of a Muelle server."""
