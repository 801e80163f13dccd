"""Each mistake is one clear message, and everything else still loads."""

import socket
import subprocess

import pytest

import client
from processes import BACKSTOP, RUN_LIMIT, Gateway, run, service, table

EMPTY_CORE_MODULE = b"\0asm\x01\0\0\0"
EMPTY_COMPONENT = b"\0asm\x0d\0\x01\0"


def strategy(plugin, **keys):
    return table("[[strategy]]", plugin=plugin, **keys)


def routes(name, *pairs):
    """An operation-fallback with these routes."""
    return strategy("operation-fallback", name=name) + "".join(
        table("[[strategy.config.routes]]", **{"from": source, "to": fallback})
        for source, fallback in pairs
    )


class Mistake:
    """A configuration with one mistake, the plugins beside it, and what must be said of it.

    `says` are texts which one line of the message must hold, all of them: the place, the reason,
    the remedy.
    """

    def __init__(self, says, text="", plugins=None, folder=True, loads=True):
        self.says = says
        self.text = text
        self.plugins = plugins or {}
        self.folder = folder
        self.loads = loads


def newer(component):
    """The same component, for a contract this host does not know."""
    changed = component.replace(b"@0.1.0", b"@0.9.0")
    assert changed != component
    return changed


@pytest.fixture(scope="session")
def mistakes(misbehave, stock_plugin):
    return {
        "broken TOML": Mistake(
            ["backstop.toml:8:", "TOML", "nothing of this file was loaded"],
            "[[service]\nname = 'half'\n",
            loads=False,
        ),
        "unknown key": Mistake(
            ["backstop.toml:10:1:", "service[1].prioriti", 'did you mean "priority"'],
            service("second", prioriti=1, group="other", url="http://127.0.0.1:9/mcp"),
        ),
        "missing plugin folder": Mistake(
            ["backstop.toml:1:", "plugins", "no such folder"], folder=False
        ),
        "not wasm": Mistake(
            ["backstop.toml", "bad.wasm", "not a WebAssembly file", "--target wasm32-wasip2"],
            strategy("bad"),
            {"bad": b"#!/bin/sh\necho no\n"},
        ),
        "core module": Mistake(
            ["backstop.toml", "bad.wasm", "core WebAssembly module", "--target wasm32-wasip2"],
            strategy("bad"),
            {"bad": EMPTY_CORE_MODULE},
        ),
        "component of another world": Mistake(
            ["backstop.toml", "bad.wasm", "not a fallback strategy", "backstop:strategy"],
            strategy("bad"),
            {"bad": EMPTY_COMPONENT},
        ),
        "newer contract": Mistake(
            ["backstop.toml", "bad.wasm", "backstop:strategy", "0.9.0", "0.1.0", "use a host"],
            strategy("bad"),
            {"bad": newer(stock_plugin)},
        ),
        "damaged component": Mistake(
            ["backstop.toml", "bad.wasm", "damaged or incomplete", "copy or build it again"],
            strategy("bad"),
            {"bad": stock_plugin[: len(stock_plugin) // 2]},
        ),
        "trap in configure": Mistake(
            ["backstop.toml", "bad.wasm", "configure", "trap", "mend the plugin"],
            strategy("bad", config={"when": "configure", "how": "trap"}),
            {"bad": misbehave},
        ),
        "loop in configure": Mistake(
            ["backstop.toml", "bad.wasm", "configure", "did not decide within", "mend the plugin"],
            strategy("bad", config={"when": "configure", "how": "loop"}),
            {"bad": misbehave},
        ),
        "configuration against the schema": Mistake(
            ["backstop.toml", "bad", "how", "trip"],
            strategy("bad", config={"when": "configure", "how": "trip"}),
            {"bad": misbehave},
        ),
        "unknown plugin": Mistake(
            ["backstop.toml", "retri", 'did you mean "retry"'], strategy("retri")
        ),
        "two services of one name": Mistake(
            ["backstop.toml:9:", "service[1].name", "duplicate name", "name of its own"],
            service("good", command="cat"),
        ),
        "fallback cycle": Mistake(
            ["backstop.toml", "second", "a -> b -> a"],
            routes("first", ("a", "b")) + routes("second", ("b", "a")),
        ),
        "no such command": Mistake(
            [
                "backstop.toml",
                'service "missing".command',
                'the command "no-such-program-anywhere" does not exist',
                "install it or correct the name",
            ],
            service("missing", command="no-such-program-anywhere"),
        ),
    }


NAMES = [
    "broken TOML",
    "unknown key",
    "missing plugin folder",
    "not wasm",
    "core module",
    "component of another world",
    "newer contract",
    "damaged component",
    "trap in configure",
    "loop in configure",
    "configuration against the schema",
    "unknown plugin",
    "two services of one name",
    "fallback cycle",
    "no such command",
]


def test_every_mistake_is_tried(mistakes):
    assert list(mistakes) == NAMES


@pytest.fixture
def lay_out(tmp_path, everything):
    """Writes a mistake to disk, beside one good service."""

    def write(mistake):
        folder = tmp_path / "plugins"
        if mistake.folder:
            folder.mkdir()
        for name, content in mistake.plugins.items():
            (folder / f"{name}.wasm").write_bytes(content)
        config = tmp_path / "backstop.toml"
        good = service("good", url=everything.url)
        config.write_text(f'plugins = "plugins"\n\n{good}\n\n{mistake.text}')
        return config

    return write


def complaints(output, mistake):
    """The lines that say all that must be said."""
    return [line for line in output.splitlines() if all(text in line for text in mistake.says)]


@pytest.mark.parametrize("name", NAMES)
def test_check_says_once_what_is_wrong_where_and_what_to_do(name, mistakes, lay_out):
    mistake = mistakes[name]
    ended = run("check", "--config", lay_out(mistake))
    output = ended.stdout + ended.stderr
    assert len(complaints(output, mistake)) == 1, output
    assert "panicked" not in output
    assert ended.returncode != 0


@pytest.mark.parametrize("name", NAMES)
def test_serve_goes_on_with_everything_else(name, mistakes, lay_out):
    mistake = mistakes[name]
    config = lay_out(mistake)

    async def scenario(gateway):
        async with client.connect(gateway.url) as connection:
            assert await client.instance(connection) == "only"

    if mistake.loads:
        with Gateway(config) as gateway:
            client.run(scenario(gateway))
            output = gateway.output()
    else:
        ended = run("serve", "--config", config, "--listen", "127.0.0.1:0")
        assert ended.returncode != 0
        output = ended.stderr
    assert len(complaints(output, mistake)) == 1, output
    assert "panicked" not in output


def test_a_good_configuration_passes_without_a_word_of_complaint(lay_out):
    ended = run("check", "--config", lay_out(Mistake([])))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "error" not in (ended.stdout + ended.stderr).lower()


def test_a_missing_file_is_named(tmp_path):
    for command in ["check", "serve"]:
        ended = run(command, "--config", tmp_path / "nowhere.toml")
        assert ended.returncode != 0
        assert "nowhere.toml" in ended.stderr + ended.stdout


def test_a_port_in_use_is_named_and_ends_the_program(lay_out):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = run("serve", "--config", lay_out(Mistake([])), "--listen", address)
    assert ended.returncode != 0
    said = [line for line in ended.stderr.splitlines() if address in line]
    assert len(said) == 1 and "in use" in said[0], ended.stderr
    assert "listening on" not in ended.stderr


def test_the_standard_output_of_a_server_on_stdio_holds_nothing_but_messages(lay_out, mistakes):
    """A client on stdio cannot read a complaint on standard output."""
    ended = subprocess.run(
        [BACKSTOP, "serve", "--stdio", "--config", lay_out(mistakes["not wasm"])],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_LIMIT,
        check=False,
    )
    assert ended.stdout == ""
    assert "bad.wasm" in ended.stderr
