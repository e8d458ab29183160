"""Sessions on the node of `node_env`: a small server in the place of Jupyter, which is reached through its socket."""

from __future__ import annotations

import os
from pathlib import Path

from integration.node_env import NodeWorld

from events import ids
from events.files import get_files
from events.jobs import JobSubmitted, SessionCloseRequested
from events.values import BlobRef, JobKind, Program, Requirements

SERVER = """
import http.server, os, signal, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        knows = os.environ["JUPYTER_TOKEN"] in self.headers.get("Authorization", "")
        allowed = knows or self.path == os.environ["BAZAAR_SESSION_PATH"] + "api"
        self.send_response(200 if allowed else 403)
        self.end_headers()
        kernels = self.path.partition("?")[0].endswith("/api/kernels")
        self.wfile.write(open("kernels.json", "rb").read() if kernels else b"{}")
    def log_message(self, *words):
        pass
class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
def leave(*_):
    open("last.txt", "w").write("saved at the end")
    os._exit(0)
signal.signal(signal.SIGTERM, leave)
os.makedirs("__pycache__", exist_ok=True); open("__pycache__/x.pyc", "w").write("made again")
open("first.txt", "w").write("begun"); open(os.environ["BAZAAR_OUT"] + "/model.bin", "w").write("weights")
print("listening", flush=True)
with Server(os.environ["BAZAAR_SESSION_SOCKET"], Handler) as server:
    server.serve_forever()
"""


async def open_session(nodes: NodeWorld, *argv: str, kind: JobKind = JobKind.NOTEBOOK, gpus: int = 1, **changes: object) -> str:
    """A notebook of the buyer, or another session."""
    needs = Requirements(num_gpus=gpus, allow_simulated=True, sessions=True)
    program = Program(argv=argv or ("python3", "-c", SERVER), inputs=changes.pop("inputs", None))  # type: ignore[arg-type]
    usual = {"job_id": ids.job_id(os.urandom(12)), "kind": kind, "name": "notebook", "retries": 0, "timeout_s": 60}
    job = JobSubmitted(**(usual | {"requirements": needs, "program": program} | changes))  # type: ignore[arg-type]
    outcome = await nodes.buyer.submit(job, 10.0)
    assert outcome.reason is None, outcome
    return job.job_id


async def fetched(nodes: NodeWorld, job_id: str, folder: Path) -> dict[str, str]:
    """What a job has left, as its buyer gets it: each file's content by its path."""
    run = nodes.job(job_id).run
    assert run is not None and isinstance(run.results, BlobRef)
    entries = await get_files(nodes.buyer.ask_files, run.results, folder, job_id=job_id, limit_bytes=10**6)
    return {entry.path: (folder / entry.path).read_text() for entry in entries}


async def close(nodes: NodeWorld, job_id: str) -> None:
    outcome = await nodes.buyer.submit(SessionCloseRequested(job_id=job_id), 5.0)
    assert outcome.reason is None, outcome
