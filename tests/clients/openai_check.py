"""The openai package, unmodified, against a real server: run it once for every major version.

    pip install openai
    tests/fetch-model && cargo build --release
    python tests/clients/openai_check.py target/release/veneer

It starts the server twice: as the demo does, and with a queue of 300 tokens that sixteen threads overflow.
"""

import contextlib
import math
import re
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai

VENEER = sys.argv[1]
FIXTURES = "tests/fixtures/minilm"
TEXT = "Where is the nearest library?"
IDS = [101, 2073, 2003, 1996, 7205, 3075, 1029, 102]  # its tokens, specials included
UP_TO = 60  # seconds


@contextlib.contextmanager
def serving(*flags):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    port = address.rpartition(":")[2]
    adapters = [f"stsb={FIXTURES}/minilm-stsb-r8-qv", f"debian={FIXTURES}/minilm-debian-r16-all"]
    named = [part for adapter in adapters for part in ("--adapter", adapter)]
    command = [VENEER, "serve", "--port", port, "--model", "minilm=target/all-MiniLM-L6-v2", *named, *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert "ready" in server.stdout.readline(), "the server did not start"
        yield f"http://{address}"
    finally:
        server.terminate()
        assert server.wait(UP_TO) == 0


def fact(text, holds):
    print(("ok      " if holds else "FAILED  ") + text)
    fact.failures += not holds


fact.failures = 0


def gap(a, b):
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def one_of_each(url):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def vectors(model="debian", input=TEXT, **more):
        return [datum.embedding for datum in client.embeddings.create(model=model, input=input, **more).data]

    [default], [base] = vectors(), vectors("minilm")
    fact("a string: 384 numbers of length 1", len(default) == 384 and abs(math.hypot(*default) - 1) < 1e-5)
    fact("the adapter is not the base", gap(default, base) > 0.01)
    fact("base:adapter is the adapter", gap(vectors("minilm:debian")[0], default) == 0)
    fact("float is base64, the client's default", gap(vectors(encoding_format="float")[0], default) < 1e-7)
    fact("base64 asked for is a string", isinstance(vectors(encoding_format="base64")[0], str))
    fact("a list, in its order", gap(vectors(input=["something else", TEXT])[1], default) < 1e-6)
    fact("token ids are the text", gap(vectors(input=IDS)[0], default) == 0)
    fact("lists of token ids", gap(vectors(input=[IDS, IDS[:3]])[0], default) < 1e-6)
    [short] = vectors(dimensions=64)
    fact("dimensions: 64 numbers of length 1", len(short) == 64 and abs(math.hypot(*short) - 1) < 1e-5)
    by_input = {"adapters": [None, "debian"]}
    mixed = vectors("minilm", [TEXT, TEXT], extra_body=by_input)
    fact("extra_body: adapters by input", max(gap(mixed[0], base), gap(mixed[1], default)) < 1e-6)
    header = {"X-Adapter": "debian"}
    fact("extra_headers: X-Adapter", gap(vectors("minilm", extra_headers=header)[0], default) == 0)
    mounted = client.with_options(base_url=f"{url}/a/debian/v1").embeddings.create(model="minilm", input=TEXT)
    fact("base_url: the mount /a/debian/v1", gap(mounted.data[0].embedding, default) == 0)
    usage = client.embeddings.create(model="debian", input=TEXT).usage
    fact(f"usage: {usage.prompt_tokens} tokens", usage.prompt_tokens == usage.total_tokens == len(IDS))
    names = [model.id for model in client.models.list()]
    fact(f"models.list: {names}", names == ["minilm", "stsb", "debian"])
    fact("models.retrieve: the adapter's parent", client.models.retrieve("debian").parent == "minilm")
    for status, call in {
        openai.NotFoundError: lambda: vectors("legal"),
        openai.BadRequestError: lambda: vectors(input="word " * 1000),
    }.items():
        try:
            call()
            fact(f"{status.__name__}", False)
        except status as error:
            fact(f"{status.__name__}: {error.body['message']}", error.body["code"] is not None)
    try:
        client.models.retrieve("legal")
        fact("models.retrieve: NotFoundError", False)
    except openai.NotFoundError as error:
        fact(f"models.retrieve: NotFoundError, {error.body['message']}", True)


def overload(url):
    def ask(client):
        try:
            return client.embeddings.create(model="debian", input="word " * 40).data[0].embedding
        except openai.RateLimitError as error:
            return error

    def refused():
        metrics = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/metrics").read().decode()
        return sum(int(n) for n in re.findall(r'^veneer_requests_total\{.*status="429".*\} (\d+)$', metrics, re.M))

    def run(name, client, requests):
        before, began = refused(), time.monotonic()
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, [client] * requests))
        errors = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
        seconds, count = time.monotonic() - began, refused() - before
        print(f"        {name}: {requests} requests, {len(errors)} RateLimitError, {count} refused, {seconds:.1f} s")
        return errors, count

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    errors, count = run("no retries", client.with_options(max_retries=0), 64)
    fact("without retries each refusal is a RateLimitError", 0 < len(errors) == count)
    fact(f"its message: {errors[0].body['message']}", "busy" in errors[0].body["message"])
    wait = errors[0].response.headers["retry-after"]
    fact(f"its Retry-After: {wait}", int(wait) >= 1)
    errors, count = run(f"default retries ({client.max_retries})", client, 64)
    fact("the client retries what is refused", count > len(errors))
    errors, count = run("ten retries", client.with_options(max_retries=10), 64)
    fact("with ten retries all succeed", count > 0 and not errors)


print(f"openai {openai.__version__}")
with serving() as url:
    one_of_each(url)
with serving("--max-queued-tokens", "300") as url:
    overload(url)
sys.exit(fact.failures)
