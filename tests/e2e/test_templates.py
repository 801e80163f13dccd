"""The templates of `backstop init`, each served and called, and what describes a configuration."""

import contextlib
import json
import re

import openai
import pytest

from admin import Observed, text
from processes import TinyServer, run
from provider import TEXT, Provider


def written(template, folder, addresses):
    """The template as `init` writes it, with the addresses of servers that are there."""
    path = folder / "backstop.toml"
    done = run("init", "--template", template, "--out", path)
    assert done.returncode == 0, done.stderr
    assert "backstop check" in done.stderr
    assert run("check", "--config", path).returncode == 0
    content = path.read_text()
    for address, url in addresses.items():
        assert address in content
        content = content.replace(address, url)
    # The fixed port of the endpoint may be somebody else's here.
    path.write_text(content.replace("127.0.0.1:8809", "127.0.0.1:0"))
    checked = run("check", "--config", path)
    assert checked.returncode == 0, checked.stderr
    assert checked.stderr == ""
    return path


class Served(Observed):
    """Some templates have an administration endpoint, and some have none."""

    def ready(self):
        super(Observed, self).ready()
        found = re.search(r"administration at (http://\S+)/", self.output())
        self.admin = found and found[1]


def ask_model(gateway):
    base = gateway.url.removesuffix("/mcp") + "/v1"
    with openai.OpenAI(base_url=base, api_key="none", timeout=60) as client:
        answer = client.chat.completions.create(
            model="chat", messages=[{"role": "user", "content": "Where is Oslo?"}]
        )
    return answer.choices[0].message.content


@pytest.mark.parametrize("template", ["single", "primary-backup", "models", "full"])
def test_a_template_is_served_and_a_call_is_answered(template, tmp_path):
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(TinyServer(name)) for name in ("first", "second")]
        providers = [stack.enter_context(Provider()) for _ in range(2)]
        if template == "models":
            addresses = {f"http://127.0.0.1:300{n + 1}/v1": providers[n].url for n in range(2)}
        else:
            count = 1 if template == "single" else 2
            addresses = {f"http://127.0.0.1:300{n + 1}/mcp": servers[n].url for n in range(count)}
        if template == "full":
            addresses["http://127.0.0.1:3003/v1"] = providers[0].url
        config = written(template, tmp_path, addresses)
        gateway = stack.enter_context(Served(config))
        if template != "models":
            assert text(gateway.call("who")) == "first"
        if template in ("primary-backup", "full"):
            servers[0].kill()
            assert text(gateway.call("who")) == "second"
        if template in ("models", "full"):
            assert ask_model(gateway) == "".join(TEXT)
        if template == "models":
            providers[0].act = ("status", 503, {"message": "not now", "type": "server_error"})
            assert ask_model(gateway) == "".join(TEXT)
        if template == "full":
            assert gateway.ask("/api/status")["calls"]["saved"] == 1
            assert (tmp_path / "events.jsonl").read_text()


@pytest.mark.parametrize("template", ["single", "primary-backup", "models", "full"])
def test_a_template_can_be_tried_before_any_server_is_there(template, tmp_path):
    path = tmp_path / "backstop.toml"
    assert run("init", "--template", template, "-o", path).returncode == 0
    done = run("simulate", "--config", path, "--scenario", "ConnectionError")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_init_wants_one_source_and_says_which_templates_there_are(tmp_path):
    done = run("init", "--template", "singel", "--out", tmp_path / "x.toml")
    assert done.returncode == 2
    assert "'single'" in done.stderr and "primary-backup" in done.stderr
    assert run("init", "--out", tmp_path / "x.toml").returncode == 2
    both = run("init", "--template", "single", "--from", "x.json", "--out", tmp_path / "x.toml")
    assert both.returncode == 2
    assert not (tmp_path / "x.toml").exists()


def test_the_schema_is_printed():
    schema = json.loads(run("config", "schema").stdout)
    assert schema["title"] == "backstop configuration"
    assert "service" in schema["properties"]
