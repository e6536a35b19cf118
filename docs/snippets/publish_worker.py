import os

from fastapi_rooms import SyncPublisher

publisher = SyncPublisher(os.environ["REDIS_URL"])  # connects at the first call


# A Celery task, an RQ job, a Django view: any function without an event loop.
def pay_invoice(user_id: str, number: int) -> None:
    # ... the work, and then:
    paid = {"type": "paid", "invoice": number}
    publisher.send_to_user(user_id, paid)
