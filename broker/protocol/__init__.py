"""The wire: topics, messages, chunks, table versions and update encodings."""
