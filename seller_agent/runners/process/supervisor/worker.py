"""The worker of the supervisor: one thread that starts runs, answers requests, and enforces deadline, lease and output limit.

It speaks newline-delimited JSON; exits are pushed to every client. It knows nothing of the agent, and outlives it. Standard library only,
copied to other machines.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import selectors
import signal
import socket
import time
from collections.abc import Callable

from seller_agent.runners.process.supervisor import proc
from seller_agent.runners.process.supervisor.client import Client
from seller_agent.runners.process.supervisor.run import Message, Refused, Run, complain, read_record, spawn
from seller_agent.runners.process.supervisor.use import measure

PROTOCOL = 1
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\Z")
TICK_S = 1.0
SLICE_S = 0.002
UNREAD_MAX_BYTES = 16 << 20
SWEEP_MAX_S = 10.0
LISTED_FOR_S = 0.2
"""A list of all processes serves the questions about many runs that come together."""


class Supervisor:
    """The worker: one thread, one selector."""

    def __init__(self, root: str, idle_s: float) -> None:
        self.root = root
        self.idle_s = idle_s
        self.keeper = os.getppid()
        self.boot_id = proc.boot_id()
        self.runs: dict[str, Run] = {}
        self.guarded: dict[int, Run] = {}
        """By pid: every run whose own process has not been reaped."""
        self.ending: dict[str, Run] = {}
        """Runs whose own process is gone while something that it left behind may not be."""
        self.strays: dict[int, tuple[str | None, frozenset[str]]] = {}
        """Inherited processes: the run that each belongs to, or the runs that were there when it was first seen."""
        self.clients: dict[int, Client] = {}
        self.selector = selectors.DefaultSelector()
        self.wake_at = 0.0
        self.idle_since = time.monotonic()
        self.child_ended = True
        self.leaving = False
        self.oom_kills = proc.oom_kills()
        self.listed: list[proc.Process] = []
        self.listed_at = -LISTED_FOR_S

    # Serving.

    def serve(self, listener: socket.socket, ready: Callable[[], None]) -> None:
        """Answer and guard until there is neither run nor client for `idle_s`."""
        self.recover()
        alarm, alarmed = socket.socketpair()
        for end in (alarm, alarmed, listener):
            end.setblocking(False)
        signal.set_wakeup_fd(alarmed.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self.leave)
        self.selector.register(alarm, selectors.EVENT_READ, lambda _: self.note_signal(alarm))
        self.selector.register(listener, selectors.EVENT_READ, lambda _: self.accept(listener))
        ready()
        while not self.is_done():
            for key, events in self.selector.select(max(0.0, self.wake_at - time.monotonic())):
                key.data(events)
            if self.child_ended:
                self.child_ended = False
                self.reap()
            if time.monotonic() >= self.wake_at:
                self.tick()
            for client in list(self.clients.values()):
                if client.outgoing:
                    self.flush(client)

    def is_done(self) -> bool:
        if self.guarded or self.ending:
            self.idle_since = time.monotonic()
            return False
        if self.leaving or os.getppid() != self.keeper:
            return True  # nobody would end our runs should we die: a fresh pair serves better
        return not self.clients and time.monotonic() >= self.idle_since + self.idle_s

    def leave(self, *_: object) -> None:
        self.leaving = True
        self.wake_at = 0.0

    def note_signal(self, alarm: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            alarm.recv(4096)
        self.child_ended = True

    def accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        client = self.clients[connection.fileno()] = Client(connection)
        client.say({"hello": PROTOCOL, "pid": os.getpid()})
        self.selector.register(connection, selectors.EVENT_READ, lambda events: self.talk(client, events))

    def talk(self, client: Client, events: int) -> None:
        if events & selectors.EVENT_READ:
            lines = client.hear()
            if lines is None:
                return self.drop(client)
            said_at = time.monotonic()
            for line in lines:
                client.say(self.answer(line))
                if time.monotonic() > said_at + SLICE_S and client.connection.fileno() in self.clients:
                    self.flush(client)  # of many starts at once the first does not wait for the last
                    said_at = time.monotonic()

    def flush(self, client: Client) -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                client.outgoing = client.outgoing[client.connection.send(client.outgoing) :]
            except (BrokenPipeError, ConnectionResetError):
                return self.drop(client)
        if len(client.outgoing) > UNREAD_MAX_BYTES:
            return self.drop(client)
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.outgoing else 0)
        key = self.selector.get_key(client.connection)
        if key.events != wanted:
            self.selector.modify(client.connection, wanted, key.data)

    def drop(self, client: Client) -> None:
        self.selector.unregister(client.connection)
        del self.clients[client.connection.fileno()]
        client.connection.close()
        self.idle_since = time.monotonic()
        self.wake_at = 0.0

    # Requests.

    def answer(self, line: bytes) -> Message:
        number = None
        try:
            asked: Message = json.loads(line)
            number = asked["id"]
            act = {
                "start": self.start,
                "list": self.report_all,
                "status": self.status,
                "renew": self.renew,
                "extend": self.extend,
                "use": self.use,
                "stop": self.stop,
                "remove": self.remove,
            }
            return {"id": number, **act[asked["do"]](asked)}
        except Refused as refused:
            return {"id": number, "refused": refused.reason, "message": str(refused)}
        except (KeyError, TypeError, ValueError, AttributeError) as failure:
            return {"id": number, "refused": "container_error", "message": f"the supervisor does not understand: {failure!r}"}

    def start(self, asked: Message) -> Message:
        name = asked["name"]
        known = self.runs.get(name)
        if known is not None:
            return {"run": known.status()}
        if not NAME.match(name):
            raise Refused("container_error", f"not a name for a run: {name!a}")
        if self.leaving:
            raise Refused("runtime_restarted", "the supervisor of processes was told to end")
        run = Run(name, os.path.join(self.root, name))
        run.set_limits(asked)
        if run.due() <= time.monotonic():
            raise Refused("lease_expired", "the lease is too short to start under")
        self.launch(run, asked)
        return {"run": run.status()}

    def launch(self, run: Run, asked: Message) -> None:
        environment = {**asked["env"], proc.MARK: run.folder}
        started_unix_ms = time.time_ns() // 1_000_000
        try:
            run.pid = spawn(run.folder, asked["argv"], environment)
        except Refused as refused:
            self.runs[run.name] = run
            run.say_to_stderr(str(refused))
            run.note(state="exited", ran_ms=0, exit_code=refused.exit_code, error=refused.reason, detail=str(refused))
            return
        self.runs[run.name] = self.guarded[run.pid] = run
        self.wake_at = min(self.wake_at, run.due(), time.monotonic() + TICK_S)
        if asked.get("memory_bytes"):
            with contextlib.suppress(OSError, ValueError):  # we may only lower a limit, and a program may have become another user's
                resource.prlimit(run.pid, resource.RLIMIT_AS, (asked["memory_bytes"],) * 2)
        born = proc.process(run.pid)
        assert born is not None, "a child that nobody reaped has an entry in /proc"
        run.record["started_unix_ms"] = started_unix_ms
        run.write({**run.record, "boot_id": self.boot_id, "pid": run.pid, "start_ticks": born.start_ticks})

    def report_all(self, _: Message) -> Message:
        return {"runs": [run.status() for run in self.runs.values()]}

    def status(self, asked: Message) -> Message:
        run = self.runs.get(asked["name"])
        return {"run": run.status() if run is not None else None}

    def renew(self, asked: Message) -> Message:
        for name, until_boot_ms in asked["leases"].items():
            run = self.runs.get(name)
            if run is not None:
                run.lease_until_boot_ms = int(until_boot_ms)
                self.wake_at = min(self.wake_at, run.due())
        return {}

    def extend(self, asked: Message) -> Message:
        run = self.runs.get(asked["name"])
        if run is not None:
            run.deadline = run.begun + asked["timeout_s"]
            self.wake_at = min(self.wake_at, run.due())
        return {}

    def use(self, asked: Message) -> Message:
        run = self.runs.get(asked["name"])
        if run is None or run.pid not in self.guarded:
            return {}
        if time.monotonic() > self.listed_at + LISTED_FOR_S:
            self.listed, self.listed_at = proc.processes(), time.monotonic()
        return {"use": measure(run, proc.with_descendants(self.roots(run, self.listed), self.listed))}

    def stop(self, asked: Message) -> Message:
        run = self.runs.get(asked["name"])
        if run is not None and not run.main_gone and not run.exited:
            self.end(run, asked["reason"], float(asked["grace_s"]))
        return {}

    def remove(self, asked: Message) -> Message:
        run = self.runs.get(asked["name"])
        if run is None:
            return {}
        if not run.exited:
            raise Refused("container_error", "the run has not exited: stop it and wait first")
        del self.runs[run.name]
        with contextlib.suppress(OSError):
            os.unlink(f"{run.folder}/run.jsonl")
        return {}

    # Guarding.

    def tick(self) -> None:
        """Everything that time brings about."""
        now = time.monotonic()
        self.wake_at = now + (TICK_S if self.guarded or self.ending else self.idle_s)
        self.oom_kills = proc.oom_kills()
        for run in list(self.guarded.values()):
            self.check(run, now)
            self.wake_at = min(self.wake_at, max(run.due(), now + 0.02))
        self.settle()

    def check(self, run: Run, now: float) -> None:
        if self.leaving:
            self.end(run, "asked", run.grace_s)
        if now >= run.deadline:
            self.end(run, "deadline", run.grace_s)
        if now >= run.lease_end() - run.lease_grace_s():
            self.end(run, "lease", max(0.0, run.lease_end() - now))
        if run.trim_output():
            self.end(run, "output", run.grace_s)
        if run.kill_at is not None and now >= run.kill_at:
            self.signal_tree(run, signal.SIGKILL)
            run.killed = True
            run.kill_at = now + TICK_S

    def end(self, run: Run, reason: str, grace_s: float) -> None:
        """TERM now unless that was done, KILL after `grace_s` or earlier if that was promised; the first reason stays."""
        if run.killed:
            return
        kill_at = time.monotonic() + grace_s
        if run.kill_at is None:
            run.note(stop_reason=reason)
            run.kill_at = kill_at
            if grace_s > 0:
                self.signal_tree(run, signal.SIGTERM)
        run.kill_at = min(run.kill_at, kill_at)
        self.wake_at = min(self.wake_at, run.kill_at)

    def signal_tree(self, run: Run, number: int) -> None:
        """To the run's process, its descendants, its session, and what these left behind."""
        everything = proc.processes()
        for pid in proc.with_descendants(self.roots(run, everything), everything):
            proc.send_signal(pid, number)

    def roots(self, run: Run, everything: list[proc.Process]) -> list[int]:
        left = [one.pid for one in everything if one.session == run.pid or (one.pid in self.strays and self.strays[one.pid][0] == run.name)]
        return [run.pid, *left]

    def reap(self) -> None:
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if ended is None:
                break
            run = self.guarded.pop(ended.si_pid, None)
            if run is not None:
                proc.kill_group(run.pid)  # before the pid is free for others
            _, code, spent = os.wait4(ended.si_pid, 0)
            owner = self.runs.get(self.strays.pop(ended.si_pid, (None, frozenset()))[0] or "") or run
            if owner is not None:
                owner.reaped_cpu_ms += int((spent.ru_utime + spent.ru_stime) * 1000)
            if run is not None:
                self.note_end(run, os.waitstatus_to_exitcode(code))
        self.settle()

    def note_end(self, run: Run, code: int) -> None:
        run.main_gone = True
        run.record["ran_ms"] = run.ran_ms()
        run.record["exit_code"] = code if code >= 0 else 128 - code
        if code < 0:
            run.record["signal"] = -code
        if code == -signal.SIGKILL and run.kill_at is None and proc.oom_kills() > self.oom_kills:
            run.record["out_of_memory"] = True
        self.ending[run.name] = run

    def settle(self) -> None:
        """Kill what ended runs left behind; a run of which nothing is left has exited."""
        busy: set[str] = set()
        for pid in proc.children():
            if pid in self.guarded:
                continue
            if pid not in self.strays:
                self.strays[pid] = self.trace(pid)
            owner, suspects = self.strays[pid]
            if any(run.name in suspects or run.name == owner for run in self.guarded.values()):
                continue
            busy |= {owner} if owner is not None else set(self.ending)
            found = proc.process(pid)
            if found is not None and found.ppid == os.getpid():
                proc.kill_group(found.group)
                proc.send_signal(pid, signal.SIGKILL)
        for run in [run for run in self.ending.values() if run.name not in busy]:
            self.finish(run)

    def trace(self, pid: int) -> tuple[str | None, frozenset[str]]:
        """The run that an inherited process belongs to; when it hid that, all that it may belong to: it ends with the last of these."""
        found = proc.process(pid)
        for run in (*self.guarded.values(), *self.ending.values()):
            if found is not None and found.session == run.pid:
                return run.name, frozenset()
        owner = proc.run_by_mark(pid, self.root) or proc.run_by_place(pid, self.root)
        if owner is not None and owner in self.runs:
            return owner, frozenset()
        return None, frozenset(run.name for run in self.guarded.values())

    def finish(self, run: Run) -> None:
        del self.ending[run.name]
        run.drop_secrets()
        if run.trim_output():
            run.record.setdefault("stop_reason", "output")
        if self.leaving:
            run.record.setdefault("error", "runtime_restarted")
        run.record["state"] = "exited"
        run.write(run.record)
        for client in self.clients.values():
            client.say({"exit": run.record})
        self.idle_since = time.monotonic()
        self.wake_at = min(self.wake_at, self.idle_since + self.idle_s)

    def recover(self) -> None:
        """Take over from an earlier supervisor: learn its runs, and end what it left running."""
        for entry in os.scandir(self.root):
            run = read_record(entry.path) if NAME.match(entry.name) else None
            if run is not None:
                self.runs[run.name] = run
        lost = [run for run in self.runs.values() if not run.exited]
        sessions = {run.record["pid"]: run.record["start_ticks"] for run in lost if run.record.get("boot_id") == self.boot_id}
        immortal = proc.end_leftovers(self.root, sessions, SWEEP_MAX_S)
        if immortal:
            complain(f"the kernel does not end processes {sorted(immortal)}")
        for run in lost:
            run.drop_secrets()
            rebooted = run.record.get("boot_id", self.boot_id) != self.boot_id
            run.note(
                state="exited",
                error="host_restarted" if rebooted else "runtime_restarted",
                detail="the machine was restarted" if rebooted else "the guard of the run was killed, and the run with it",
            )
