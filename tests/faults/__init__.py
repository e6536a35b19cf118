"""What happens to nodes when the one Redis server that joins them misbehaves. All with default settings."""
