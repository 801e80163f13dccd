"""A primary that is killed again and again costs no call, is left alone while it is down, and is used
again each time it is back.

Five kills; BACKSTOP_KILLS=20 for the long form.
"""

import asyncio
import json
import os
import socket
import threading
import time

import client
from processes import Gateway, TinyServer, service, table, wait_until

KILLS = int(os.environ.get("BACKSTOP_KILLS", "5"))
CALLERS = 50
OPENED = 0.5  # seconds after a crash by which the circuit is open
WATCHED = 1.0  # seconds for which what reaches the dead primary is counted
OPEN_FOR = 0.3  # the shortest time the circuit is open, less its jitter of a fifth

QUICK = table(
    "[health]", interval="500ms", timeout="500ms", rise=1, fall=1, slow_start="0s"
) + table(
    "[circuit]", open_for=f"{OPEN_FOR}s", max_open="1s", half_open_probes=1, half_open_successes=1
)


class Recorder:
    """Listens in the place of a server that is gone: it notes what arrives and never answers."""

    def __init__(self, port):
        self.methods = []
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", port))
        self.listener.listen(128)
        self.thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        # A thread that waits in accept() would keep the port.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(10)

    def _accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._note, args=(connection,), daemon=True).start()

    def _note(self, connection):
        with connection:
            connection.settimeout(5)
            received = b""
            try:
                while part := connection.recv(65536):
                    received += part
                    head, found, body = received.partition(b"\r\n\r\n")
                    if found:
                        self.methods.append(json.loads(body)["method"])
                        return
            except (OSError, ValueError):
                # A body that comes in two parts is read on; one that never comes was no request.
                pass


class Callers:
    """Many callers, each of which goes on calling until it is told to stop."""

    def __init__(self, connection):
        self.connection = connection
        self.answered = {"primary": 0, "secondary": 0}
        self.going = True

    async def call_on(self):
        while self.going:
            answer = await self.connection.call_tool("who", {})
            self.answered[client.text(answer)] += 1
            await asyncio.sleep(0.05)

    async def until_served_by(self, name, limit=15.0):
        before, began = self.answered[name], time.monotonic()
        while self.answered[name] < before + 20:
            assert time.monotonic() < began + limit, f"{name} is not used within {limit} s"
            await asyncio.sleep(0.02)
        return time.monotonic() - began


async def crash(primary, callers):
    """Kills the primary and starts it again; the time until it is in use again, in seconds."""
    await asyncio.to_thread(primary.kill)
    with Recorder(primary.port) as recorder:
        await callers.until_served_by("secondary")
        await asyncio.sleep(OPENED)
        recorder.methods.clear()
        answered = callers.answered["secondary"]
        await asyncio.sleep(WATCHED)
        reached = recorder.methods.count("tools/call")
        made = callers.answered["secondary"] - answered
        # One call for each time the circuit may have been half-open.
        assert reached <= WATCHED / (OPEN_FOR * 0.8) + 1, f"{reached} of {made} calls"
        assert made >= 50, f"only {made} calls were made meanwhile"
    await asyncio.to_thread(primary.__enter__)
    return await callers.until_served_by("primary")


def test_no_call_is_lost_however_often_the_primary_is_killed(write_config):
    async def scenario(url, primary):
        async with client.connect(url) as connection:
            callers = Callers(connection)
            async with asyncio.TaskGroup() as group:
                for _ in range(CALLERS):
                    group.create_task(callers.call_on())
                await callers.until_served_by("primary")
                back = [await crash(primary, callers) for _ in range(KILLS)]
                callers.going = False
            print(f"answered: {callers.answered}; back after {[round(s, 1) for s in back]} s")

    with TinyServer("primary") as primary, TinyServer("secondary") as secondary:
        config = write_config(
            QUICK,
            service("primary", url=primary.url, priority=1, trusted=True),
            service("secondary", url=secondary.url, trusted=True),
        )
        with Gateway(config) as gateway:
            client.run(scenario(gateway.url, primary), 60 + KILLS * 20)


def test_services_of_a_file_come_and_go_under_load_without_losing_a_call(write_config, tmp_path):
    file = tmp_path / "services.json"

    def say(*servers):
        """As a careful writer does it: a new file takes the place of the old one."""
        services = [
            {"name": server.name, "url": server.url, "trusted": True} for server in servers
        ]
        (tmp_path / "new.json").write_text(json.dumps({"service": services}, indent=1))
        (tmp_path / "new.json").rename(file)

    async def scenario(url, primary, secondary, gateway):
        async with client.connect(url) as connection:
            callers = Callers(connection)
            async with asyncio.TaskGroup() as group:
                for _ in range(20):
                    group.create_task(callers.call_on())
                await callers.until_served_by("primary")
                for _ in range(3):
                    slow = asyncio.create_task(connection.call_tool("who", {"seconds": 1}))
                    await asyncio.sleep(0.1)
                    say(secondary)
                    await callers.until_served_by("secondary")
                    # What was under way at the one that left is finished there.
                    assert client.text(await slow) == "primary"
                    before = callers.answered["primary"]
                    await asyncio.sleep(0.3)
                    assert callers.answered["primary"] == before
                    say(primary)
                    await callers.until_served_by("primary")
                # A file that is half written changes nothing, and says where.
                file.write_text('{"service": [\n {"name": "x"')
                report = "services.json:2:"
                await asyncio.to_thread(wait_until, lambda: report in gateway.output(), report)
                await callers.until_served_by("primary")
                callers.going = False

    with TinyServer("primary") as primary, TinyServer("secondary") as secondary:
        say(primary)
        config = write_config(table("[[discovery]]", name="more", file="services.json"))
        with Gateway(config) as gateway:
            client.run(scenario(gateway.url, primary, secondary, gateway), 120)
