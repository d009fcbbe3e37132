"""A session with OpenAI's own client: vectors of texts.

Usage: vectors_session.py BASE_URL GOLDEN
BASE_URL is a server of the model that GOLDEN has the texts and vectors of (tests/golden/vectors).
"""

import json
import math
import sys

import openai

base, golden = sys.argv[1:3]
with open(golden, encoding="utf-8") as file:
    known = json.load(file)
client = openai.OpenAI(base_url=base + "/v1", api_key="none", max_retries=0, timeout=120)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.hypot(*a) / math.hypot(*b)


model = client.models.list().data[0].id
# The client asks for base64 by itself, and unpacks it.
answer = client.embeddings.create(model=model, input=known["texts"])
assert [item.index for item in answer.data] == list(range(len(known["texts"])))
assert all(cosine(item.embedding, want) > 1 - 1e-5 for item, want in zip(answer.data, known["vectors"]))
assert answer.usage.prompt_tokens == sum(map(len, known["tokens"])) == answer.usage.total_tokens

floats = client.embeddings.create(model=model, input=known["texts"][1], encoding_format="float").data[0].embedding
assert isinstance(floats, list) and all(abs(a - b) < 1e-6 for a, b in zip(floats, answer.data[1].embedding))
tokens = client.embeddings.create(model=model, input=known["tokens"][1]).data[0].embedding
assert cosine(tokens, floats) > 1 - 1e-6
few = client.embeddings.create(model=model, input=known["texts"][1], dimensions=8).data[0].embedding
assert len(few) == 8 and abs(math.hypot(*few) - 1) < 1e-5 and cosine(few, floats[:8]) > 1 - 1e-6

many = client.embeddings.create(model=model, input=[f"text {i}" for i in range(1000)])
assert len(many.data) == 1000 and many.data[999].index == 999
try:
    client.embeddings.create(model=model, input="")
    raise AssertionError("nothing has a vector")
except openai.BadRequestError as error:
    assert error.param == "input", error
try:
    client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}])
    raise AssertionError("a model of vectors has answered")
except openai.APIStatusError as error:
    assert error.status_code == 501 and "/v1/embeddings" in error.message, error
print("vectors: done")
