"""Lists `big` while a thread makes and removes other names, and again in peace."""
import os
import sys
import threading
import time

want = int(sys.argv[1])
stop = threading.Event()
moved = 0


def churn():
    """Makes names and removes them again, all over the directory."""
    global moved
    alive = []
    while not stop.is_set():
        name = "big/churn-%d" % moved
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        alive.append(name)
        if len(alive) > 50:
            os.unlink(alive.pop(0))
        moved += 1
    for name in alive:
        os.unlink(name)


def listing():
    began, stay, others = time.time(), set(), 0
    for entry in os.scandir("big"):
        if entry.name.startswith("stay-"):
            assert entry.name not in stay, "%s is listed twice" % entry.name
            stay.add(entry.name)
        else:
            others += 1
    assert len(stay) == want, "%d of %d entries listed" % (len(stay), want)
    assert stay == {"stay-%d" % i for i in range(want)}
    return time.time() - began, others


thread = threading.Thread(target=churn)
thread.start()
try:
    seconds, others = listing()
finally:
    stop.set()
    thread.join()
assert moved > 0, "nothing came or went"
print("listed in %.1f s while %d entries came and went (%d seen)" % (seconds, moved, others))
seconds, others = listing()
assert others == 0, "%d entries are left over" % others
for i in range(0, want, max(1, want // 500)):
    assert os.stat("big/stay-%d" % i).st_size == 0
try:
    os.stat("big/nothing-of-that-name")
    raise AssertionError("a name that is not there was found")
except FileNotFoundError:
    pass
print("listed in %.1f s in peace" % seconds, flush=True)
