#!/usr/bin/env python3
"""Faults: what the server must survive, with a witness that remembers what was acknowledged.

    faults.py kills      kill -9 under load, again and again; all that was acknowledged is there
    faults.py disks      two disks taken out under load, rebuilt, two more; disk files cut and gone
    faults.py rot        flipped bits and lost writes below live files: right data or an error
    faults.py refusals   foreign, cut, doubled and missing disks, full hosts, bad requests

Each runs `cairn demo` on loopback with ports that the kernel chooses.
"""
import argparse
import hashlib
import json
import os
import queue
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

BLOCK = 4096
START_SECONDS = 60


class Failed(Exception):
    """A claim does not hold."""


def claim(holds, what):
    if not holds:
        raise Failed(what)


def say(text):
    print("[%7.2f] %s" % (time.monotonic() - BEGAN, text), flush=True)


BEGAN = time.monotonic()
# Everything started here; nothing of it outlives the test.
STARTED = []


class Demo:
    """A demo in a directory, started and stopped at will."""

    def __init__(self, options, name="demo", disks=8, disk_size="256MiB", extra=()):
        self.cairn = options.cairn
        self.dir = os.path.join(options.work, name)
        self.log = os.path.join(options.work, name + ".log")
        self.shape = ["--disks", str(disks), "--disk-size", disk_size, *extra]
        self.process = self.ready = None

    def argv(self, *more):
        return [self.cairn, "demo", "--dir", self.dir, "--nfs-port", "0", "--rest-port", "0",
                *self.shape, *more]

    def spawn(self):
        self.process = subprocess.Popen(self.argv(), stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=open(self.log, "ab"),
                                        text=True)
        STARTED.append(self.process)

    def start(self):
        self.spawn()
        lines = queue.Queue()
        out = self.process.stdout

        def pump():
            for line in out:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=pump, daemon=True).start()
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                line = lines.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                raise Failed("the demo is not ready after %d s" % START_SECONDS) from None
            if line is None:
                raise Failed("the demo ended at its start with %s: %s"
                             % (self.process.wait(), tail(self.log)))
            if line.startswith("READY "):
                self.ready = json.loads(line[6:])
                return self

    def target(self):
        port = self.ready["nfs_port"]
        return "127.0.0.1:%d:%d:%s" % (port, port, self.ready["export"])

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        claim(code == 0, "SIGTERM ended the demo with %d: %s" % (code, tail(self.log)))

    def alive(self):
        return self.process.poll() is None

    def run(self, *arguments, timeout=120):
        return subprocess.run([self.cairn, "--dir", self.dir, *arguments], text=True,
                              capture_output=True, timeout=timeout, stdin=subprocess.DEVNULL)

    def cli(self, *arguments, timeout=120):
        """The answer of a command, as JSON."""
        done = self.run("--json", *arguments, timeout=timeout)
        claim(done.returncode == 0, "cairn %s: %s" % (" ".join(arguments), done.stderr.strip()))
        return json.loads(done.stdout) if done.stdout.strip() else None

    def disks(self):
        answer = self.cli("disk", "list")
        return answer if isinstance(answer, list) else answer["disks"]

    def groups(self):
        answer = self.cli("aggregate", "show")
        return (answer if isinstance(answer, dict) else answer[0])["groups"]

    def until_whole(self, seconds=120):
        """Waits until every group is normal."""
        end = time.monotonic() + seconds
        while True:
            states = [group["state"] for group in self.groups()]
            if all(state == "normal" for state in states):
                return
            claim(time.monotonic() < end, "groups are %s after %d s" % (states, seconds))
            time.sleep(0.1)

    def scrub(self):
        self.run("scrub", "start", timeout=300)
        end = time.monotonic() + 300
        while True:
            status = self.cli("scrub", "status")
            if status["finished"] and not status["running"]:
                return status
            claim(time.monotonic() < end, "the scrub does not end: %s" % status)
            time.sleep(0.1)


def tail(path):
    with open(path, errors="replace") as f:
        return "".join(f.readlines()[-15:]).strip()


class Witness:
    """The witness program."""

    def __init__(self, options, workers=4):
        self.process = subprocess.Popen(
            [options.witness, "serve", "--workers", str(workers), "--seed", str(options.seed)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        STARTED.append(self.process)

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        claim(answer != "", "the witness is gone")
        return answer

    def do(self, command):
        answer = self.ask(command)
        claim(not answer.startswith(("LOST", "error")), "%s: %s" % (command, answer))
        return answer

    def load(self, demo, seconds):
        """Load for a while, against a server that must not break."""
        self.do("target " + demo.target())
        self.do("start")
        time.sleep(seconds)
        answer = self.do("stop")
        claim("broken=0" in answer, "the server broke connections: " + answer)
        return answer

    def verify(self, demo):
        self.do("target " + demo.target())
        return self.do("verify")

    def close(self):
        self.process.stdin.write("quit\n")
        self.process.stdin.close()
        self.process.wait(timeout=10)


def kills(options):
    """kill -9 under load: every acknowledged stable operation is there after each."""
    rng = random.Random(options.seed)
    demo, witness = Demo(options), Witness(options)
    end = time.monotonic() + options.seconds if options.seconds else None
    rounds, answer = 0, ""
    while rounds < options.rounds or (end and time.monotonic() < end):
        if rng.random() < 0.15:
            # Killed while it starts: replay is interrupted and begins again.
            demo.spawn()
            time.sleep(rng.uniform(0.01, 0.3))
            demo.kill()
        demo.start()
        if rounds > 0:
            answer = witness.verify(demo)
        witness.do("target " + demo.target())
        witness.do("start")
        checkpoint = None
        wait = rng.uniform(0.03, 0.5)
        if rng.random() < 0.6:
            # A consistency point is under way at the kill.
            time.sleep(wait)
            checkpoint = subprocess.Popen(
                [demo.cairn, "--dir", demo.dir, "aggregate", "cp"], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait = rng.uniform(0.0, 0.12)
        time.sleep(wait)
        claim(demo.alive(), "the server ended by itself: " + tail(demo.log))
        demo.kill()
        work = witness.do("stop")
        if checkpoint:
            checkpoint.wait()
        rounds += 1
        if rounds % 10 == 0:
            say("%d kills; %s; %s" % (rounds, work, answer))
    demo.start()
    say(witness.verify(demo))
    status = demo.scrub()
    claim(status["damaged"] == 0 and status["parity_mismatches"] == 0, "scrub: %s" % status)
    demo.stop()
    witness.close()


def in_use(demo):
    """Disks that hold data or parity."""
    return [d for d in demo.disks() if "data" in d["role"] or "parity" in d["role"]]


def fail(demo, disk):
    done = demo.run("disk", "fail", disk["disk"], "--no-wait")
    claim(done.returncode == 0, "disk fail: " + done.stderr.strip())


def add_disks(demo, count):
    """New files of the same size, attached as spares."""
    size = max(os.path.getsize(path) for path in disk_files(demo))
    paths = []
    for at in range(count):
        path = os.path.join(os.path.dirname(demo.dir), "added-%d-%d.img" % (time.time_ns(), at))
        with open(path, "wb") as f:
            f.truncate(size)
        paths.append(path)
    demo.cli("disk", "add", *paths)
    return paths


def disks(options):
    """Disks that go under load."""
    rng = random.Random(options.seed)
    demo, witness = Demo(options), Witness(options)
    demo.start()
    witness.load(demo, 1.5)

    def two_out(what):
        chosen = rng.sample(in_use(demo), 2)
        witness.do("target " + demo.target())
        witness.do("start")
        time.sleep(0.5)
        for disk in chosen:
            fail(demo, disk)
            time.sleep(0.3)
        time.sleep(1.0)
        answer = witness.do("stop")
        claim("broken=0" in answer, "connections broke: " + answer)
        say("%s: %s out under load (%s); %s" % (
            what, " and ".join(d["role"] for d in chosen), answer, witness.verify(demo)))

    two_out("first two")
    add_disks(demo, 1)
    witness.load(demo, 1.0)
    demo.until_whole()
    say("rebuilt; " + witness.verify(demo))
    demo.kill()
    demo.start()
    say("after a kill: " + witness.verify(demo))
    status = demo.scrub()
    claim(status["damaged"] == 0 and status["parity_mismatches"] == 0, "scrub: %s" % status)
    two_out("two more")
    demo.kill()
    demo.start()
    say("with two disks missing, after a kill: " + witness.verify(demo))
    witness.load(demo, 1.0)
    # Rebuilding is interrupted by a kill and goes on.
    add_disks(demo, 2)
    time.sleep(0.3)
    demo.kill()
    demo.start()
    say("killed while it rebuilds: " + witness.verify(demo))
    witness.load(demo, 1.0)
    demo.until_whole()
    say("rebuilt across a kill; " + witness.verify(demo))

    # Disk files vanish and are cut while the node is down.
    places = {d["location"] for d in in_use(demo)}
    names = sorted(p for p in places if os.path.dirname(p) == demo.dir)
    claim(len(names) >= 2, "too few disks of the demo's own are in use: %s" % sorted(places))
    gone, cut = rng.sample(names, 2)
    demo.kill()
    os.unlink(gone)
    with open(cut, "r+b") as f:
        f.truncate(os.path.getsize(cut) // 3)
    demo.start()
    say("one disk file gone, one cut: " + witness.verify(demo))
    witness.load(demo, 1.0)
    add_disks(demo, 2)
    demo.until_whole()
    demo.kill()
    demo.start()
    say("rebuilt; " + witness.verify(demo))
    status = demo.scrub()
    claim(status["damaged"] == 0 and status["parity_mismatches"] == 0, "scrub: %s" % status)
    demo.stop()
    witness.close()


def flip(path, dbn, rng):
    with open(path, "r+b") as f:
        at = dbn * BLOCK + rng.randrange(BLOCK)
        f.seek(at)
        old = f.read(1)[0]
        f.seek(at)
        f.write(bytes([old ^ 1 << rng.randrange(8)]))


def overwrite(path, dbn, data):
    with open(path, "r+b") as f:
        f.seek(dbn * BLOCK)
        f.write(data)


def block_of(path, dbn):
    with open(path, "rb") as f:
        f.seek(dbn * BLOCK)
        return f.read(BLOCK)


def places(demo, witness, rng, count):
    """Blocks of live files and where they lie, each in a stripe of its own."""
    files = witness.do("names").split()[1:]
    out, stripes = [], set()
    for _ in range(count * 4):
        if len(out) == count:
            break
        path, _, blocks = rng.choice(files).rpartition(":")
        if blocks == "0":
            continue
        offset = rng.randrange(int(blocks)) * BLOCK
        answer = demo.cli("explain", "/vol0/" + path, "--offset", str(offset))
        block = answer.get("block")
        if block and (block["group"], block["stripe"]) not in stripes:
            stripes.add((block["group"], block["stripe"]))
            out.append(block)
    claim(len(out) >= count // 2, "only %d blocks were found on disk" % len(out))
    return out


def rot(options):
    """Silent damage below live files."""
    rng = random.Random(options.seed)
    demo, witness = Demo(options), Witness(options)
    demo.start()
    witness.load(demo, 3)
    demo.cli("aggregate", "cp")
    found = places(demo, witness, rng, 60)
    say("%d blocks located" % len(found))
    originals = {}

    def note(place):
        key = (place["location"], place["dbn"])
        originals[key] = block_of(*key)
        return key

    # An old state of the disks, for writes that seem to have been lost.
    zeros = bytes(BLOCK)
    kinds = ["flip data", "lose data", "misdirected data", "flip row parity",
             "lose diagonal parity", "two columns"]
    for at, block in enumerate(found):
        kind = kinds[at % len(kinds)]
        data = note(block["data"])
        parity = [note(place) for place in block["parity"]]
        claim(len(parity) == 2, "a stripe has two parity blocks: %s" % block)
        if kind == "flip data":
            flip(*data, rng)
        elif kind == "lose data":
            overwrite(*data, zeros)
        elif kind == "misdirected data":
            other = found[(at + 1) % len(found)]["data"]
            overwrite(*data, block_of(other["location"], other["dbn"]))
        elif kind == "flip row parity":
            flip(*parity[0], rng)
        elif kind == "lose diagonal parity":
            overwrite(*parity[1], zeros)
        else:
            flip(*data, rng)
            overwrite(*parity[0], zeros)
    demo.kill()  # nothing of it is in a cache
    demo.start()
    say("damaged at rest: " + witness.verify(demo))
    # More of it while the node runs and holds nothing of these blocks in memory.
    demo.kill()
    demo.start()
    for block in found[::2]:
        flip(*note_key(block["data"]), rng)
    say("damaged while it runs: " + witness.verify(demo))
    witness.load(demo, 1)
    status = demo.scrub()
    say("scrub: %s" % status)
    claim(status["damaged"] > 0, "scrub found nothing of the damaged parity: %s" % status)
    claim(status["damaged"] == status["repaired"], "scrub left damage: %s" % status)
    again = demo.scrub()
    claim(again["damaged"] == 0 and again["parity_mismatches"] == 0, "second scrub: %s" % again)
    demo.kill()
    demo.start()
    say("mended: " + witness.verify(demo))

    # Beyond what parity covers: an honest error, never wrong bytes.
    demo.cli("aggregate", "cp")
    victim = places(demo, witness, rng, 2)[0]
    demo.kill()
    for place in [victim["data"], *victim["parity"]]:
        flip(place["location"], place["dbn"], rng)
    demo.start()
    answer = witness.ask("target " + demo.target()) and witness.ask("verify")
    claim(answer == "error status 5", "three blocks of a stripe damaged: " + answer)
    claim(demo.alive(), "the node ended: " + tail(demo.log))
    say("three damaged blocks of one stripe: an input/output error")
    demo.kill()
    witness.close()


def note_key(place):
    return place["location"], place["dbn"]


def digests(paths):
    return {path: hashlib.sha256(open(path, "rb").read()).hexdigest() for path in paths}


def refused(demo, what, words, untouched=()):
    """The demo refuses to start, says why, and touches nothing."""
    before = digests(untouched)
    try:
        done = subprocess.run(demo.argv(), text=True, capture_output=True, timeout=START_SECONDS,
                              stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise Failed(what + ": it started, or hangs") from None
    claim(done.returncode not in (0, 101) and done.returncode > 0,
          "%s: exit code %d: %s" % (what, done.returncode, done.stderr))
    claim("panicked" not in done.stderr, "%s: %s" % (what, done.stderr))
    lower = done.stderr.lower()
    claim(any(word in lower for word in words), "%s: the error does not say so: %s"
          % (what, done.stderr.strip()))
    claim(digests(untouched) == before, what + ": a disk was written")
    say("%s: %s" % (what, done.stderr.strip().splitlines()[0][:150]))


def disk_files(demo):
    return sorted(os.path.join(demo.dir, name) for name in os.listdir(demo.dir)
                  if name.endswith(".img"))


def refuse_disks(options):
    """Disks that are not what they should be."""
    def fresh(name):
        demo = Demo(options, name, disks=6, disk_size="64MiB")
        demo.start()
        demo.stop()
        return demo

    demo, other = fresh("mine"), fresh("other")
    mine = disk_files(demo)

    # Any order: the files change their names.
    aside = mine[0] + ".aside"
    os.rename(mine[0], aside)
    os.rename(mine[3], mine[0])
    os.rename(aside, mine[3])
    demo.start()
    demo.stop()
    say("disks in another order: taken")

    # Three disks of a group missing.
    for path in mine[:4]:
        os.rename(path, path + ".gone")
    rest = [path for path in mine if os.path.exists(path)]
    refused(demo, "too few disks", ["missing", "disks", "need"], rest)
    for path in mine[:4]:
        os.rename(path + ".gone", path)

    # A disk of another aggregate among them: refused or left alone, never written.
    foreign = disk_files(other)[0]
    kept = mine[1] + ".kept"
    os.rename(mine[1], kept)
    shutil.copy(foreign, mine[1])
    before = digests([mine[1]])
    try:
        demo.start()
        demo.stop()
        say("a foreign disk: the aggregate starts without it")
    except Failed as e:
        say("a foreign disk: refused: %s" % str(e)[-150:])
    claim(digests([mine[1]]) == before, "a foreign disk was written")
    os.unlink(mine[1])
    os.rename(kept, mine[1])

    # One disk twice.
    twin = os.path.join(demo.dir, "disk-99.img")
    shutil.copy(mine[2], twin)
    before = digests([twin, mine[2]])
    try:
        demo.start()
        demo.stop()
        after = digests([twin, mine[2]])
        claim(sum(before[p] != after[p] for p in before) <= 1, "both copies of a disk were written")
        say("a disk twice: one of them is left alone")
    except Failed as e:
        claim("both copies" not in str(e), str(e))
        claim(digests([twin, mine[2]]) == before, "a doubled disk was written")
        say("a disk twice: refused: %s" % str(e)[-150:])
    os.unlink(twin)

    # Labels overwritten on every disk.
    for path in mine:
        with open(path, "r+b") as f:
            f.write(os.urandom(1 << 20))
            f.seek(-(1 << 20), os.SEEK_END)
            f.write(os.urandom(1 << 20))
    refused(demo, "labels destroyed", ["label", "disk", "aggregate"], mine)


def refuse_places(options):
    """Places that are taken or full."""
    demo = Demo(options, "place", disks=6, disk_size="64MiB").start()
    refused(Demo(options, "place", disks=6, disk_size="64MiB"), "a directory in use",
            ["use", "lock", "running", "another"])
    taken = Demo(options, "port", disks=6, disk_size="64MiB")
    taken.argv = lambda *more: [taken.cairn, "demo", "--dir", taken.dir, "--rest-port", "0",
                                "--nfs-port", str(demo.ready["nfs_port"]), *taken.shape]
    refused(taken, "a port in use", ["in use", "port"])
    demo.stop()
    demo.shape = ["--disks", "9"]
    refused(demo, "another shape", ["--fresh", "holds"])

    full = os.path.join(options.work, "full")
    os.mkdir(full)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", full], check=False)
    claim(mounted.returncode == 0, "a small file system could not be mounted")
    try:
        small = Demo(options, "full/demo", disks=6, disk_size="64MiB")
        small.log = os.path.join(options.work, "full.log")
        refused(small, "a full host", ["full", "space", "room"])
    finally:
        subprocess.run(["umount", full], check=True)

    daemon = os.path.join(os.path.dirname(options.cairn), "cairnd")
    if os.path.exists(daemon):
        config = os.path.join(options.work, "bad.toml")
        with open(config, "w") as f:
            f.write("no_such_key = 1\n")
        done = subprocess.run([daemon, "--config", config], text=True, capture_output=True,
                              timeout=START_SECONDS)
        claim(done.returncode > 0 and "no_such_key" in done.stderr,
              "an unknown key: %d %s" % (done.returncode, done.stderr))
        say("an unknown key: %s" % done.stderr.strip().splitlines()[0][:150])


def resident(pid):
    with open("/proc/%d/status" % pid) as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS")) * 1024


def record(body, claimed=None):
    return struct.pack(">I", 0x8000_0000 | (len(body) if claimed is None else claimed)) + body


def call(procedure, arguments, credential=(1, b""), program=100003, version=3):
    flavour, data = credential
    if flavour == 1 and not data:
        data = struct.pack(">I", 0) + struct.pack(">I", 0) + struct.pack(">III", 0, 0, 0)
    head = struct.pack(">IIIIII", 77, 0, 2, program, version, procedure)
    return head + struct.pack(">II", flavour, len(data)) + data + struct.pack(">II", 0, 0) + arguments


def bad_requests(options):
    """Malformed, oversized and slow requests: the node lives and does not grow."""
    demo, witness = Demo(options, "wire", disks=6, disk_size="256MiB"), Witness(options)
    demo.start()
    witness.load(demo, 1)
    address = ("127.0.0.1", demo.ready["nfs_port"])
    before = resident(demo.process.pid)
    rng = random.Random(options.seed)
    handle = struct.pack(">I", 32) + bytes(32)
    huge_write = handle + struct.pack(">QIII", 0, 1 << 30, 2, 1 << 30) + b"x" * 1000
    held = []
    for at in range(60):
        for data in (
            record(b"", 0x4000_0000),
            record(b"x" * 100, 0x7fff_ffff),
            record(call(7, huge_write)),
            record(call(7, handle + struct.pack(">QIII", 0, 1 << 20, 2, 1 << 20)), 1 << 20),
            record(call(1, handle, (99, b"y" * 40))),
            record(call(1, handle, (6, b"z" * 400))),
            record(call(1, b"")),
            record(call(200, b"")),
            record(call(1, handle, version=9)),
            record(call(1, handle, program=4711)),
            struct.pack(">I", 5) + b"abcde" * 3,
            rng.randbytes(rng.randrange(1, 3000)),
            record(rng.randbytes(rng.randrange(4, 400))),
        ):
            connection = socket.create_connection(address)
            connection.settimeout(5)
            try:
                connection.sendall(data)
            except OSError:
                pass
            if at < 20:
                held.append(connection)  # half a record, for ever
            else:
                connection.close()
    claim(demo.alive(), "the node ended: " + tail(demo.log))
    grown = resident(demo.process.pid) - before
    claim(grown < 200 << 20, "bad requests made the node grow by %d MiB" % (grown >> 20))
    say("%d bad requests, %d MiB more memory" % (60 * 13, grown >> 20))
    # An unknown flavour is answered, not cut off.
    connection = socket.create_connection(address)
    connection.settimeout(10)
    connection.sendall(record(call(1, handle, (99, b"y" * 40))))
    reply = connection.recv(100)
    claim(len(reply) >= 16 and struct.unpack(">I", reply[12:16])[0] == 1,
          "an unknown flavour is denied: %r" % reply)
    say(witness.load(demo, 1) + "; " + witness.verify(demo))
    for connection in held:
        connection.close()
    demo.stop()
    witness.close()


def refusals(options):
    refuse_disks(options)
    refuse_places(options)
    bad_requests(options)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "disks", "rot", "refusals"])
    parser.add_argument("--cairn", required=True)
    parser.add_argument("--witness", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=0, help="go on for so long")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    say("%s, seed %d" % (options.what, options.seed))
    try:
        {"kills": kills, "disks": disks, "rot": rot, "refusals": refusals}[options.what](options)
    except Failed as e:
        say("FAILED: %s" % e)
        logs = [n for n in os.listdir(options.work) if n.endswith(".log")]
        for name in logs:
            print("--- %s\n%s" % (name, tail(os.path.join(options.work, name))))
        return 1
    finally:
        for process in STARTED:
            if process.poll() is None:
                process.kill()
                process.wait()
    say("all claims hold")
    return 0


if __name__ == "__main__":
    sys.exit(main())
