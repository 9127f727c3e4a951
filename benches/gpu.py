#!/usr/bin/env python3
"""All that a GPU is asked, in one go, on a machine that has nothing but the GPU and Python with torch, sentence-transformers
and PEFT: packed here into one folder, run there.

    NVCC=$(tests/fetch-nvcc) cargo build --release --features cuda --bin veneer --bench passes
    benches/gpu.py pack FOLDER --tokenizer target/all-MiniLM-L6-v2 [--loadgen PROGRAM --workload FILE]
    FOLDER/gpu.py run RESULTS [--steps STEP...]

Steps run in this order, each no longer than its limit, and none begins that could outlast --seconds. What they print goes
to RESULTS/results.txt, with how each ended, and the GPU's clock and power to RESULTS/clocks.txt. With a load generator (see
server.py) one of them is the server over HTTP.
"""

import argparse
import csv
import json
import lzma
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import time

HERE = pathlib.Path(__file__).resolve().parent
SCRIPTS = ["gpu.py", "peers.py", "server.py"]
TOKENIZER = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
BINARIES = "binaries.tar.xz"
MANY = 10_000


def pack(options):
    passes = max((file for file in options.release.glob("deps/passes-*") if not file.suffix), key=lambda file: file.stat().st_mtime)
    programs = {"veneer": options.release / "veneer", "passes": passes}
    tokenizer = prepared(options.folder / "tokenizer")
    for name in TOKENIZER:
        shutil.copy(options.tokenizer / name, tokenizer)
    for name in SCRIPTS:
        shutil.copy(HERE / name, options.folder)
    if options.loadgen:
        programs["loadgen"] = options.loadgen
        shutil.copy(options.workload, options.folder / "workload.json")
    # Machine code packs a quarter smaller behind this filter.
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 128 << 20}]
    with lzma.open(options.folder / BINARIES, "w", filters=filters) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for name, program in programs.items():
            stripped = options.folder / name
            subprocess.run(["strip", "-o", stripped, program], check=True)
            archive.add(stripped, name)
            stripped.unlink()
    print(f"{sum(file.stat().st_size for file in options.folder.rglob('*') if file.is_file()) >> 20} MiB in {options.folder}")


def prepared(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def steps(options):
    """Name, limit in seconds, command, and what it finds in the environment."""
    models = HERE / "models"
    selftest = ["./veneer", "selftest", "--device", options.device]
    peers = [sys.executable, "peers.py"]

    def passes(name, adapters, *arguments, log="debug", **environment):
        command = ["./passes", "--device", options.device, "--dtype", options.dtype, "--log-level", f"warn,veneer::kernels={log}"]
        command += ["--model", f"base={models / name}", "--adapters", models / adapters, *arguments]
        return command, {"SECONDS": "1", "ROUNDS": "3", **environment}

    yield "device", 20, ["nvidia-smi"], {}
    yield "selftest", 60, [*selftest, "--small"], {}
    # The CPU takes a minute for those of f32 alone.
    yield "selftest-attention", 60, [*selftest, "--only", "attention BF16"], {}
    yield "models", 90, [*peers, "make", models, "--tokenizer", "tokenizer"], {}
    yield "parity", 60, [sys.executable, "gpu.py", "parity", "--device", options.device], {}
    for name, lengths in [("base", "512,32"), ("mini", "32")]:
        # Of fewer tokens, what is between two products lies in a cache; 11 and 22 texts of 512 occupy all multiprocessors, and 66
        # are 264 times 128 rows, which 132 of them share evenly.
        for most in ["auto", "33792", "16384", "11264", "5632"]:
            limit, counts = ([], "1,64") if most == "auto" else (["--max-batch-tokens", most], "64")
            command, environment = passes(name, f"{name}-adapters", *limit, LENGTHS=lengths, ADAPTERS=counts)
            yield f"passes-{name}-{most}", 60, command, environment
        command, environment = passes(name, f"{name}-adapters-of-20", LENGTHS=lengths, ADAPTERS="64")
        yield f"passes-{name}-of-20", 60, command, environment
        command, environment = passes(name, f"{name}-adapters", log="trace", LENGTHS=lengths, ADAPTERS="64", ROUNDS="1")
        yield f"timeline-{name}", 60, command, environment
        command, environment = passes(name, f"{name}-adapters", LENGTHS=lengths.split(",")[0], ADAPTERS="64", ROUNDS="1")
        yield f"profile-{name}", 60, [sys.executable, "gpu.py", "profile", *command], environment
    yield "peers", 120, [*peers, "run", models, "--device", options.device.split(":")[0], "--rounds", "7"], {}
    for tool in ["racecheck", "memcheck", "synccheck", "initcheck"]:
        sanitizer = ["compute-sanitizer", "--report-api-errors", "no", "--tool", tool, *selftest, "--only"]
        for what in ["attention", "updates BF16", "norm BF16"]:
            yield f"{tool}-{what.split()[0]}", 60, [*sanitizer, what, "--small"], {}
        yield f"{tool}-large", 120, [*sanitizer, "attention BF16"], {}
    if pathlib.Path("workload.json").exists():
        yield "http", 90, [sys.executable, "gpu.py", "http", "--device", options.device, "--dtype", options.dtype], {}
    command, environment = passes("base", "many", LENGTHS="512", ADAPTERS="1", ZIPF=str(MANY), ROUNDS="9", TURNS="turns")
    yield "many", 150, [sys.executable, "gpu.py", "many", *command], environment


def run(options):
    os.chdir(HERE)
    with lzma.open(BINARIES) as packed, tarfile.open(fileobj=packed) as archive:
        archive.extractall(".", filter="data")
    prepared(options.results)
    # What a GPU may draw bounds its clock, and so everything.
    clocks = ["nvidia-smi", "--query-gpu=timestamp,clocks.sm,power.draw,clocks_event_reasons.active", "--format=csv", "-lms", "500"]
    with open(options.results / "results.txt", "w") as log, open(options.results / "clocks.txt", "w") as told:
        watch = subprocess.Popen(clocks, stdout=told)
        try:
            run_steps(options, log)
        finally:
            watch.kill()


def run_steps(options, log):
    began = time.monotonic()

    def say(line):
        print(line, flush=True)
        print(line, file=log, flush=True)

    for name, limit, command, environment in steps(options):
        if options.steps and name not in options.steps:
            continue
        if time.monotonic() - began + limit > options.seconds:
            say(f"== {name}: not begun, {limit} s are not left")
            continue
        say(f"== {name}: {' '.join(f'{key}={value}' for key, value in environment.items())} {' '.join(map(str, command))}")
        since = time.monotonic()
        say(f"== {name}: {ended(command, environment, limit, log)} after {time.monotonic() - since:.1f} s")


def ended(command, environment, limit, log):
    """How a command ended that may take so many seconds; what it has started ends with it."""
    # The self-test is a step of its own, and the others are to tell more where it fails.
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries(), "VENEER_SERVER__SELF_TEST": "false", **environment}
    try:
        child = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    except OSError as error:
        return str(error)
    try:
        return f"exit code {child.wait(limit)}"
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        return "out of time"


def libraries():
    """Where cuBLASLt may lie: in wheels beside torch, and where CUDA is installed."""
    wheels = [folder for path in sys.path for folder in pathlib.Path(path).glob("nvidia/*/lib")]
    return ":".join([*map(str, wheels), "/usr/local/cuda/lib64", os.environ.get("LD_LIBRARY_PATH", "")])


def parity(options):
    """The least cosine between vectors of the device and those of the CPU in float32, of bases and of an adapter on each."""
    # The last so long, and so many, that they fill the device.
    counts = [1, 2, 5, 20] + [39] * 24
    texts = [" ".join(["a text of some words about packages, and a library of them"] * count) for count in counts]

    def vectors(name, adapter, device, dtype):
        command = ["./veneer", "embed", "--device", device, "--dtype", dtype, "--log-level", "error"]
        command += ["--model", f"base={HERE / 'models' / name}"] + (["--adapter", HERE / "models" / f"{name}-adapters/a1"] if adapter else [])
        told = subprocess.run([*map(str, command), *texts], check=True, stdout=subprocess.PIPE, text=True)
        return [json.loads(line)["embedding"] for line in told.stdout.splitlines()]

    for name in ["mini", "base"]:
        for adapter in [False, True]:
            exact = vectors(name, adapter, "cpu", "float32")
            for dtype in ["float32", "float16", "bfloat16"]:
                pairs = zip(exact, vectors(name, adapter, options.device, dtype))
                least = min(sum(a * b for a, b in zip(*pair)) / math.prod(math.hypot(*vector) for vector in pair) for pair in pairs)
                print(json.dumps({"model": name, "adapter": adapter, "dtype": dtype, "least_cosine": least}), flush=True)


def http(options):
    """Tokens a second over HTTP with many clients: of short and mixed texts one by one, and of more texts a request; and of those
    that peers.py has sentence-transformers encode."""
    from server import Bench

    models = HERE / "models"
    options.binary, options.loadgen, options.seconds = "./veneer", "./loadgen", 3
    usual = [("short", 480, 1), ("mixed", 480, 1), ("mixed", 64, 32), ("passage", 64, 32), ("short", 1, 1)]
    peers = {"mini": [("32", 64, 64)], "base": [("32", 64, 64), ("512", 64, 8)]}
    for name in peers:
        options.model = models / name
        bench = Bench(options)
        loads = [("workload.json", load) for load in usual if name == "mini"] + [(models / "texts.json", load) for load in peers[name]]
        with bench.server(options.dtype, "--adapters", str(models / f"{name}-adapters")) as server:
            for row in ["base", "a1,a2,a3,a4,a5,a6,a7,a8"]:
                for workload, (which, clients, texts) in loads:
                    figures = bench.load(server, which, clients=clients, models=row.split(","), texts=texts, workload=workload)
                    print(json.dumps({"model": name, "models": row, "clients": clients, **figures}), flush=True)


def profile(options):
    """What a profiler says of our kernels that take long, of each one's longest launch, and where its threads wait."""
    kernels = "regex:attention_.*late|shrink"
    sections = ["SpeedOfLight", "MemoryWorkloadAnalysis", "LaunchStats", "Occupancy", "WarpStateStats", "SourceCounters"]
    sections = [word for section in sections for word in ("--section", section)]
    # The first launches are of the few texts that adapters are tried with: of every size of a launch, a few.
    ncu = ["ncu", "--clock-control", "none", "-k", kernels, "--filter-mode", "per-launch-config", "-c", "4", *sections]
    ncu += ["-f", "-o", "profile", *options.command]
    subprocess.run(ncu, check=True, stdout=subprocess.DEVNULL)

    def page(name):
        told = subprocess.run(["ncu", "--import", "profile.ncu-rep", "--csv", "--page", name], check=True, stdout=subprocess.PIPE, text=True)
        return list(csv.reader(told.stdout.splitlines()))

    launches = {}
    for row in named(page("details")):
        launches.setdefault(row["ID"], []).append(row)
    sources = []
    for line in page("source"):
        if line[:1] == ["Kernel Name"]:
            sources.append([])
        else:
            sources[-1].append(line)
    longest = {}
    for rows, source in zip(launches.values(), sources):
        duration = next(float(row["Metric Value"].replace(",", "")) for row in rows if row["Metric Name"] == "Duration")
        if duration > longest.get(rows[0]["Kernel Name"], (0,))[0]:
            longest[rows[0]["Kernel Name"]] = duration, rows, source
    for kernel, (_, rows, source) in longest.items():
        print(f"{kernel}: grid {rows[0]['Grid Size']}")
        for row in rows:
            if row["Metric Name"]:
                print(f"    {row['Metric Name']}: {row['Metric Value']} {row['Metric Unit']}")
        instructions = list(named(source))
        samples = [int(row["# Samples"] or 0) for row in instructions]
        for number, (row, count) in enumerate(zip(instructions, samples)):
            if count * 200 > sum(samples):
                stalls = {name: int(value) for name, value in row.items() if name.startswith("stall_") and value.isdigit()}
                print(f"    {number:5} {row['Source'].strip():60} {count:6} of {sum(samples)}, {max(stalls, key=stalls.get)}")


def named(lines):
    return [dict(zip(lines[0], line)) for line in lines[1:]]


def many(options):
    """Lays out so many adapters as links to a few, and runs what is left of the command; beside it, in turns with it, the same with
    the few alone."""
    models = HERE / "models"
    few = sorted((models / "base-adapters").glob("a*"))
    for number in range(MANY):
        folder = prepared(models / "many" / f"a{number}")
        for file in few[number % len(few)].iterdir():
            if not (folder / file.name).exists():
                os.link(file, folder / file.name)
    beside = [str(models / "base-adapters") if argument == str(models / "many") else argument for argument in options.command]
    started = []
    with subprocess.Popen(options.command, stdout=subprocess.PIPE, text=True) as all_of_them:
        for line in all_of_them.stdout:
            print("all loaded:", line, end="", flush=True)
            if "names in" in line:
                started.append(subprocess.Popen(beside))
    sys.exit(max([all_of_them.wait(), *(process.wait() for process in started)]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(dest="job", required=True)
    packing = jobs.add_parser("pack")
    packing.add_argument("folder", type=pathlib.Path)
    packing.add_argument("--tokenizer", type=pathlib.Path, required=True, help="a folder whose tokenizer the models get")
    packing.add_argument("--release", type=pathlib.Path, default=HERE.parent / "target/release", help="where cargo puts what it builds")
    packing.add_argument("--loadgen", type=pathlib.Path)
    packing.add_argument("--workload", type=pathlib.Path)
    running = jobs.add_parser("run")
    running.add_argument("results", type=lambda path: pathlib.Path(path).resolve())
    running.add_argument("--steps", nargs="*", help="only these")
    running.add_argument("--seconds", type=float, default=1800, help="of all steps together")
    asking = jobs.add_parser("http")
    for parts in [running, asking, jobs.add_parser("parity")]:
        parts.add_argument("--device", default="cuda")
    for parts in [running, asking]:
        parts.add_argument("--dtype", default="bfloat16")
    for job in ["many", "profile"]:
        jobs.add_parser(job).add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    globals()[options.job](options)


if __name__ == "__main__":
    main()
