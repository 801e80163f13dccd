"""`backstop simulate`: a fault scenario against a configuration, on the command line."""

import json

import pytest

from processes import run, service, table

NOWHERE = "http://127.0.0.1:9/mcp"
PAIR = service("eu", group="search", url=NOWHERE, priority=1) + service(
    "us", group="search", url=NOWHERE
)


@pytest.fixture
def config(write_config):
    return write_config(PAIR)


def scenario(tmp_path, text):
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    return path


def test_an_outage_is_told_in_words(config):
    done = run("simulate", "--config", config, "--scenario", "outage")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for told in [
        "1:00.000  fault     eu: transport refused, until 3:00.000",
        "saved by us, by",
        "eu is left alone for",
        "answered at once by us",
        "3:00.000  fault     eu: transport refused is over",
        "eu is used again",
        "search: as before the faults,",
        "failed cleanly",
    ]:
        assert any(told in line for line in lines), f"{told}\n{done.stdout}"


def test_a_scenario_of_ones_own_is_begun_with_one_of_the_programs(config, tmp_path):
    listed = run("simulate", "--list").stdout
    assert len(listed.splitlines()) == 17
    assert "ConnectionError" in listed and "rate-limit" in listed
    shown = run("simulate", "--show", "rate-limit").stdout
    mine = scenario(tmp_path, shown.replace('"1/s"', '"2/s"'))
    done = run("simulate", "--config", config, "--scenario", mine, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    [played] = document["runs"]
    summary = played["summary"]
    assert summary["calls"] == summary["at_once"] + summary["saved"] + summary["failed"]
    assert summary["targets"]["eu"]["failed"] > 0
    begins = [it for it in played["timeline"] if it["what"] == "fault_begins"]
    assert begins[0]["fault"] == "HTTP 429, beyond 2 requests in 1s"
    # The same once more, and something else by another seed.
    again = run("simulate", "--config", config, "--scenario", mine, "--json")
    assert again.stdout == done.stdout
    other = run("simulate", "--config", config, "--scenario", mine, "--json", "--seed", "2")
    assert other.stdout != done.stdout


def test_two_configurations_are_shown_side_by_side(config, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text(PAIR + table("[circuit]", consecutive_failures=1))
    options = ("--config", config, "--compare", other, "--scenario", "outage")
    done = run("simulate", *options)
    assert done.returncode == 0, done.stderr
    figures = done.stdout[done.stdout.rindex("\n\n") :]
    [head] = [line for line in figures.splitlines() if "other.toml" in line]
    assert str(config) in head
    [requests] = [line for line in figures.splitlines() if line.startswith("requests to eu")]
    assert requests.count("failed") == 2
    document = json.loads(run("simulate", *options, "--json").stdout)
    first, second = (it["summary"]["targets"]["eu"]["failed"] for it in document["runs"])
    assert second < first


def test_what_is_wrong_is_told_with_its_place_and_the_nearest_name(config, tmp_path, write_config):
    def refused(*words, **options):
        arguments = {"config": config, "scenario": "outage", **options}
        done = run("simulate", *(part for k, v in arguments.items() for part in (f"--{k}", v)))
        assert done.returncode == 2, done.stdout
        assert done.stdout == ""
        for word in words:
            assert word in done.stderr, done.stderr

    refused('did you mean "outage"?', "--list", "no file outge", scenario="outge")
    wrong = scenario(tmp_path, "[[fault]]\ntarget = 'frist'\nsilent = true\nfrm = '1m'\n")
    refused(
        f'{wrong}:2:10: fault[0].target: unknown target "frist": did you mean "first"?',
        f'{wrong}:4:1: fault[0].frm: unknown key "frm": did you mean "from"?',
        "cannot be played against",
        scenario=wrong,
    )
    # A target the second configuration does not have.
    mine = tmp_path / "mine.toml"
    mine.write_text("[[fault]]\ntarget = 'us'\nsilent = true\n")
    other = tmp_path / "other.toml"
    other.write_text(service("eu", group="search", url=NOWHERE))
    refused('unknown target "us"', "other.toml", scenario=mine, compare=other)
    refused("cannot be read", config=tmp_path / "none.toml")
    broken = write_config(PAIR, "[helth]\n")
    refused('unknown key "helth": did you mean "health"?', config=broken)
    assert run("simulate", "--config", config).returncode == 2


@pytest.mark.parametrize("how", ["loop", "trap", "sleep"])
def test_a_strategy_that_misbehaves_is_seen_before_an_outage_sees_it(
    how, write_config, tmp_path, misbehave
):
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "misbehave.wasm").write_bytes(misbehave)
    config = write_config(
        'plugins = "plugins"',
        table("[[strategy]]", plugin="misbehave", config={"when": "action", "how": how}),
        PAIR,
    )
    done = run("simulate", "--config", config, "--scenario", "outage", "--json")
    assert done.returncode == 0, done.stderr
    [played] = json.loads(done.stdout)["runs"]
    whats = [it["what"] for it in played["timeline"]]
    assert "strategy_faulted" in whats and "strategy_quarantined" in whats
    assert played["summary"]["failed"] == 0
    again = run("simulate", "--config", config, "--scenario", "outage", "--json")
    assert again.stdout == done.stdout
