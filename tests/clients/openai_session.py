"""A session with OpenAI's own client: chat, streaming, tools, JSON, logprobs, stop, errors, cancellation.

Usage: openai_session.py BASE_URL QWEN_BASE_URL ANSWER
BASE_URL is a server of the demo model, ANSWER its greedy answer to QUESTION by `brim run`; QWEN_BASE_URL one whose
template has tools (its weights may be random: calls are forced).
"""

import asyncio
import json
import sys

import openai

QUESTION = "How do I reserve huge pages?"
base, tools_base, answer = sys.argv[1:4]
client = openai.OpenAI(base_url=base + "/v1", api_key="none", max_retries=0, timeout=120)
with_tools = openai.OpenAI(base_url=tools_base + "/v1", api_key="none", max_retries=0, timeout=120)
user = [{"role": "user", "content": QUESTION}]

model = client.models.list().data[0].id
assert client.models.retrieve(model).id == model

# Chat: the same as `brim run`.
chat = client.chat.completions.create(model=model, messages=user, temperature=0)
assert chat.choices[0].message.content == answer, chat
assert chat.choices[0].finish_reason == "stop" and chat.usage.total_tokens > 20

# Streaming: the pieces add up, the usage comes last.
pieces, usage = [], None
for chunk in client.chat.completions.create(
    model=model, messages=user, temperature=0, stream=True, stream_options={"include_usage": True}
):
    usage = chunk.usage or usage
    pieces += [choice.delta.content or "" for choice in chunk.choices]
assert "".join(pieces) == answer and len(pieces) > 20
assert usage.completion_tokens == chat.usage.completion_tokens

# Logprobs.
logs = client.chat.completions.create(
    model=model, messages=user, temperature=0, logprobs=True, top_logprobs=4, max_tokens=8
).choices[0]
assert logs.finish_reason == "length"
assert "".join(token.token for token in logs.logprobs.content) == logs.message.content
assert all(len(token.top_logprobs) == 4 and token.logprob <= 0 for token in logs.logprobs.content)

# Stop, and several answers of one seed.
stopped = client.chat.completions.create(model=model, messages=user, temperature=0, stop=["MODEL"]).choices[0]
assert stopped.message.content == answer.split("MODEL")[0] and stopped.finish_reason == "stop"
several = client.chat.completions.create(model=model, messages=user, n=3, seed=7, temperature=1.2, max_tokens=12)
again = client.chat.completions.create(model=model, messages=user, n=3, seed=7, temperature=1.2, max_tokens=12)
assert len(several.choices) == 3
assert [c.message.content for c in several.choices] == [c.message.content for c in again.choices]

# JSON by a schema, at any temperature.
schema = {
    "type": "object",
    "properties": {"pages": {"type": "integer", "minimum": 0, "maximum": 4096}, "unit": {"enum": ["MiB", "GiB"]}},
    "required": ["pages", "unit"],
    "additionalProperties": False,
}
for seed in range(3):
    text = client.chat.completions.create(
        model=model,
        messages=user,
        temperature=1.0,
        seed=seed,
        response_format={"type": "json_schema", "json_schema": {"name": "size", "schema": schema, "strict": True}},
    ).choices[0].message.content
    value = json.loads(text)
    assert set(value) == {"pages", "unit"} and 0 <= value["pages"] <= 4096, text

# Completions.
text = client.completions.create(model=model, prompt="Huge pages", temperature=0, max_tokens=6, logprobs=2)
# A token that ends the answer is among them.
assert text.choices[0].text and len(text.choices[0].logprobs.token_logprobs) == text.usage.completion_tokens

# Tools with a round trip: the model is made to call, gets the result, and goes on.
tool = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Bonn", "Jena"]}, "days": {"enum": [1, 2]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
talk = [{"role": "user", "content": "How is the weather?"}]
for choice in ["required", {"type": "function", "function": {"name": "get_weather"}}]:
    called = with_tools.chat.completions.create(
        model="any", messages=talk, tools=[tool], tool_choice=choice, temperature=0
    ).choices[0]
    assert called.finish_reason == "tool_calls" and called.message.content is None, called
    call = called.message.tool_calls[0]
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "get_weather" and arguments["city"] in ("Bonn", "Jena") and arguments["days"] in (1, 2)
talk += [called.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
after = with_tools.chat.completions.create(model="any", messages=talk, tools=[tool], max_tokens=5, tool_choice="none")
assert after.usage.prompt_tokens > 20
names, pieces, reason = [], [], None
for chunk in with_tools.chat.completions.create(
    model="any", messages=talk[:1], tools=[tool], tool_choice="required", temperature=0, stream=True
):
    for part in chunk.choices[0].delta.tool_calls or []:
        # The name comes with the first piece.
        names += [part.function.name] if part.function.name else []
        pieces.append(part.function.arguments)
    reason = chunk.choices[0].finish_reason or reason
assert names == ["get_weather"] and json.loads("".join(pieces))["city"] and reason == "tool_calls"
assert len(pieces) > 3, pieces

# Responses, whole and in events, with a tool.
response = client.responses.create(model=model, input=QUESTION, temperature=0)
assert response.output_text == answer and response.status == "completed"
with client.responses.stream(model=model, input=QUESTION, temperature=0) as stream:
    deltas = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert deltas == answer and stream.get_final_response().output_text == answer
flat = {"type": "function", **tool["function"], "strict": True}
response = with_tools.responses.create(
    model="any", input="How is the weather?", tools=[flat], tool_choice="required", temperature=0
)
call = response.output[0]
assert call.type == "function_call" and json.loads(call.arguments)["city"] in ("Bonn", "Jena")
talk = [{"role": "user", "content": "How is the weather?"}, call.model_dump()]
talk.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
response = with_tools.responses.create(model="any", input=talk, tools=[flat], max_output_tokens=4, tool_choice="none")
assert response.usage.output_tokens <= 4

# Errors are the client's own kinds, and name the field.
for kwargs, kind, param in [
    ({"messages": user, "temperature": 9}, openai.BadRequestError, "temperature"),
    ({"messages": [{"role": "user", "content": "word " * 5000}]}, openai.BadRequestError, "messages"),
]:
    try:
        client.chat.completions.create(model=model, **kwargs)
        raise SystemExit(f"{param}: no error")
    except kind as error:
        assert error.param == param, error
try:
    client.embeddings.create(model=model, input="x")
    raise SystemExit("embeddings: no error")
except openai.InternalServerError as error:
    assert error.status_code == 501


# Cancellation: a stream that is closed, and eight at once of which half go away.
async def many():
    aclient = openai.AsyncOpenAI(base_url=base + "/v1", api_key="none", max_retries=0, timeout=120)

    async def one(index):
        stream = await aclient.chat.completions.create(model=model, messages=user, temperature=0, stream=True)
        text = ""
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            if index % 2 and len(text) > 5:
                await stream.close()
                return None
        return text

    return await asyncio.gather(*(one(index) for index in range(8)))


texts = asyncio.run(many())
assert texts[::2] == [answer] * 4 and texts[1::2] == [None] * 4
print("openai", openai.__version__, "session passed")
