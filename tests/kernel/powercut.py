#!/usr/bin/env python3
"""Cuts the power of a server guest under load, again and again.

Runs beside the guest, started by the kit (see `powercut` in tests/kernel/run). The guest is a
User-Mode Linux machine with `cairnd` on block devices. With `--disks nbd` these are disks with a
volatile write cache (volatile_disk.py): a cut takes what was not flushed. With `--disks ubd` they
are the guest's own block devices, whose writes the host keeps. The witness holds what was
acknowledged against what is there after each start; rounds that end with a clean stop before the
cut must have kept unstable writes, too.
"""
import argparse
import json
import os
import random
import socket
import subprocess
import sys
import time

import volatile_disk

TOP = os.environ["KC_TOP"]
SHARED = os.path.join(TOP, "x")
SERVER = os.environ["KC_SERVER"]
START_SECONDS = 60
# Further cuts while none of them has taken anything.
IDLE_CUTS_MAX = 20
BEGAN = time.monotonic()


class Failed(Exception):
    """A claim does not hold."""


def claim(holds, what):
    if not holds:
        raise Failed(what)


def say(text):
    print("[%7.2f] %s" % (time.monotonic() - BEGAN, text), flush=True)


def wait(what, ready, seconds=START_SECONDS):
    end = time.monotonic() + seconds
    while True:
        answer = ready()
        if answer:
            return answer
        claim(time.monotonic() < end, what + ": not within %d s" % seconds)
        time.sleep(0.01)


class Guest:
    """The server guest, by way of the kit's requests."""
    orders = 0

    def kit(self, *words):
        tag = "h%d" % Guest.orders
        Guest.orders += 1
        request = os.path.join(SHARED, "req." + tag)
        # The kit takes whatever begins with "req." as it finds it.
        new = os.path.join(SHARED, ".new." + tag)
        with open(new, "w") as f:
            f.write("\0".join(["0", *words]))
        os.rename(new, request)
        reply = os.path.join(SHARED, "rep." + tag)
        wait("the kit's answer to %s" % (words,), lambda: os.path.exists(reply))
        with open(reply) as f:
            code, _, text = f.read().partition("\n")
        os.unlink(reply)
        claim(code == "0", "%s: %s" % (words, text))

    def order(self, *words):
        number = Guest.orders
        Guest.orders += 1
        place, new = (os.path.join(SHARED, name % number) for name in ("order.%d", ".order.%d"))
        with open(new, "w") as f:
            json.dump(words, f)
        os.rename(new, place)
        answer = os.path.join(SHARED, "answer.%d" % number)
        wait("the guest's answer to %s" % (words,), lambda: os.path.exists(answer))
        with open(answer) as f:
            return json.load(f)

    def off(self):
        self.kit("server", "poweroff")

    def on(self):
        self.kit("server", "poweron")

    def serving(self):
        try:
            socket.create_connection((SERVER, 2049), timeout=1).close()
            return True
        except OSError:
            return False


class Witness:
    def __init__(self, program, seed):
        self.process = subprocess.Popen([program, "serve", "--workers", "4", "--seed", str(seed)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.do("target %s:2049:2049:/vol0" % SERVER)

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def do(self, command):
        answer = self.ask(command)
        claim(answer and not answer.startswith(("LOST", "error")), "%s: %s" % (command, answer))
        return answer

    def operations(self, answer):
        return int(answer.split("ops=")[1].split()[0])


def images(options):
    return sorted(os.path.join(options.work, name) for name in os.listdir(options.work)
                  if name.endswith(".img"))


def devices(guest, options):
    """What holds of block devices, whatever their kind."""
    refused = guest.order("second", "/run/same-disks.toml")
    claim(refused["code"] == 1 and "in use" in refused["err"],
          "a second node took the same devices: %s" % refused)
    refused = guest.order("second", "/run/mounted-disk.toml")
    claim(refused["code"] == 1 and "in use" in refused["err"],
          "a mounted device was taken: %s" % refused)
    listed = guest.order("cli", "--json", "disk", "list")
    claim(listed["code"] == 0, str(listed))
    disks = json.loads(listed["out"])
    disks = disks if isinstance(disks, list) else disks["disks"]
    say("block devices in use: %s" % ", ".join(
        "%s (%d MiB, %s)" % (d["location"], d["size_bytes"] >> 20, d["class"]) for d in disks))
    claim(all(d["location"].startswith("/dev/" + options.disks) and d["class"] != "file" for d in disks),
          str(disks))
    sizes = {os.path.getsize(path) for path in images(options)}
    claim({d["size_bytes"] for d in disks} == sizes, "sizes: %s" % disks)


def whole_stripes(guest):
    """No stripe that was being written at a cut is left with parity of another age."""
    done = guest.order("cli", "scrub", "start")
    claim(done["code"] == 0, "a scrub: %s" % done)
    status = json.loads(guest.order("cli", "--json", "scrub", "status")["out"])
    claim(status["finished"] and status["damaged"] == 0 and status["parity_mismatches"] == 0,
          "the scrub after the cuts: %s" % status)
    say("scrub: %d stripes are whole" % status["stripes_done"])


def log_lines(words):
    with open(os.path.join(SHARED, "cairnd.log"), errors="replace") as f:
        return [line for line in f if words in line]


def begin(options):
    """The shelf (if disks come from one), the guest and the witness, when the node serves."""
    shelf = None
    if options.disks == "nbd":
        address = (SERVER.rpartition(".")[0] + ".254", 10809)
        shelf = volatile_disk.Shelf(address, images(options))
    guest, witness = Guest(), Witness(options.witness, options.seed)
    wait("the first start", guest.serving)
    wait("vol0", lambda: guest.order("cli", "status")["code"] == 0)
    return shelf, guest, witness


def load(witness, seconds):
    """Load without any fault that a client may see."""
    witness.do("start")
    time.sleep(seconds)
    answer = witness.do("stop")
    claim(answer.endswith("broken=0"), "a client was cut off: " + answer)
    return witness.operations(answer)


def logdisks(options):
    """Two named log devices: killed, one fails, the power goes, both fail."""
    shelf, guest, witness = begin(options)
    listed = json.loads(guest.order("cli", "--json", "disk", "list")["out"])
    listed = listed if isinstance(listed, list) else listed["disks"]
    logs = [d["location"] for d in listed if "log" in d["role"]]
    claim(len(logs) == 2, "two log devices: %s" % listed)
    first, second = (shelf.disks[int(location[-1])] for location in sorted(logs))
    before = [disk.counts["writes"] for disk in shelf.disks]
    operations = load(witness, 1.5)
    claim(all(disk.counts["writes"] > was for disk, was in zip(shelf.disks, before)
              if disk in (first, second)), "the log lies on both log devices")
    say("%d operations; %s" % (operations, witness.do("verify")))

    def killed(what):
        witness.do("start")
        time.sleep(1)
        guest.order("kill")
        witness.do("stop")
        guest.order("start")
        wait("a start", guest.serving)
        say("%s: killed, started, %s" % (what, witness.do("verify")))

    killed("both log devices")
    first.failing = True
    load(witness, 2)
    say("one log device fails under load: " + witness.do("verify"))
    killed("one log device")
    witness.do("start")
    time.sleep(1)
    guest.off()
    lost = shelf.power_cut(volatile_disk.seeded(options.seed, 0))
    witness.do("sever")
    witness.do("stop")
    guest.on()
    wait("a start", guest.serving)
    say("one log device, power cut (%d of %d unflushed blocks lost): %s"
        % (lost[1], lost[0], witness.do("verify")))
    first.failing = False
    killed("the log device answers again")
    second.failing = True
    load(witness, 2)
    say("the other fails: " + witness.do("verify"))
    killed("no log device is left")
    answer = guest.order("stop")
    claim(answer == {"code": 0}, "a clean stop: %s" % answer)


def rounds(options):
    rng = random.Random(options.seed)
    shelf, guest, witness = begin(options)
    devices(guest, options)
    cuts = clean = points = unflushed = touched = operations = again = 0
    end = time.monotonic() + options.seconds

    def go_on():
        # A cut between two flushes takes nothing. More of them until one did, within reason.
        idle = shelf and not touched and cuts < options.cuts + IDLE_CUTS_MAX
        return cuts < options.cuts or time.monotonic() < end or idle

    while go_on():
        witness.do("start")
        time.sleep(rng.uniform(0.2, options.load))
        kind = rng.randrange(8)
        gentle = kind == 0
        if kind in (1, 2, 3):
            # Behind a consistency point: what it overwrites from now on, its root must not need.
            answer = guest.order("cli", "aggregate", "cp")
            claim(answer["code"] == 0, "a consistency point: %s" % answer)
            points += 1
        if gentle:
            operations = witness.operations(witness.do("stop"))
            answer = guest.order("stop")
            claim(answer == {"code": 0}, "a clean stop: %s" % answer)
            witness.do("stable")
            clean += 1
        guest.off()
        if shelf:
            more = shelf.power_cut(volatile_disk.seeded(options.seed, cuts))
            unflushed, touched = unflushed + more[0], touched + more[1]
        cuts += 1
        witness.do("sever")
        if not gentle:
            operations = witness.operations(witness.do("stop"))
        guest.on()
        if rng.randrange(6) == 0:
            # Once more while it recovers.
            time.sleep(rng.uniform(0.5, 3.0))
            guest.off()
            if shelf:
                more = shelf.power_cut(volatile_disk.seeded(options.seed, cuts))
                unflushed, touched = unflushed + more[0], touched + more[1]
            cuts, again = cuts + 1, again + 1
            guest.on()
        wait("a start after cut %d" % cuts, guest.serving)
        answer = witness.do("verify")
        if cuts % 10 < 2 or options.cuts <= 20:
            say("cut %d: %s" % (cuts, answer))
    say("%d cuts (%d behind a clean stop, %d behind a point, %d during a start), %d operations, "
        "%d unflushed blocks at the cuts, %d of them lost or torn"
        % (cuts, clean, points, again, operations, unflushed, touched))
    whole_stripes(guest)
    if shelf:
        say("requests of the disks: %s" % shelf.counts())
        claim(touched > 0, "no cut took anything: it proves nothing")
    for line in log_lines("io_uring")[-1:]:
        say(line.strip())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True)
    parser.add_argument("--witness", required=True)
    parser.add_argument("--story", choices=["cuts", "logdisks"], default="cuts")
    parser.add_argument("--disks", choices=["nbd", "ubd"], default="nbd")
    parser.add_argument("--cuts", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--load", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    say("powercut, seed %d" % options.seed)
    try:
        {"cuts": rounds, "logdisks": logdisks}[options.story](options)
    except Failed as e:
        say("FAILED: %s" % e)
        for line in log_lines("")[-40:]:
            print("  | " + line.rstrip())
        return 1
    say("all claims hold")
    return 0


if __name__ == "__main__":
    sys.exit(main())
