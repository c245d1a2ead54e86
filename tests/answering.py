"""A server that answers every request by a function of the request, so that several of them answer alike."""

import hashlib
import json
import math
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.fakes import WORDS


class AnsweringServer(ThreadingHTTPServer):
    """Plays vLLM at a port of its own. It can be killed, with its open connections, and started again."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, model_folder, port=0, **answers):
        super().__init__(("127.0.0.1", port), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.card = {"id": "tiny", "root": str(model_folder), "max_model_len": 4096}
        self.version = "0.32.0"
        self.exact = True  # whether it gives the probabilities of chosen tokens
        self.shift = 0.0  # added to every log-probability, as another model would give others
        self.slow = 0.0  # seconds before each answer
        self.kill_after = math.inf  # answers; then it dies in the middle of the next
        self.bodies = []  # of requests
        self.__dict__.update(answers)
        self.connections = set()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def kill(self):
        """End at once: open connections break off, new ones are refused."""
        self.shutdown()
        self.server_close()
        for connection in tuple(self.connections):
            connection.close_now()

    @property
    def n_texts(self):
        return sum("logprobs" not in body and len(body["prompt"]) > 1 for body in self.bodies)

    def answer(self, body):
        """(status, answer) to a completion: words, or log-probabilities."""
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        usage = {"prompt_tokens": sum(map(len, prompts)), "completion_tokens": len(prompts)}
        if "prompt_logprobs" in body or (not self.exact and "logprob_token_ids" in body):
            return 400, {"error": {"message": "not offered"}}
        choices = []
        for index, prompt in enumerate(prompts):
            choice = {"index": index, "text": self.text(prompt, body), "finish_reason": "stop"}
            if "logprobs" in body:
                ids = body.get("logprob_token_ids", range(body["logprobs"]))
                entry = {f"token_id:{i}": self.logprob(prompt, i) for i in ids}
                choice["logprobs"] = {"top_logprobs": [entry]}
            choices.append(choice)
        return 200, {"choices": choices, "usage": usage}

    def text(self, prompt, body):
        return " ".join(random.Random(repr((prompt, body.get("seed")))).choices(WORDS, k=3))

    def logprob(self, prompt, token_id):
        digest = hashlib.blake2b(repr((prompt, token_id)).encode(), digest_size=4).digest()
        return -2.0 - int.from_bytes(digest, "big") / 2**31 + self.shift


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.server.connections.add(self)

    def finish(self):
        self.server.connections.discard(self)
        super().finish()

    def close_now(self):
        self.close_connection = True
        self.connection.close()

    def do_GET(self):
        pages = {"/v1/models": {"data": [self.server.card]}, "/version": {"version": self.server.version}}
        self.send_json(*((200, pages[self.path]) if self.path in pages else (404, {})))

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.bodies.append(body)
        time.sleep(server.slow)
        if len(server.bodies) > server.kill_after:
            server.kill_after = math.inf
            threading.Thread(target=server.kill, daemon=True).start()
            time.sleep(0.2)
            self.close_connection = True
            return
        self.send_json(*server.answer(body))

    def send_json(self, status, answer):
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass
