"""What is said of apps under instrumentation, which changes Starlette for good: each in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import support

TESTS = Path(support.__file__).parent

INSTRUMENTED = """\
from fastapi import FastAPI
from wrapped_apps import {name}

from fastapi_rooms import Incoming, RoomsExtension

rooms = RoomsExtension()


@rooms.ws_route("/ws/{{room}}", room="{{room}}")
async def chat(message: Incoming[str]): ...


app = FastAPI()
app.include_router(rooms.router)
{name}(app)
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sentry", None),
        (
            "sentry_with_spans",
            "but one of sentry_sdk.integrations.starlette._enable_span_for_middleware. No middleware",
        ),
        (
            "opentelemetry",
            "but one of opentelemetry.instrumentation.asgi.OpenTelemetryMiddleware._get_otel_send. No middleware of",
        ),
        ("asgi_correlation_id", None),
        ("starsessions", None),
        ("starlette_context", "Of the middleware of the app, this passes one of its own: RawContextMiddleware."),
    ],
)
def test_under_packages_that_wrap_in_their_own_way(workshop, name, said):
    found = problems(workshop, INSTRUMENTED.format(name=name))
    if said is None:
        assert "send-wrapped" not in found
    else:
        assert said in found["send-wrapped"]


RECORDING = """\
import sentry_sdk
from sentry_sdk.integrations.starlette import StarletteIntegration
from sentry_sdk.transport import Transport


class Recorder(Transport):
    def capture_envelope(self, envelope):
        print(envelope.items, file=open("sent", "a"))


sentry_sdk.init(
    "http://key@localhost/1",
    transport=Recorder,
    traces_sample_rate=1.0,
    integrations=[StarletteIntegration(middleware_spans=True)],
)
"""


def test_sentry_does_not_record_it(workshop):
    found = problems(workshop, RECORDING + INSTRUMENTED.format(name="nothing"))
    assert "sentry_sdk" in found["send-wrapped"]
    assert not (workshop.folder / "sent").exists()


def problems(workshop, text):
    """What is said of an app, by the name of the check."""
    workshop.write(text)
    folders = [str(TESTS), str(TESTS / "facts"), os.environ.get("PYTHONPATH", "")]
    ended = subprocess.run(
        [sys.executable, "-m", "fastapi_rooms", "doctor", "--json", "shop:app"],
        cwd=workshop.folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return {one["check"]: one["problem"] for one in json.loads(ended.stdout)["findings"]}
