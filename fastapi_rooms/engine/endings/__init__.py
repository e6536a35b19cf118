"""What ends connections that nobody else ends: time, and a node that is to be stopped."""
