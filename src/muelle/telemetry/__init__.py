"""Metrics and logs. They receive what happened; nothing waits for them."""
