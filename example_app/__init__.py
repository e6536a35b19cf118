"""A small chat that shows fastapi_rooms at work: `uvicorn example_app.app:app`."""
