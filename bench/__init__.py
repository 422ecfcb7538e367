"""Measurements of Muelle beside what people use today. Not part of the package, and not a test."""
