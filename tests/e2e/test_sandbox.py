"""A strategy that misbehaves costs one bounded decision, and the next one saves the call."""

import time

import pytest

import client
from processes import Gateway, service, table


@pytest.mark.parametrize("when", ["condition", "action"])
@pytest.mark.parametrize("how", ["trap", "loop", "hoard", "lie"])
def test_a_call_is_saved_by_the_strategy_after_one_that_misbehaves(
    when, how, pair, tmp_path, misbehave
):
    primary, secondary = pair
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "misbehave.wasm").write_bytes(misbehave)
    config = tmp_path / "backstop.toml"
    config.write_text(
        'plugins = "plugins"\n'
        + service("primary", url=primary.url, priority=10)
        + service("secondary", url=secondary.url, priority=1)
        + table("[[strategy]]", plugin="misbehave", config={"when": when, "how": how})
        + table("[[strategy]]", plugin="service-failover")
    )

    async def scenario(gateway):
        async with client.connect(gateway.url) as connection:
            assert await client.instance(connection) == "primary"
            primary.kill()
            began = time.monotonic()
            assert await client.instance(connection) == "secondary"
            assert time.monotonic() - began < 5

    with Gateway(config) as gateway:
        client.run(scenario(gateway))
        assert gateway.child.poll() is None
        # A lie is a proposal like another one, which the guard refuses; it is no fault.
        if how != "lie":
            assert "misbehave" in gateway.output(), "the fault is not reported"
