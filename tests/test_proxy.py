"""Proxies of the environment: who takes them, who does not, and that an error names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.link import ServerLink, Unreachable
from common.bundle import Bundle
from common.proxy import proxy_to, without_proxy
from tests.front_rig import federation
from tests.process_rig import free_port
from tests.provisioning_rig import archive


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> str:
    """A proxy of the environment on which nobody listens."""
    address = f"127.0.0.1:{free_port()}"
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")  # so that it is as it was again after the test
    for name in ("https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@{address}")
    return address


def test_a_site_behind_a_dead_proxy_is_told_of_server_and_proxy_and_of_no_password(
    dead: str, tmp_path: Path
) -> None:
    bundle = Bundle.read(archive(federation(tmp_path).root / "fed", "a"))
    with ServerLink(bundle, "fed.example.org:443") as link:
        with pytest.raises(Unreachable) as failed:
            link.join(None)
        assert f"fed.example.org:443 (by the proxy {dead}" in str(failed.value)
        assert "secret" not in str(failed.value)


def test_a_host_that_is_to_be_reached_directly_takes_no_proxy(
    dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "inner.example.org")
    assert [proxy_to(host) for host in ("fed.example.org", "127.0.0.1")] == [dead, dead]
    without_proxy("127.0.0.1")
    hosts = ("fed.example.org", "127.0.0.1", "inner.example.org")
    assert [proxy_to(host) for host in hosts] == [dead, "", ""]
    monkeypatch.delenv("HTTPS_PROXY")
    assert proxy_to("fed.example.org") == ""
