"""Reads the output of pjdfstest and compares its failures with the known ones."""
import re
import sys

out, known_file = sys.argv[1:]
known = {}
for line in open(known_file):
    if line.strip() and not line.startswith("#"):
        name, _, reason = line.strip().partition(" ")
        assert reason.strip(), "no reason given for %s" % name
        known[name] = reason.strip()

passed, failed, skipped = [], [], []
text = re.sub(r"\x1b\[[0-9;]*m", "", open(out, errors="replace").read())
for line in text.splitlines():
    words = line.split()
    if len(words) >= 2 and "::" in words[0]:
        if words[1] == "ok":
            passed.append(words[0])
        elif words[1].lower().startswith("skip"):
            skipped.append(words[0])
        elif words[1].lower().startswith("fail"):
            failed.append(words[0])
print("%d passed, %d failed, %d not applicable here" % (len(passed), len(failed), len(skipped)))
new = sorted(set(failed) - set(known))
for name in sorted(failed):
    print("known" if name in known else "NEW", name, known.get(name, ""))
for name in sorted(set(known) & set(passed)):
    print("note: %s is listed as known to fail and passed" % name)
if new:
    for name in new:
        at = text.find("\n" + name)
        print(text[at:at + 600])
if len(passed) < 150:
    sys.exit("only %d tests passed: the suite did not run as it should" % len(passed))
sys.exit(1 if new else 0)
