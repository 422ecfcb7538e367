"""What the server tells about itself: counters, metrics text, logs. Nothing waits for it."""
