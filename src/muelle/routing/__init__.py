"""An immutable snapshot of which version answers a request. No I/O."""
