"""gRPC services: what the lane calls. They know the doors, and nothing behind them."""
