"""What is true and what follows from it: pure Python, without asyncio, I/O or a framework."""
