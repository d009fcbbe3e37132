#!/usr/bin/env python3
"""Writes expected.json: the demo model's greedy answers to prompts.txt as llama.cpp gives them.

    pip install llama-cpp-python==0.3.36 numpy jinja2
    python expect.py ../../src/demo/brim-demo.gguf ../../src/demo/prompts.txt ../../src/demo/expected.json

The prompt is the file's own chat template rendered by Jinja2, without a system message. The KV cache is F16, then F32:
both must give the same tokens, and they must be the answers of topics.txt.
"""
import json
import sys

import jinja2
import llama_cpp
import numpy as np

import corpus


def greedy(model, prompt, n_max=200):
    """Greedy token ids up to and with the end mark, and the smallest gap between the best and the second logit."""
    model.reset()
    model.eval(prompt)
    answer, gap = [], float("inf")
    while len(answer) < n_max:
        logits = np.asarray(model.scores[model.n_tokens - 1])
        second, best = np.sort(logits)[-2:]
        gap = min(gap, float(best - second))
        answer.append(int(logits.argmax()))
        if answer[-1] == model.token_eos():
            break
        model.eval(answer[-1:])
    return answer, gap


def main():
    path, prompts, out = sys.argv[1:]
    answers = {t.answer for t in corpus.load_topics()}
    models = [llama_cpp.Llama(path, n_ctx=1024, n_threads=2, logits_all=True, verbose=False, type_k=kv, type_v=kv) for kv in (1, 0)]
    template = jinja2.Environment().from_string(models[0].metadata["tokenizer.chat_template"])
    rows = []
    for line in open(prompts).read().splitlines():
        text = template.render(messages=[{"role": "user", "content": line}], add_generation_prompt=True)
        ids = models[0].tokenize(text.encode(), add_bos=False, special=True)
        assert models[0].detokenize(ids, special=True).decode() == text
        answer, gap = greedy(models[0], ids)
        same, gap_f32 = greedy(models[1], ids)
        assert answer == same, f"{line}: F16 and F32 caches differ"
        said = models[0].detokenize(answer[:-1]).decode()
        assert said in answers, f"{line}: not an answer of topics.txt: {said}"
        print(f"gap {gap:.2f} (f32 KV {gap_f32:.2f})  {line}\n    {said}")
        rows.append({"prompt": line, "prompt_ids": ids, "answer_ids": answer, "answer": said, "smallest_logit_gap": round(gap, 3)})
    with open(out, "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
    print("smallest gap of all:", min(r["smallest_logit_gap"] for r in rows))


if __name__ == "__main__":
    main()
