"""A configuration that changes while `backstop serve` runs.

`BACKSTOP_RELOAD_SECONDS` says how long the versions under load go on; 4 s without it.
"""

import asyncio
import contextlib
import os
import signal
import time

import pytest

import client
from processes import Gateway, TinyServer, service, wait_until

SECONDS = float(os.environ.get("BACKSTOP_RELOAD_SECONDS", "4"))
LOG = {"RUST_LOG": "info"}


@pytest.fixture(scope="module")
def servers():
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(TinyServer(name)) for name in ("a", "b", "c")]


def text(number, servers):
    """A version: which servers there are, and which is preferred, differs from one to the next."""
    first, second = servers[number % 3], servers[(number + 1) % 3]
    return "\n".join(
        [
            f"# version {number}",
            service(first.name, url=first.url, group="g", trusted=True, priority=1),
            service(second.name, url=second.url, group="g", trusted=True),
        ]
    )


def replace(path, content):
    """As editors do: a reader sees the old file or the new one."""
    other = path.with_name(".next")
    other.write_text(content)
    other.rename(path)


class Log:
    """What a gateway has said since it was last asked."""

    def __init__(self, gateway):
        self.gateway = gateway
        self.read = 0

    def wait(self, *words):
        """The next line that says one of these."""
        found = []

        def said():
            lines = list(self.gateway.lines)
            for at in range(self.read, len(lines)):
                if any(word in lines[at] for word in words):
                    self.read = at + 1
                    found.append(lines[at])
                    return True
            return False

        wait_until(said, f"{words}; the output:\n{self.gateway.output()}")
        return found[0]


def test_the_file_is_put_in_force_when_it_changes_and_refused_with_the_place_when_it_is_wrong(
    servers, write_config
):
    config = write_config(text(0, servers))

    async def who(url):
        async with client.connect(url) as connected:
            return client.text(await connected.call_tool("who", {}))

    with Gateway(config, LOG) as gateway:
        log = Log(gateway)
        assert client.run(who(gateway.url)) == "a"
        replace(config, text(1, servers))
        line = log.wait("configuration version 2 ")
        assert 'service "c" added' in line and 'service "a" removed' in line, line
        assert client.run(who(gateway.url)) == "b"

        wrong = text(2, servers) + "\nprioriti = 3\n"
        config.write_text(wrong)
        line = log.wait("is refused")
        number = len(wrong.rstrip().splitlines())
        assert f'backstop.toml:{number}:1: service[1].prioriti: unknown key' in line, line
        assert 'did you mean "priority"' in line, line
        assert client.run(who(gateway.url)) == "b"

        config.unlink()
        assert "cannot be read" in log.wait("is refused")
        assert client.run(who(gateway.url)) == "b"
        config.write_text(text(2, servers) + "\n[gateway]\nlisten = '127.0.0.1:1'\n")
        log.wait("configuration version 3 ")
        assert "[gateway] listen" in log.wait("when the program is started again")
        assert client.run(who(gateway.url)) == "c"


def test_no_call_is_lost_over_twenty_versions_a_second_of_which_every_tenth_is_wrong(
    servers, write_config
):
    config = write_config(text(0, servers))
    names = {server.name for server in servers}
    answered = []

    with Gateway(config, LOG) as gateway:
        log = Log(gateway)
        done = asyncio.Event()

        async def caller(number):
            async with client.connect(gateway.url) as connected:
                while not done.is_set():
                    seconds = 0.02 * (len(answered) % 4)
                    result = await connected.call_tool("who", {"seconds": seconds})
                    answered.append(client.text(result))

        def versions():
            """Writes a version, asks for it to be read, and waits for what is said of it."""
            number = applied = refused = 0
            applied = 1
            begin = time.monotonic()
            while time.monotonic() < begin + SECONDS:
                number += 1
                is_wrong = number % 10 == 0
                replace(config, text(number, servers) + ("\nwieght = 2\n" if is_wrong else ""))
                gateway.child.send_signal(signal.SIGHUP)
                said = log.wait("configuration version", "is refused")
                if is_wrong:
                    assert 'unknown key "wieght": did you mean "weight"?' in said, said
                    refused += 1
                else:
                    applied += 1
                    assert f"configuration version {applied} " in said, said
                time.sleep(max(0.0, begin + number * 0.05 - time.monotonic()))
            return applied, refused

        async def load():
            callers = [asyncio.create_task(caller(n)) for n in range(4)]
            try:
                return await asyncio.to_thread(versions)
            finally:
                done.set()
                await asyncio.gather(*callers)

        applied, refused = client.run(load(), limit=SECONDS + 120)
        print(f"{len(answered)} calls, {applied} versions applied, {refused} refused")
        assert set(answered) == names
        assert refused >= 1 and applied > refused
        assert gateway.child.poll() is None
