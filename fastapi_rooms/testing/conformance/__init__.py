"""The contract of a backend, in tests that a third party runs on its own."""

from fastapi_rooms.testing.conformance.content import Content
from fastapi_rooms.testing.conformance.delivery import Delivery
from fastapi_rooms.testing.conformance.lifecycle import Lifecycle
from fastapi_rooms.testing.conformance.outages import Outages
from fastapi_rooms.testing.conformance.store import Store
from fastapi_rooms.testing.conformance.subscriptions import Subscriptions


class BackendConformance(Delivery, Content, Subscriptions, Lifecycle, Outages, Store):
    """What every `Backend` has to do, as tests: subclass it, and say how a backend is made and cut off.

    ```python
    class TestMyBackend(BackendConformance):
        async def make_backend(self) -> Backend:
            return MyBackend("my://localhost")
    ```

    For pytest with pytest-asyncio in its auto mode, or with anyio on asyncio. Pytest shows the values in failed
    assertions after `pytest.register_assert_rewrite("fastapi_rooms.testing")` in your `conftest.py`.

    Without `cut` and `restore` the tests of outages are skipped; so are those of a store, if the backend has none.
    """
