"""aider, one shot: a message, an edit of a file in the answer, the file changed.

Usage: aider_session.py BASE_URL AIDER DIRECTORY

Between it and the server stands a proxy that has the model write the edit, by the choice of one text; nothing else of a request is changed,
and the answers are not.
"""

import http.client
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import urllib.parse

base, aider, directory = sys.argv[1:4]
server = urllib.parse.urlsplit(base).netloc
work = pathlib.Path(directory)
EDIT = "hello.py\n```\nprint(\"changed\")\n```\n"
asked = []


class Proxy(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        body["structured_outputs"] = {"choice": [EDIT]}
        connection = http.client.HTTPConnection(server, timeout=600)
        connection.request("POST", self.path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        data = answer.read()
        asked.append((answer.status, body.get("stream"), data.decode()))
        self.send_response(answer.status)
        self.send_header("content-type", answer.getheader("content-type"))
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
threading.Thread(target=proxy.serve_forever, daemon=True).start()
for mode in ("--stream", "--no-stream"):
    file = work / "hello.py"
    file.write_text('print("hello")\n')
    environment = {
        "PATH": os.environ["PATH"], "HOME": directory, "OPENAI_API_KEY": "none", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "OPENAI_API_BASE": f"http://127.0.0.1:{proxy.server_port}/v1",
    }
    words = ["--model", "openai/any", "--edit-format", "whole", "--yes-always", "--no-git", "--no-check-update", "--no-show-release-notes",
             "--no-show-model-warnings", "--analytics-disable", "--no-pretty", mode, "--message", "Print changed in place of hello.", "hello.py"]
    ran = subprocess.run([aider, *words], cwd=work, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    story = f"{ran.stdout}\n{ran.stderr}\n{asked}"
    assert ran.returncode == 0 and "Applied edit to hello.py" in ran.stdout, story
    assert file.read_text() == 'print("changed")\n', story
    assert asked[-1][0] == 200 and bool(asked[-1][1]) == (mode == "--stream"), story
print("aider: an edit, as events and whole")
