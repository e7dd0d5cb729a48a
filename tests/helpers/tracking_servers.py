"""Servers of trackers that answer what clients ask at the start of a run, and then go away."""

import contextlib
import http.server
import json
import threading

RUN = {"info": {"run_id": "abc", "experiment_id": "1"}, "data": {}}
_PROJECT = {"id": "1", "name": "steph_jax", "entity": {"id": "2", "name": "us"}}
_BUCKET = {"id": "abc", "name": "abc", "displayName": "abc", "config": "{}", "project": _PROJECT}
#: What a request asks for, by a word in its path or its text -> the answer.
MLFLOW = {
    "experiments/get-by-name": {"experiment": {"experiment_id": "1", "name": "sim_a/steph"}},
    "runs/create": {"run": RUN},
}
WANDB = {
    "RunResumeStatus": {"data": {"model": _PROJECT | {"bucket": None}}},
    "UpsertBucket": {"data": {"upsertBucket": {"bucket": _BUCKET, "inserted": True}}},
}


@contextlib.contextmanager
def serving(answers):
    """The address of a server on this machine, and a function that ends it.

    Args:
        answers: word of a request -> JSON; {} for others.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            size = int(self.headers.get("Content-Length") or 0)
            request = self.path + self.rfile.read(size).decode(errors="replace")
            answer = next((a for word, a in answers.items() if word in request), {"data": {}})
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST

        def log_message(self, *parts):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()

    def end():
        server.shutdown()
        thread.join()
        server.server_close()

    try:
        yield f"http://127.0.0.1:{server.server_port}", end
    finally:
        end()
