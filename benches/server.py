#!/usr/bin/env python3
"""The whole server against its peers, in interleaved rounds: tables of medians and ratios.

    cargo build --release
    benches/server.py --model FOLDER --loadgen PROGRAM --workload FILE TABLE...

TABLE is one or several of
    speed       every dtype over HTTP with 32 clients, one short text alone, and the peers in process
    adapters    adapters in rotation against the base alone; --adapters FOLDER, whose adapters take turns
    lengths     tokens a second of texts of --lengths tokens, no more than the model reads
    memory      resident memory through --minutes of load

The load generator takes --addr, --workload, --set, --seconds, --warm, --clients, --texts, --models and --pid, and prints a line of
JSON with tokens_per_s, p50_ms and p99_ms. The workload is a JSON object of sets, each a list of {"text", "tokens"}. --peers
is a command that, given names of peers, prints a line of JSON with peer, set and tokens_per_s for each set; without it no
peer is measured.
"""

import argparse
import contextlib
import itertools
import json
import pathlib
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

# Each with the peer that computes as it does.
DTYPES = {"float32": "ort", "bfloat16": "ov-bf16", "int8": "ort-int8"}
ON_GPU = {"float32": "", "bfloat16": "", "float16": ""}
SETS = ["short", "passage", "mixed"]


class Bench:
    def __init__(self, options):
        self.options = options
        self.dtypes = DTYPES if options.device in ["auto", "cpu"] else ON_GPU
        self.figures = {}

    def note(self, row, column, figure):
        self.figures.setdefault((row, column), []).append(figure)

    def median(self, row, column):
        return statistics.median(self.figures.get((row, column), [float("nan")]))

    def load(self, server, which, clients=32, texts=1, models=("base",), seconds=None, workload=None):
        """What the load generator says of one run."""
        command = [self.options.loadgen, "--addr", server.address, "--workload", workload or self.options.workload]
        command += ["--set", which, "--clients", clients, "--texts", texts, "--models", ",".join(models), "--pid", server.pid]
        command += ["--warm", 0.5, "--seconds", seconds or self.options.seconds]
        line = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
        figures = json.loads(line)
        if figures.get("errors") or not figures["tokens_per_s"]:
            sys.exit(f"requests failed: {line}")
        return figures

    def peers(self, names):
        """What peers print, run one after the other in a process of their own."""
        if not self.options.peers or not all(names):
            return []
        command = shlex.split(self.options.peers) + names
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    @contextlib.contextmanager
    def server(self, dtype="float32", *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [self.options.binary, "serve", "--port", str(port), "--log-level", "error", "--dtype", dtype]
        command += ["--device", self.options.device, "--model", f"base={self.options.model}", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        process.address = f"127.0.0.1:{port}"
        try:
            while subprocess.run([self.options.binary, "health", "--address", process.address], capture_output=True).returncode:
                if process.poll() is not None:
                    sys.exit("the server did not start")
                time.sleep(0.05)
            yield process
        finally:
            process.terminate()
            process.wait()


def table(head, rows):
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(f"{cell:,.2f}" if isinstance(cell, float) and cell < 100 else f"{cell:,.0f}" if isinstance(cell, float) else str(cell) for cell in row) + " |")
    sys.stdout.flush()


def speed(bench):
    for _ in range(bench.options.rounds):
        for dtype, peer in bench.dtypes.items():
            with bench.server(dtype) as server:
                for which in SETS:
                    bench.note(dtype, which, bench.load(server, which)["tokens_per_s"])
                one = bench.load(server, "short", clients=1)
                bench.note(dtype, "p50", one["p50_ms"])
                bench.note(dtype, "p99", one["p99_ms"])
            for line in bench.peers([peer]):
                bench.note(peer, line["set"], line["tokens_per_s"])
        for line in bench.peers(["peak"]):
            print(json.dumps(line))
    rows = []
    for dtype, peer in bench.dtypes.items():
        ours = [bench.median(dtype, which) for which in SETS]
        rows.append([f"veneer {dtype}", *ours, bench.median(dtype, "p50"), bench.median(dtype, "p99")])
        if bench.options.peers and peer:
            theirs = [bench.median(peer, which) for which in SETS]
            rows.append([peer, *theirs, "", ""])
            rows.append(["ratio", *(a / b for a, b in zip(ours, theirs)), "", ""])
    table(["tokens/s", *SETS, "one short text, p50 ms", "p99 ms"], rows)


def adapters(bench):
    folder = bench.options.adapters or sys.exit("--adapters FOLDER")
    for _ in range(bench.options.rounds):
        for dtype in bench.dtypes:
            with bench.server(dtype, "--adapters", folder) as server:
                listed = json.load(urllib.request.urlopen(f"http://{server.address}/v1/models"))["data"]
                names = [model["id"] for model in listed if model["id"] != "base"]
                for which in SETS:
                    for row, models in [("base", ["base"]), ("adapters", names)]:
                        bench.note((dtype, row), which, bench.load(server, which, models=models)["tokens_per_s"])
    rows = []
    for dtype in bench.dtypes:
        both = [[bench.median((dtype, row), which) for which in SETS] for row in ["base", "adapters"]]
        rows += [[f"{dtype}, base", *both[0]], [f"{dtype}, {len(names)} adapters in turn", *both[1]]]
        rows.append(["ratio", *(b / a for a, b in zip(*both))])
    table(["tokens/s", *SETS], rows)


def lengths(bench):
    """Texts of one length, made of the workload's passages."""
    words = itertools.cycle(" ".join(t["text"] for t in json.load(open(bench.options.workload))["passage"]).split())
    counts = bench.options.lengths.split(",")
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file, bench.server(bench.options.dtype) as server:
        sets = {count: [fitting(server, words, int(count)) for _ in range(64)] for count in counts}
        json.dump(sets, file)
        file.flush()
        for _ in range(bench.options.rounds):
            for count in counts:
                bench.note("", count, bench.load(server, count, workload=file.name)["tokens_per_s"])
    table(["tokens a text", *counts], [[f"tokens/s, {bench.options.dtype}", *(bench.median("", count) for count in counts)]])


def fitting(server, words, tokens):
    """A text of so many tokens, or hardly fewer, as the server counts them."""
    # A word is a token at least.
    text = list(itertools.islice(words, tokens))
    while True:
        body = json.dumps({"model": "base", "input": " ".join(text)}).encode()
        head = {"Content-Type": "application/json"}
        try:
            answer = urllib.request.urlopen(urllib.request.Request(f"http://{server.address}/v1/embeddings", body, head))
            counted = json.load(answer)["usage"]["prompt_tokens"]
        except urllib.error.HTTPError:
            # More than the model reads.
            counted = None
        if counted and (counted <= tokens or len(text) == 1):
            return {"text": " ".join(text), "tokens": counted}
        text = text[: max(1, len(text) * 9 // 10 if counted is None else len(text) - (counted - tokens + 1) // 2)]


def memory(bench):
    rows = []
    with bench.server(bench.options.dtype) as server:
        status = pathlib.Path(f"/proc/{server.pid}/status")
        resident = lambda: next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        rows.append([0, resident()])
        for minute in range(1, bench.options.minutes + 1):
            bench.load(server, "mixed", seconds=59.5)
            rows.append([minute, resident()])
    table(["minute", f"resident MiB, {bench.options.dtype}"], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", choices=["speed", "adapters", "lengths", "memory"])
    parser.add_argument("--binary", default="target/release/veneer")
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", default="auto", help="as the server takes it; on a GPU no peer is measured")
    parser.add_argument("--loadgen", required=True)
    parser.add_argument("--workload", required=True)
    parser.add_argument("--peers", default="", help="a command")
    parser.add_argument("--adapters", default="", help="a folder of adapters")
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES | ON_GPU), help="of the tables of lengths and memory")
    parser.add_argument("--lengths", default="16,32,64,128,256")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--minutes", type=int, default=10)
    options = parser.parse_args()
    for name in options.tables:
        globals()[name](Bench(options))


if __name__ == "__main__":
    main()
