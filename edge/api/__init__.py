"""The local HTTP API: other programs on the device record, submit listens and ask for recommendations."""
