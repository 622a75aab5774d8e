"""A chat endpoint on this machine, whose model answers by rule."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def rule(messages, begun):
    """As `helpers.rollouts.RulePolicy`: CoT opens the next cabinet, a prompt action looks."""
    if "Copy this line" in messages[0]["content"]:
        return messages[0]["content"].partition(": ")[2][len(begun) :]
    if begun:
        return " look </action>"
    if messages[-1]["content"].endswith("action alone."):
        return "<action> look </action>"
    opened = sum("<action> open" in message["content"] for message in messages)
    return f"<think> i need a plate. </think><action> open cabinet {opened + 1} </action>"


class Endpoint(ThreadingHTTPServer):
    """Attributes say how it behaves, and what was asked.

    continues: "vllm" goes on with a response where fields ask for it, "plain" without fields, ""
      never: it begins a new one.
    faults: statuses to answer first, one a request.
    longest: the most characters of all messages.
    requests, keys: bodies and authorizations, in their order.
    most: the most requests that were open together.
    """

    daemon_threads = True

    def __init__(self, continues="vllm", faults=(), longest=10**9, answer=rule, key=""):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.continues, self.faults, self.longest = continues, list(faults), longest
        self.answer, self.key = answer, key
        self.requests, self.keys = [], []
        self.lock, self.open, self.most = threading.Lock(), 0, 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def reply(self, body):
        """(status, content) of one request."""
        messages = body["messages"]
        asks = body.get("continue_final_message", False)
        if asks and self.continues != "vllm":
            return 400, {"error": {"message": "continue_final_message: unknown field"}}
        if sum(len(message["content"]) for message in messages) > self.longest:
            return 400, {"error": {"message": "the maximum context length is exceeded"}}
        begun = messages[-1]["role"] == "assistant"
        if begun and (asks or self.continues == "plain"):
            text = self.answer(messages[:-1], messages[-1]["content"])
        else:
            text = self.answer([m for m in messages if m is not messages[-1] or not begun], "")
        message = {"role": "assistant", "content": text}
        return 200, {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8},
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        endpoint = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with endpoint.lock:
            endpoint.open += 1
            endpoint.most = max(endpoint.most, endpoint.open)
            endpoint.requests.append(body)
            endpoint.keys.append(self.headers["Authorization"])
            fault = endpoint.faults.pop(0) if endpoint.faults else 0
        if endpoint.key and self.headers["Authorization"] != f"Bearer {endpoint.key}":
            sent = self.headers["Authorization"].removeprefix("Bearer ")
            status, content = 401, {"error": {"message": f"Incorrect key provided: {sent}"}}
        elif fault:
            status, content = fault, {"error": {"message": f"fault {fault}"}}
        else:
            status, content = endpoint.reply(body)
        with endpoint.lock:
            endpoint.open -= 1
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if fault:
            self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@contextmanager
def serving(**how):
    """Serve an endpoint while the block runs."""
    endpoint = Endpoint(**how)
    thread = threading.Thread(target=endpoint.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.shutdown()
        thread.join()
        endpoint.server_close()
