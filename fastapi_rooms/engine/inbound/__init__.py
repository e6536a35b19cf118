"""From the handshake to the messages that a handler takes. Imports nothing of `outbound` or `admission`.

It answers clients through the connection's `Owner`, and asks its outbox, both protocols of `domain/connection.py`.
"""
