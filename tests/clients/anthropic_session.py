"""A session with Anthropic's own client: messages, streaming, tools with a round trip, stop, errors, cancellation.

Usage: anthropic_session.py BASE_URL TOOLS_BASE_URL ANSWER, as of openai_session.py.
"""

import json
import sys

import anthropic

QUESTION = "How do I reserve huge pages?"
base, tools_base, answer = sys.argv[1:4]
client = anthropic.Anthropic(base_url=base, api_key="none", max_retries=0, timeout=120)
with_tools = anthropic.Anthropic(base_url=tools_base, api_key="none", max_retries=0, timeout=120)
# The package has no argument for it any more; the interface has.
GREEDY = {"temperature": 0}
user = [{"role": "user", "content": QUESTION}]
model = client.models.list().data[0].id

message = client.messages.create(model=model, max_tokens=200, messages=user, extra_body=GREEDY)
assert message.content[0].text == answer and message.stop_reason == "end_turn", message
counted = client.messages.count_tokens(model=model, messages=user)
assert counted.input_tokens == message.usage.input_tokens + message.usage.cache_read_input_tokens

with client.messages.stream(model=model, max_tokens=200, messages=user, extra_body=GREEDY) as stream:
    assert "".join(stream.text_stream) == answer
    final = stream.get_final_message()
assert final.stop_reason == "end_turn" and final.usage.output_tokens == message.usage.output_tokens

stopped = client.messages.create(model=model, max_tokens=200, messages=user, extra_body=GREEDY, stop_sequences=["MODEL"])
assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == "MODEL"
assert stopped.content[0].text == answer.split("MODEL")[0]
assert client.messages.create(model=model, max_tokens=2, messages=user).stop_reason == "max_tokens"

schema = {
    "type": "object",
    "properties": {"pages": {"type": "integer", "minimum": 0, "maximum": 4096}},
    "required": ["pages"],
    "additionalProperties": False,
}
shaped = client.messages.create(
    model=model, max_tokens=50, messages=user, output_config={"format": {"type": "json_schema", "schema": schema}}
)
assert 0 <= json.loads(shaped.content[0].text)["pages"] <= 4096, shaped

tool = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Bonn", "Jena"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
talk = [{"role": "user", "content": "How is the weather?"}]
common = {"model": "any", "max_tokens": 100, "tools": [tool]}
called = with_tools.messages.create(messages=talk, tool_choice={"type": "any"}, extra_body=GREEDY, **common)
use = called.content[-1]
assert called.stop_reason == "tool_use" and use.type == "tool_use" and use.input["city"] in ("Bonn", "Jena"), called
result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "sunny"}]}
talk += [{"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
after = with_tools.messages.create(messages=talk, tool_choice={"type": "none"}, **{**common, "max_tokens": 4})
assert after.usage.output_tokens <= 4
with with_tools.messages.stream(messages=talk[:1], tool_choice={"type": "tool", "name": "get_weather"}, **common) as s:
    final = s.get_final_message()
assert final.stop_reason == "tool_use" and final.content[-1].input["city"] in ("Bonn", "Jena")

for kwargs, word in [({"extra_body": {"temperature": 9}}, "temperature"), ({"max_tokens": "x"}, "max_tokens")]:
    try:
        client.messages.create(model=model, messages=user, **{"max_tokens": 5, **kwargs})
        raise SystemExit(f"{word}: no error")
    except anthropic.BadRequestError as error:
        assert word in str(error), error

with client.messages.stream(model=model, max_tokens=200, messages=user) as stream:
    for _ in stream.text_stream:
        break
print("anthropic", anthropic.__version__, "session passed")
