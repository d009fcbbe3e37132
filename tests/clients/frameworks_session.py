"""Sessions of packages that applications are built with: an answer, its events, a tool, a form, a context that is too long.

Usage: frameworks_session.py BASE_URL DIRECTORY; the server has SmolLM2-135M-Instruct. What so small a model would not do by itself, a call or
an answer in a form, is forced as applications force it.
"""

import asyncio
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Literal

from pydantic import BaseModel

base, directory = sys.argv[1] + "/v1", pathlib.Path(sys.argv[2])
os.environ |= {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": base, "OPENAI_AGENTS_DISABLE_TRACING": "1",
               "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
QUESTION = "What is the capital of France?"
TOO_LONG = "word " * 9000
calls = []


class Size(BaseModel):
    """A size of memory."""

    unit: Literal["MiB", "GiB"]
    pages: Literal[1, 2, 3]


def get_weather(city: Literal["Bonn", "Jena"]) -> str:
    """The weather of a city."""
    calls.append(city)
    return f"sunny in {city}"


def same(one, other):
    """The same answer at temperature 0, as far as it is certain: in four bits likely words lie close together, and a prompt that was read
    in other pieces may turn them around."""
    assert one[:12] == other[:12] and len(one) > 3, (one, other)


def fails(kind, action, *words):
    """The client's own class of error, with words in its text."""
    try:
        action()
    except kind as error:
        assert all(word in str(error) for word in words), error
        return error
    raise SystemExit(f"no {kind.__name__}")


def use_litellm():
    import litellm

    litellm.suppress_debug_info = True
    model = {"model": "openai/any", "api_base": base, "api_key": "none", "temperature": 0, "max_retries": 0}
    user = [{"role": "user", "content": QUESTION}]
    whole = litellm.completion(messages=user, max_tokens=24, **model)
    answer = whole.choices[0].message.content
    assert whole.usage.completion_tokens > 3, whole
    chunks = list(litellm.completion(messages=user, max_tokens=24, stream=True, stream_options={"include_usage": True}, **model))
    same("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), answer)
    assert any(getattr(chunk, "usage", None) for chunk in chunks)
    tool = {"type": "function", "function": {"name": "get_weather", "description": "The weather of a city.", "parameters": {
        "type": "object", "properties": {"city": {"enum": ["Bonn", "Jena"]}}, "required": ["city"], "additionalProperties": False}}}
    talk = [{"role": "user", "content": "How is the weather?"}]
    called = litellm.completion(messages=talk, tools=[tool], tool_choice="required", **model).choices[0]
    call = called.message.tool_calls[0]
    assert called.finish_reason == "tool_calls", called
    talk += [called.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": get_weather(**json.loads(call.function.arguments))}]
    after = litellm.completion(messages=talk, tools=[tool], tool_choice="none", max_tokens=16, **model)
    assert after.choices[0].message.content, after
    size = litellm.completion(messages=user, response_format=Size, **model).choices[0].message.content
    Size.model_validate_json(size)
    text = litellm.text_completion(prompt="The capital of France is", max_tokens=4, **model).choices[0].text
    assert "Paris" in text, text
    fails(litellm.ContextWindowExceededError, lambda: litellm.completion(messages=[{"role": "user", "content": TOO_LONG}], **model))


def use_langchain():
    from langchain_core.exceptions import ContextOverflowError
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    for responses in (False, True):
        chat = ChatOpenAI(model="any", temperature=0, max_tokens=64, max_retries=0, use_responses_api=responses)
        whole = chat.invoke(QUESTION)
        assert whole.usage_metadata["output_tokens"] > 3, whole
        same("".join(chunk.text for chunk in chat.stream(QUESTION)), whole.text)
        weather = tool(get_weather)
        talk = [HumanMessage("How is the weather?")]
        talk.append(chat.bind_tools([weather], tool_choice="any").invoke(talk))
        call = talk[-1].tool_calls[0]
        talk.append(ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]))
        assert chat.bind_tools([weather], tool_choice="none").invoke(talk).text
        for method in ("json_schema", "function_calling"):
            assert isinstance(chat.with_structured_output(Size, method=method).invoke("How large?"), Size)
        fails(ContextOverflowError, lambda: chat.invoke(TOO_LONG))


def use_agents():
    import agents
    import openai

    async def session(kind):
        model = kind("any", openai.AsyncOpenAI(max_retries=0))
        # An answer that the limit cuts off is an error to it.
        settings = agents.ModelSettings(temperature=0, max_tokens=200, extra_body={"stop": [",", "."]})
        plain = agents.Agent("plain", model=model, model_settings=settings)
        whole = (await agents.Runner.run(plain, QUESTION)).final_output
        assert len(whole) > 3
        run = agents.Runner.run_streamed(plain, QUESTION)
        deltas = [event.data.delta async for event in run.stream_events()
                  if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"]
        same("".join(deltas), run.final_output)
        same(run.final_output, whole)
        forced = agents.ModelSettings(temperature=0, max_tokens=64, tool_choice="required")
        weather = agents.Agent("weather", model=model, model_settings=forced, tools=[agents.function_tool(get_weather)])
        before = len(calls)
        run = await agents.Runner.run(weather, "How is the weather?", max_turns=4)
        assert len(calls) > before and any(item.type == "tool_call_output_item" for item in run.new_items), run
        form = agents.Agent("form", model=model, model_settings=agents.ModelSettings(temperature=0), output_type=Size)
        assert isinstance((await agents.Runner.run(form, "How large?")).final_output, Size)
        try:
            await agents.Runner.run(plain, TOO_LONG)
            raise SystemExit("no error")
        except openai.BadRequestError as error:
            assert error.code == "context_length_exceeded", error

    for kind in (agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel):
        asyncio.run(session(kind))


def use_pydantic_ai():
    from pydantic_ai import Agent, ModelHTTPError, NativeOutput, ToolOutput
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel

    for kind in (OpenAIChatModel, OpenAIResponsesModel):
        model = kind("any")
        agent = Agent(model, model_settings={"temperature": 0, "max_tokens": 64}, retries=0)
        whole = agent.run_sync(QUESTION).output
        assert len(whole) > 20
        for form in (NativeOutput(Size), ToolOutput(Size)):
            assert isinstance(agent.run_sync("How large?", output_type=form).output, Size)
        assert agent.run_sync("How is the weather?", output_type=get_weather).output.startswith("sunny")

        async def streamed():
            async with agent.run_stream(QUESTION) as run:
                pieces = [piece async for piece in run.stream_text(delta=True, debounce_by=None)]
            same("".join(pieces), whole)

        asyncio.run(streamed())
        error = fails(ModelHTTPError, lambda: agent.run_sync(TOO_LONG))
        assert error.status_code == 400 and error.body["code"] == "context_length_exceeded", error


def use_instructor():
    import instructor
    import openai

    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.JSON):
        client = instructor.from_openai(openai.OpenAI(max_retries=0), mode=mode)
        ask = {"model": "any", "temperature": 0, "max_tokens": 64, "response_model": Size, "max_retries": 0}
        if mode != instructor.Mode.JSON:
            size = client.create(messages=[{"role": "user", "content": "How large?"}], **ask)
            assert isinstance(size, Size)
            *_, last = client.create_partial(messages=[{"role": "user", "content": "How large?"}], **ask)
            assert last.unit == size.unit and last.pages == size.pages
        fails(Exception, lambda: client.create(messages=[{"role": "user", "content": TOO_LONG}], **ask), "maximum context length")


def use_llm():
    import sysconfig

    models = f"- model_id: brim\n  model_name: any\n  api_base: {base}\n  supports_schema: true\n  supports_tools: true\n"
    directory.joinpath("extra-openai-models.yaml").write_text(models)
    environment = {**os.environ, "LLM_USER_PATH": str(directory)}

    def run(*words, status=0):
        command = [os.path.join(sysconfig.get_path("scripts"), "llm"), "-m", "brim", "--key", "none", "-o", "temperature", "0", *words]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
        assert ran.returncode == status, ran
        return ran.stdout + ran.stderr

    whole = run("-o", "max_tokens", "24", "--no-stream", QUESTION)
    same(run("-o", "max_tokens", "24", QUESTION), whole)
    assert run("-o", "max_tokens", "24", "-c", "And of Italy?")
    Size.model_validate_json(run("--schema", json.dumps(Size.model_json_schema()), "How large?"))
    assert "maximum context length" in run(TOO_LONG, status=1)


for name, use in list(globals().items()):
    if name.startswith("use_") and (len(sys.argv) < 4 or name[4:] in sys.argv[3:]):
        begun = time.monotonic()
        use()
        print(f"{name[4:]}: {time.monotonic() - begun:.1f} s")
