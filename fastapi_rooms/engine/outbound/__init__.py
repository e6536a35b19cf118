"""From a message to the bytes on a socket. Knows nothing of what is received, nor of who is let in."""
