"""All checks, and what they say together."""

from collections.abc import Callable, Collection

from fastapi_rooms.doctor import checks_app, checks_broker, checks_other_server, checks_proxy, checks_server
from fastapi_rooms.doctor.findings import Finding, Severity
from fastapi_rooms.doctor.situation import Situation

Check = Callable[[Situation], Finding | None]

CHECKS: dict[str, Check] = {
    check.__name__.replace("_", "-"): check
    for module in (checks_app, checks_server, checks_proxy, checks_other_server, checks_broker)
    for check in module.CHECKS
}
"""By the name under which a check is reported and ignored."""


def judge(situation: Situation, ignored: Collection[str] = ()) -> dict[str, Finding]:
    """Return what is wrong, by the name of the check; the worst first."""
    found = {name: check(situation) for name, check in CHECKS.items() if name not in ignored}
    told = [(name, finding) for name, finding in found.items() if finding is not None]
    severities = list(Severity)
    return dict(sorted(told, key=lambda one: severities.index(one[1].severity)))
