"""Who says what about the world beside the exchange? One file a source."""
