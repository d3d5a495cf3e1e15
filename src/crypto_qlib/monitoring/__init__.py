"""Is it healthy? Reads the store only."""
