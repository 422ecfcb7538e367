"""What a version needs besides its own files: environments. Never imported by the server."""
