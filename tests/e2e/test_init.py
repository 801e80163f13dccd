"""From a desktop client's configuration to a protected one in two steps."""

import json
import stat

import client
import processes
from processes import run, time_stdio


def test_a_clients_servers_are_reached_through_what_init_writes(tmp_path):
    server = time_stdio()
    theirs = tmp_path / "claude_desktop_config.json"
    theirs.write_text(
        json.dumps(
            {
                "mcpServers": {
                    "world clock": {"command": server.command, "args": server.args},
                    "unused": {"command": "nowhere", "disabled": True},
                }
            }
        )
    )
    written = tmp_path / "backstop.toml"
    done = run("init", "--from", theirs, "--output", written)
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert run("check", "--config", written).returncode == 0

    entry = json.loads(done.stdout)["mcpServers"]["backstop"]

    async def scenario():
        endpoint = processes.StdioServerParameters(**entry)
        async with client.connect(endpoint) as connection:
            answer = await connection.call_tool("get_current_time", {"timezone": "UTC"})
            assert json.loads(client.text(answer))["timezone"] == "UTC"

    client.run(scenario())


def test_init_overwrites_nothing_and_says_what_it_cannot_read(tmp_path):
    written = tmp_path / "backstop.toml"
    written.write_text("mine")
    theirs = tmp_path / "client.json"
    theirs.write_text('{"mcpServers": {"a": {"command": "x"}}}')
    done = run("init", "--from", theirs, "--output", written)
    assert done.returncode == 1
    assert str(written) in done.stderr
    assert written.read_text() == "mine"
    theirs.write_text('{"servers": 7}')
    done = run("init", "--from", theirs, "--output", tmp_path / "other.toml")
    assert done.returncode == 1
    assert "mcpServers" in done.stderr
