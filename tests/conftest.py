"""No test depends on what lies on this machine, or touches the network."""

import pytest
from lesson_runs import VARIANTS, started


def pytest_collection_modifyitems(items):
    """What looks at the lessons' runs comes last: they go on in the background until then."""
    items.sort(key=lambda item: getattr(item, "originalname", "") in VARIANTS)


@pytest.fixture(scope="session", autouse=True)
def runs(request, tmp_path_factory):
    """runs(lesson, variant): a run of a lesson, begun with the first test of the session."""
    with started(request.session.items, tmp_path_factory.mktemp) as finished:
        yield finished


@pytest.fixture(autouse=True)
def an_empty_machine(monkeypatch, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    for variable in ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "KERAS_HOME"):
        monkeypatch.setenv(variable, str(home))
    monkeypatch.setenv("MINIDL_OFFLINE", "1")
    monkeypatch.delenv("MINIDL_DATA", raising=False)
