"""A node that runs for a measurement (`cairn demo` on sparse files), and the load generator on it.

Part of `restart`, `longrun` and `cold`, which run on loopback, on ports that the kernel chooses; `bench` and
`check` ask it for the kind of processor.
"""
import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.request

HERE = os.path.dirname(os.path.realpath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
LOADER = os.path.join(ROOT, "target", "perf", "release", "nfsload")
CAIRN = os.path.join(ROOT, "target", "release", "cairn")
# Seconds between two looks at the memory of a node.
WATCH_S = 2


def processor():
    """The kind of processor that this is."""
    with open("/proc/cpuinfo") as f:
        names = (line.split(":")[1].strip() for line in f if line.startswith("model name"))
        return next(names, "unknown")


class Node:
    """A `cairn demo` that runs, from its start on."""
    running = []

    def __init__(self, directory, *options, cairn=CAIRN):
        """Waits until it is ready; `options` are those of `cairn demo`."""
        begin = time.monotonic()
        log = directory + ".log"
        self.child = subprocess.Popen(
            [cairn, "demo", "--dir", directory, "--nfs-port", "0", "--rest-port", "0", *options],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=open(log, "ab"))
        self.peak, self.ended = 0, threading.Event()
        Node.running.append(self)
        for line in self.child.stdout:
            if line.startswith(b"READY "):
                self.at = json.loads(line[6:])
                break
        else:
            with open(log, errors="replace") as f:
                raise SystemExit("the node ended before it was ready: " + f.read()[-600:])
        self.seconds = time.monotonic() - begin
        # Of CPU until it was ready.
        self.cpu = self.cpu_seconds()
        threading.Thread(target=self.watch, daemon=True).start()

    def cpu_seconds(self):
        with open("/proc/%d/stat" % self.child.pid) as f:
            times = f.read().rpartition(") ")[2].split()
        return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mib(self):
        """Resident memory in MiB."""
        with open("/proc/%d/status" % self.child.pid) as f:
            for line in f:
                if line.startswith("VmRSS"):
                    return int(line.split()[1]) >> 10
        return 0

    def watch(self):
        while not self.ended.wait(WATCH_S):
            try:
                self.peak = max(self.peak, self.rss_mib())
            except OSError:
                return

    def rest(self, path, method="GET", body=None):
        with open(self.at["token_file"]) as f:
            head = {"Authorization": "Bearer " + f.read().strip()}
        data = None if body is None else json.dumps(body).encode()
        if data:
            head["Content-Type"] = "application/json"
        place = self.at["rest"].removeprefix("http://")
        request = urllib.request.Request("http://%s%s" % (place, path), headers=head, data=data,
                                         method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.read().decode()

    def counters(self):
        """Sums of the counters by name."""
        out = {}
        for line in self.rest("/metrics").splitlines():
            found = re.match(r"cairn_(\w+)(?:\{.*\})? (\d+)$", line)
            if found:
                out[found.group(1)] = out.get(found.group(1), 0) + int(found.group(2))
        return out

    def point(self):
        """A consistency point, waited for."""
        before = self.counters()["cp_total"]
        self.rest("/api/v1/aggregates/consistency-point", "POST")
        end = time.monotonic() + 120
        while self.counters()["cp_total"] == before:
            if time.monotonic() > end:
                raise SystemExit("no consistency point came")
            time.sleep(0.05)

    def load(self, *arguments):
        """The generator's command line for this node."""
        target = "name=n,port=%d,export=%s,pid=%d" % (self.at["nfs_port"], self.at["export"],
                                                      self.child.pid)
        return [LOADER, "--target", target, "--reps", "1", *arguments]

    def loaded(self, *arguments):
        """Runs the generator; yields its lines as they come. Whoever has enough stops it."""
        child = subprocess.Popen(self.load(*arguments), stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, text=True)
        try:
            for line in child.stdout:
                yield json.loads(line)
            if child.wait() != 0:
                raise SystemExit("the generator failed")
        finally:
            child.kill()
            child.wait()

    def end(self, sig=signal.SIGKILL):
        """SIGKILL is a crash, SIGTERM a clean stop. Waits; does nothing the second time."""
        self.ended.set()
        if self in Node.running:
            Node.running.remove(self)
            self.child.send_signal(sig)
            self.child.wait()

    @classmethod
    def end_all(cls):
        for node in list(cls.running):
            node.end()
