"""The HTTP/2 side of a port: gRPC calls, and plain requests of clients that speak HTTP/2."""
