"""What a strategy keeps in its state is there when the program is started again."""

import json
import shutil

from processes import TESTS, Gateway, TinyServer, run, service, table, wait_until

WITNESS = TESTS / "compat/witness-0.1.0.wasm"
"""Adds 41 to a number in its state each time it decides, and gives the sum among its reasons."""


def config_of(write_config, folder, server, state):
    for name in ("plugins", "granted", "state"):
        (folder / name).mkdir()
    shutil.copy(WITNESS, folder / "plugins/witness.wasm")
    return write_config(
        'plugins = "plugins"\nstock = false\n' + state,
        service("slow", url=server.url, trusted=True),
        table(
            "[[strategy]]",
            plugin="witness",
            config={"action": "fail"},
            grants={"state": True, "folder": "granted"},
        ),
        table("[deadline]", attempt="300ms"),
    )


def sum_of_a_call(config):
    arguments = json.dumps({"seconds": 5})
    ended = run("call", "--config", config, "search_docs", "--arguments", arguments, "--json")
    assert ended.returncode == 1, ended.stderr
    assert "in use" not in ended.stderr, ended.stderr
    said = json.dumps(json.loads(ended.stdout))
    assert "increment Ok(" in said, said
    return int(said.split("increment Ok(")[1].split(")")[0])


def test_state_survives_the_end_of_the_program_where_a_folder_is_named_for_it(
    write_config, tmp_path
):
    with TinyServer("slow", tool="search_docs") as server:
        config = config_of(write_config, tmp_path, server, 'state = "state"')
        assert [sum_of_a_call(config) for _ in range(3)] == [41, 82, 123]


def test_state_ends_with_the_program_otherwise(write_config, tmp_path):
    with TinyServer("slow", tool="search_docs") as server:
        config = config_of(write_config, tmp_path, server, "")
        assert [sum_of_a_call(config) for _ in range(2)] == [41, 41]


def test_a_running_gateway_owns_its_state_and_a_check_leaves_it_alone(write_config, tmp_path):
    with TinyServer("slow", tool="search_docs") as server:
        config = config_of(write_config, tmp_path, server, 'state = "state"')
        with Gateway(config) as first:
            checked = run("check", "--config", config)
            assert checked.returncode == 0, checked.stdout + checked.stderr
            with Gateway(config) as second:
                wait_until(
                    lambda: "state.redb is in use by another program" in second.output(),
                    f"the second says so; its output:\n{second.output()}",
                )
            assert "in use" not in first.output()
