"""The device: what runs beside one user, and keeps what is theirs."""
