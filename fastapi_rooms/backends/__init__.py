"""What carries envelopes between nodes: the contract, a hub in memory, and Redis. Knows no connections, no FastAPI."""
