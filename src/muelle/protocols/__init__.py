"""Wire formats as pure functions: bytes to request, answer to bytes. No I/O, no clock."""
