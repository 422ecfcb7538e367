"""Settings: frozen Structs, read once, passed down. Never global."""
