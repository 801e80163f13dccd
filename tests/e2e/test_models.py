"""The official OpenAI client, pointed at backstop: whole answers or exceptions, whatever breaks."""

import contextlib

import openai
import pytest

from processes import Gateway, table
from provider import CALL, TEXT, Provider

QUESTION = [{"role": "user", "content": "Where is Oslo?"}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
WHOLE = "".join(TEXT)
UNAVAILABLE = ("status", 503, {"message": "not now", "type": "server_error"})

QUICK = table("[retry.default]", initial_delay="5ms")


def model(name, provider, priority):
    return table(
        "[[model]]",
        name=name,
        group="chat",
        base_url=provider.url,
        model=f"m-{name}",
        priority=priority,
    )


@pytest.fixture
def world(write_config):
    """A primary, a secondary, and a client of the gateway in front of them."""
    with contextlib.ExitStack() as stack:
        primary, secondary = (stack.enter_context(Provider()) for _ in range(2))
        config = write_config(QUICK, model("primary", primary, 10), model("secondary", secondary, 1))
        gateway = stack.enter_context(Gateway(config))
        base = gateway.url.removesuffix("/mcp") + "/v1"
        client = stack.enter_context(openai.OpenAI(base_url=base, api_key="none", timeout=60))
        yield primary, secondary, client


def ask(client, **options):
    return client.chat.completions.create(model="chat", messages=QUESTION, **options)


def test_a_whole_answer_says_which_model_gave_it_and_what_it_used(world):
    primary, secondary, client = world
    primary.act = UNAVAILABLE
    raw = client.chat.completions.with_raw_response.create(model="chat", messages=QUESTION)
    answer = raw.parse()
    assert answer.choices[0].message.content == WHOLE
    assert (answer.model, answer.usage.total_tokens) == ("m-secondary", 9)
    assert raw.headers["x-backstop-served-by"] == "secondary"
    assert raw.headers["x-backstop-failed"].startswith("primary=ServiceUnavailable")
    assert secondary.seen[0]["model"] == "m-secondary"


@pytest.mark.parametrize("fault", [UNAVAILABLE, ("cut", 0)])
def test_a_stream_that_fails_before_its_first_token_is_whole_from_another_model(world, fault):
    primary, _, client = world
    primary.act = fault
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == WHOLE
    assert {c.model for c in chunks} == {"m-secondary"}
    assert chunks[-1].usage.total_tokens == 9


def test_a_stream_that_breaks_off_is_an_exception_and_never_a_finish(world):
    primary, _, client = world
    primary.act = ("cut", 2)
    heard, finishes = [], []
    with pytest.raises(openai.APIError, match="the answer broke off: StreamInterrupted"):
        for chunk in ask(client, stream=True):
            heard.append(chunk.choices[0].delta.content or "")
            finishes.append(chunk.choices[0].finish_reason)
    assert "".join(heard) == "".join(TEXT[:2])
    assert set(finishes) == {None}


def test_tools_are_called_whole_and_streamed(world):
    primary, _, client = world
    primary.act = UNAVAILABLE
    call = ask(client, tools=TOOLS).choices[0].message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == (CALL["name"], CALL["arguments"])
    with client.chat.completions.stream(model="chat", messages=QUESTION, tools=TOOLS) as stream:
        final = stream.get_final_completion()
    call = final.choices[0].message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == (CALL["name"], CALL["arguments"])
    assert (final.model, final.choices[0].finish_reason) == ("m-secondary", "tool_calls")


def test_a_request_that_is_too_long_is_the_exception_the_provider_meant(world):
    primary, secondary, client = world
    error = {"message": "maximum context length is 10", "code": "context_length_exceeded"}
    primary.act = secondary.act = ("status", 400, {**error, "type": "invalid_request_error"})
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client)
    assert caught.value.code == "context_length_exceeded"
    assert "maximum context length is 10" in str(caught.value)
    assert (len(primary.seen), len(secondary.seen)) == (1, 1)


def test_where_everything_fails_the_client_asks_once(world):
    primary, secondary, client = world
    primary.act = secondary.act = UNAVAILABLE
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client)
    # Had the client retried by itself, more would have been asked than one call reports.
    attempts = caught.value.body["backstop"]["attempts"]
    assert len(attempts) == len(primary.seen) + len(secondary.seen)
    assert caught.value.status_code == 503


def test_models_are_listed_and_embeddings_passed_on(world):
    _, _, client = world
    assert [entry.id for entry in client.models.list()] == ["chat", "primary", "secondary"]
    assert client.models.retrieve("chat").owned_by == "backstop"
    answer = client.embeddings.create(model="chat", input="Oslo", encoding_format="float")
    assert (answer.data[0].embedding, answer.model) == ([0.5, 0.25], "m-primary")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=QUESTION)
