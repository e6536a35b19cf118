"""Real Redis and Valkey servers for the tests, and a proxy that is a bad network. All on loopback."""
