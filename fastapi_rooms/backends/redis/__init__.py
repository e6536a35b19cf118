"""Redis and Valkey: the only place that imports redis, and the only one that speaks of channels."""
