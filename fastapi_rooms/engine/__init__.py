"""What moves frames: asyncio, inboxes, outboxes, wires and the managers. Knows Starlette's WebSocket, not FastAPI."""
