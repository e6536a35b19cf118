"""The FastAPI face: extension, dependencies and `ws_route`."""
