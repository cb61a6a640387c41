"""Boards on serial lines, carried into the fleet as devices of their own: ``edge-client gateway``."""
