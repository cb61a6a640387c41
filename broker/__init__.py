"""What travels between devices and aggregator, and what receives it."""
