"""From the handshake to the messages that a handler takes. Knows nothing of what is sent, nor of who is let in."""
