"""Plugins that come, change and go while `backstop serve` runs."""

import asyncio

import client
from processes import Gateway, service, wait_until


def test_a_plugin_takes_part_when_it_is_put_into_the_folder_of_a_running_gateway(
    everything, write_config, tmp_path, stock_plugin
):
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    config = write_config('plugins = "plugins"', service("only", url=everything.url))

    def put(content):
        unfinished = plugins / ".mine.wasm"
        unfinished.write_bytes(content)
        unfinished.rename(plugins / "mine.wasm")

    with Gateway(config, {"RUST_LOG": "info"}) as gateway:

        def says(*parts):
            def said():
                return any(all(part in line for part in parts) for line in list(gateway.lines))

            wait_until(said, f"{parts}; the output:\n{gateway.output()}")

        async def calls():
            async with client.connect(gateway.url) as connected:
                for _ in range(20):
                    assert await client.instance(connected) == "only"
                    await asyncio.sleep(0.01)

        put(stock_plugin)
        says("strategy mine ", "loaded from", "mine.wasm")
        client.run(calls())
        put(b"not a plugin")
        says("WARN", "mine", "not a WebAssembly file")
        client.run(calls())
        put(stock_plugin + b"\x00\x03\x01vv")
        says("strategy mine ", "reloaded from")
        (plugins / "mine.wasm").unlink()
        says("strategy mine ", "removed")
        client.run(calls())
