"""The server: the round-closing core, its store, and the service that runs them."""
