"""Fixtures shared by the tests."""

import subprocess

import pytest

from processes import BACKSTOP, EVERYTHING, PLUGINS, ROOT, TARGET, TIME, EverythingHttp, TinyServer


def pytest_configure():
    for path, remedy in [
        (BACKSTOP, "cargo build"),
        (EVERYTHING, "tests/tools/setup"),
        (TIME, "tests/tools/setup"),
    ]:
        if not path.exists():
            pytest.exit(f"{path} is missing: run {remedy}, or all of tests/run", 1)


@pytest.fixture
def write_config(tmp_path):
    """Writes a configuration file and returns its path."""

    def write(*parts):
        path = tmp_path / "backstop.toml"
        path.write_text("\n".join(parts))
        return path

    return write


@pytest.fixture
def servers():
    """A primary and a secondary tiny server."""
    with TinyServer("primary") as primary, TinyServer("secondary") as secondary:
        yield primary, secondary


@pytest.fixture
def pair():
    """A primary and a secondary server-everything over HTTP."""
    with EverythingHttp("primary") as primary, EverythingHttp("secondary") as secondary:
        yield primary, secondary


@pytest.fixture(scope="session")
def everything():
    """A server-everything over HTTP which nobody breaks."""
    with EverythingHttp("only") as server:
        yield server


def _wasm(package):
    subprocess.run(
        ["cargo", "build", "--quiet", "--locked", "--profile", "plugin"]
        + ["--target", "wasm32-wasip2", "--package", package],
        cwd=ROOT,
        check=True,
        timeout=600,
    )
    return TARGET / "wasm32-wasip2" / "plugin" / (package.replace("-", "_") + ".wasm")


@pytest.fixture(scope="session")
def misbehave():
    """The bytes of a strategy that misbehaves as its configuration says."""
    return _wasm("misbehave").read_bytes()


@pytest.fixture(scope="session")
def stock_plugin():
    """The bytes of a good strategy."""
    return (PLUGINS / "retry.wasm").read_bytes()
