"""Measurements of Muelle's gRPC beside grpcio's server, PyTriton and tritonserver. Not a test."""
