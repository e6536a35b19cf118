"""`python -m fastapi_rooms doctor`: looks at an app and what is around it, and says what will go wrong.

Looking (`loading`, `app_facts`, `server_facts`, `broker_facts`), judging (`checks_*`) and telling (`report`) are apart:
a check is a function from a `Situation` to what it finds wrong, and needs no server to be tested.
"""
