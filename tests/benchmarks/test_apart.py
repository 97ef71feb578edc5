"""Processes that are measured apart: each is new, and none takes the others along."""

import pytest

from benchmarks.apart import Apart, Died


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Gives a server for a module with this source."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")

    def serve(source):
        (tmp_path / "measures.py").write_text(source)
        return Apart("measures", {"VARIABLE": "set"})

    return serve


SOURCE = """
import os
from benchmarks.resident import settle
prepared = False
count = 0

def prepare():
    global prepared
    prepared = True

def measured(how, **more):
    global count
    count += 1
    print("noise")
    if how == "raise":
        raise ValueError("wrong")
    if how == "kill":
        os.kill(os.getpid(), 9)
    return {"how": how, "count": count, "prepared": prepared, "variable": os.environ["VARIABLE"], **more}
"""


def test_each_call_is_a_process_of_its_own(server):
    with server(SOURCE) as apart:
        for more in (1, 2):
            assert apart.call(how="ok", more=more) == {
                "how": "ok", "count": 1, "prepared": True, "variable": "set", "more": more,
            }  # fmt: skip


def test_a_process_that_dies_takes_nobody_along(server, capfd):
    with server(SOURCE) as apart:
        with pytest.raises(Died, match="expected a result, got exit status 1") as raised:
            apart.call(how="raise")
        assert raised.value.status == 1
        with pytest.raises(Died) as killed:
            apart.call(how="kill")
        assert killed.value.status == -9
        assert apart.call(how="ok")["how"] == "ok"
    assert "ValueError: wrong" in capfd.readouterr().err


def test_a_server_that_is_gone_is_said(server, capfd):
    with server("raise RuntimeError('no module')") as apart, pytest.raises(Died) as raised:
        apart.call(how="ok")
    assert raised.value.status is None
    assert "no module" in capfd.readouterr().err
