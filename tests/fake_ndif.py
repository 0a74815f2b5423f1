"""A server that speaks NDIF's protocol over HTTP and runs requests on a tiny model in this process:
faults can be put in its way. A real one is in tests/ndif."""

from __future__ import annotations

import contextlib
import email
import io
import json
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
import zstandard
from nnsight import ndif
from nnsight.schema.request import RequestModel
from nnsight.tracing.tracer import _saves, dec, inc


class FakeNdif:
    """model: a TracedModel with weights. Set an attribute to bring about a fault.

    posts: statuses to answer POST /request with before it works, 0 to drop the connection after
    the job was taken; looks: the same of GET /response; frozen: seconds before each of these.
    error: what every job ends with. silent: jobs never end; dead: ids of those that do not. answer:
    what every job saved, instead of what it did. forget: results are gone. store: another address
    of the answers. garbled: answers that cannot be unpacked.
    """

    def __init__(self, model, repo_id):
        self.model, self.repo_id = model, repo_id
        self.posts, self.looks, self.error, self.silent, self.answer = [], [], None, False, None
        self.key, self.forget, self.store, self.garbled = None, False, None, False
        self.dead, self.frozen = set(), 0.0
        self.env = ndif.get_local_env()
        self.jobs, self.ran, self.bytes = {}, [], 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.host = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def status(self):
        about = {"repo_id": self.repo_id, "deployment_level": "HOT", "application_state": "RUNNING"}
        return {"deployments": {"one": about}}

    def submit(self, envelope, blob):
        job = uuid.uuid4().hex
        self.jobs[job] = (envelope, blob)
        return job

    def result(self, job):
        """Run a job as the server does, once; the bytes of what it saved."""
        envelope, blob = self.jobs[job]
        if self.answer is not None:
            saved = self.answer
        else:
            self.ran.append(job)
            objects = self.model.lm._remoteable_persistent_objects()
            tracer = RequestModel.deserialize(blob, objects, envelope["compress"])
            inc()
            try:
                tracer.execute(tracer.info.code)
                values = tracer.info.frame.f_locals.items()
                saved = {name: v for name, v in values if id(v) in _saves()}
            finally:
                dec()
        buffer = io.BytesIO()
        torch.save(saved, buffer)
        data = buffer.getvalue()
        self.bytes += len(data)
        return zstandard.compress(data) if envelope["compress"] else data

    def _handler(self):
        fake, lock, kept = self, threading.Lock(), {}

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                """Nothing on the console."""

            def reply(self, data, status=200):
                body = data if isinstance(data, bytes) else json.dumps(data).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def refused(self):
                if fake.key is None or self.headers.get("ndif-api-key") == fake.key:
                    return False
                self.reply({"detail": "Invalid API key"}, 401)
                return True

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.refused():
                    return
                status = fake.posts.pop(0) if fake.posts else 200
                if status >= 400:
                    self.reply({"detail": "not now"}, status)
                    return
                head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
                parts = email.message_from_bytes(head + body).get_payload()
                data, blob = (part.get_payload(decode=True) for part in parts)
                job = fake.submit(json.loads(data), blob)
                if status == 0:
                    self.close_connection = True
                    return
                self.reply({"id": job, "status": "RECEIVED"})

            def do_GET(self):
                _, what, *rest = self.path.split("/")
                if what == "status":
                    self.reply(fake.status())
                elif what == "env":
                    self.reply(fake.env)
                elif what == "response" and not self.refused():
                    self.look(rest[0])
                elif what == "result":
                    with lock:
                        if rest[0] not in kept:
                            kept[rest[0]] = fake.result(rest[0])
                    self.reply(b"garbled" if fake.garbled else kept[rest[0]])

            def look(self, job):
                time.sleep(fake.frozen)
                status = fake.looks.pop(0) if fake.looks else 200
                if status != 200:
                    self.reply({"detail": "not now"}, status)
                elif job not in fake.jobs or fake.forget:
                    self.reply({"detail": "no such job"}, 404)
                elif fake.silent or job in fake.dead:
                    self.reply({"id": job, "status": "RUNNING"})
                elif fake.error:
                    self.reply({"id": job, "status": "ERROR", "description": fake.error})
                else:
                    url = f"{fake.store or fake.host}/result/{job}"
                    self.reply({"id": job, "status": "COMPLETED", "data": url})

        return Handler


@contextlib.contextmanager
def methods_kept(*modules):
    """In one process with its server, a client's classes come back from it with methods that are
    copies, blind to what tests patch: the own ones again after."""
    classes = [c for module in modules for c in vars(module).values() if isinstance(c, type)]
    own = [(c, name, f) for c in classes for name, f in vars(c).items() if callable(f)]
    yield
    for c, name, f in own:
        if c.__module__.startswith("refusal_nn") and vars(c).get(name) is not f:
            setattr(c, name, f)
