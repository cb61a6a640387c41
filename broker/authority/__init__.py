"""A fleet's own certificate authority: made, kept and used where the aggregator or the factory is."""
