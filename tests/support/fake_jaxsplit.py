"""Does what a process of a comparison does, in milliseconds: writes the files of a run.

fake_jaxsplit.py [fail=NAME] [kill=NAME] [wait=NAME] [behind=NAME] [busy=NAME] [cascade=NAME]
  -- VERB FLAGS...

NAME is a part of the name of a run: its training fails, is killed, waits for a signal or for a run
of the next seed, or finds its folder busy once; a cascade of it cannot be timed.
"""

import json
import os
import pathlib
import signal
import sys
import time

at = sys.argv.index("--")
how = [word.partition("=")[::2] for word in sys.argv[1:at]]
verb, *flags = sys.argv[at + 1 :]
given = dict(flag.lstrip("-").partition("=")[::2] for flag in flags)
folder = pathlib.Path(given["workdir"])
name, steps = folder.name, 4


def asked(what: str) -> bool:
    return any(word == what and part in name for word, part in how)


def log(text: str) -> None:
    shown = {k: v for k, v in os.environ.items() if k in ("CUDA_VISIBLE_DEVICES",)}
    with (folder.parent / "calls.jsonl").open("a") as file:
        call = {"verb": verb, "name": name, "what": text, "flags": flags, "env": shown}
        file.write(json.dumps(call) + "\n")


def stop(signum, _) -> None:
    log("stopped")
    print("stopped by SIGTERM: step 2 of 4 is saved")
    os._exit(75)


signal.signal(signal.SIGTERM, stop)
log("starts")
if verb == "train":
    print("compiling")
    if asked("fail"):
        print("Traceback of a loop\nerror: the loss is not finite at step 3", file=sys.stderr)
        sys.exit(1)
    if asked("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if asked("busy") and not (folder / "was_busy").exists():
        (folder / "was_busy").touch()
        print(f"error: workdir={str(folder)!r}: another run is at work there", file=sys.stderr)
        sys.exit(1)
    if asked("wait"):
        time.sleep(60)
    if asked("behind"):
        following = f"seed{int(name[-1]) + 1}"
        for _ in range(200):
            if following in (folder.parent / "calls.jsonl").read_text():
                break
            time.sleep(0.05)
    saved = folder / "checkpoints" / str(steps)
    saved.mkdir(parents=True, exist_ok=True)
    (saved / "_CHECKPOINT_METADATA").write_text("{}")
elif verb == "eval":
    scores = {name: {"top1": 0.5} for name in ("net0", "ensemble", "leader")}
    record = {"step": steps, "splits": {"test": {"answers": scores}}}
    (folder / "predictions.npz").write_bytes(b"")
    (folder / "eval.json").write_text(json.dumps(record))
else:
    if "cascade" in given and asked("cascade"):
        print("error: cascade: latency needs a data set that lies in memory", file=sys.stderr)
        sys.exit(2)
    (folder / "latency.json").write_text("{}")
log("ends")
