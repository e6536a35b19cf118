"""From a message to the bytes on a socket. Imports nothing of `inbound` or `admission`.

Of what a client sends it knows only how much is still read after a close frame (`closing_handshake.py`).
"""
