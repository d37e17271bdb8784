"""No test depends on what lies on this machine, or touches the network."""

import pytest


@pytest.fixture(autouse=True)
def an_empty_machine(monkeypatch, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    for variable in ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "KERAS_HOME"):
        monkeypatch.setenv(variable, str(home))
    monkeypatch.setenv("MINIDL_OFFLINE", "1")
    monkeypatch.delenv("MINIDL_DATA", raising=False)
