"""The measuring side: raw sockets in one thread, fast enough never to be what is measured."""
