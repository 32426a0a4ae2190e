"""The gRPC front of the engine: each call, checked, bounded and answered."""
