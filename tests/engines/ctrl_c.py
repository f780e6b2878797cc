"""Ctrl-C at random moments of loading and ranking: `python tests/engines/ctrl_c.py MODEL` does it 30 times.

The tests do it at a few moments, of every kind.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

EXIT_SECONDS = 15
STAGES = ("importing", "loading", "ranking")

# A shell without job control starts what goes to the background with SIGINT ignored, and that is inherited.
_SCRIPT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
print("importing", flush=True)
from winnow import Reranker
reranker = Reranker({model!r}, engine={engine!r}).start()
print("ranking", flush=True)
for number in range(10**9):
    reranker.rank("a", [f"{{number}} {{at}} " + "word " * 20 for at in range(100)])
"""


@dataclass
class Interrupted:
    """What came of a Ctrl-C: seconds until the end, what the script said, and the processes that are left of it."""

    seconds: float
    code: int
    errors: str
    left: set[psutil.Process]

    @property
    def is_right(self) -> bool:
        """Whether it ended in time, by the KeyboardInterrupt, and alone."""
        return self.seconds <= EXIT_SECONDS and "KeyboardInterrupt" in self.errors and not self.left


def press_ctrl_c(model: str, stage: str, after: float, engine: str = "vllm") -> Interrupted:
    """Run a script that ranks for ever, and interrupt it.

    Args:
        model: Path of a model.
        stage: What the script has begun with: one of STAGES.
        after: Seconds after that.
        engine: The engine's name.
    """
    seen: set[psutil.Process] = set()
    began = {name: threading.Event() for name in STAGES}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "script.py")
        path.write_text(_SCRIPT.format(model=model, engine=engine))
        with (
            Path(folder, "errors").open("w+") as errors,
            subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        ):

            def read() -> None:
                for line in process.stdout or ():
                    if line.strip() in began:
                        began[line.strip()].set()

            def watch() -> None:
                while process.poll() is None:
                    try:
                        seen.update(psutil.Process(process.pid).children(recursive=True))
                        if any("EngineCore" in one.name() or "spawn_main" in " ".join(one.cmdline()) for one in seen):
                            began["loading"].set()
                    except psutil.Error:
                        pass
                    time.sleep(0.05)

            threads = [threading.Thread(target=target, daemon=True) for target in (read, watch)]
            for thread in threads:
                thread.start()
            try:
                while not began[stage].wait(0.1):
                    assert process.poll() is None, Path(folder, "errors").read_text()
                time.sleep(after)
                assert process.poll() is None, Path(folder, "errors").read_text()
                os.kill(process.pid, signal.SIGINT)  # to the parent alone: a terminal would tell the children, too
                begin = time.monotonic()
                process.wait(4 * EXIT_SECONDS)
                seconds = time.monotonic() - begin
            finally:
                process.kill()
                for thread in threads:
                    thread.join(10)  # the first reads until no process has the output open
            left = psutil.wait_procs(seen, timeout=5)[1]
            return Interrupted(seconds, process.returncode, Path(folder, "errors").read_text(), set(left))


def main() -> None:
    """Print a line a Ctrl-C, and fail if one was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=12, help="most seconds after the begin of a stage")
    options = parser.parse_args()
    moments = random.Random(options.seed)  # noqa: S311
    wrong = 0
    for number in range(options.times):
        stage, after = moments.choice(STAGES), moments.uniform(0, options.longest)
        after /= 1 if stage != "ranking" else 10
        found = press_ctrl_c(options.model, stage, after, options.engine)
        wrong += not found.is_right
        print(f"{number:2} {stage} + {after:4.1f} s: ended in {found.seconds:.1f} s, code {found.code}", flush=True)
        if not found.is_right:
            print(found.errors[-3000:], found.left, flush=True)
    print(f"{wrong} of {options.times} were wrong")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
