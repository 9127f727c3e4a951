#!/usr/bin/env python3
"""What users would pick instead, on the same device and the same shapes as benches/passes.rs: sentence-transformers, and
PEFT with an adapter a text. Needs torch, sentence-transformers and peft.

    benches/peers.py make DIR --tokenizer FOLDER      models of random weights, base and mini, and twice 64 adapters on each
    benches/peers.py run DIR                          a line of JSON each: tokens/s, medians; and the device's peak
    cargo bench --bench passes -- --device cuda --dtype bfloat16 --model base=DIR/base --adapters DIR/base-adapters

Peers get token ids that lie on the device, all of one length, so that they neither tokenize nor pad: their best case. And as they
are used: sentence-transformers' `encode` of the texts in DIR/texts.json, which a load generator sends to the server too.
"""

import argparse
import json
import pathlib
import random
import shutil
import statistics
import time

import torch

SHAPES = {"base": (768, 3072, 12, 12), "mini": (384, 1536, 12, 6)}
LENGTHS = {"base": [512, 32], "mini": [32]}
ADAPTERS = 64
# Tokens of each set of texts.
TOKENS = 1 << 17


def make(options):
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import BertConfig, BertModel

    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "texts.json").write_text(json.dumps(texts(options.tokenizer)))
    for name, (hidden, inner, heads, layers) in SHAPES.items():
        folder = options.folder / name
        config = BertConfig(hidden_size=hidden, intermediate_size=inner, num_attention_heads=heads, num_hidden_layers=layers)
        torch.manual_seed(0)
        base = BertModel(config)
        base.save_pretrained(folder)
        parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        kinds = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (path, kind) in enumerate(parts)]
        (folder / "modules.json").write_text(json.dumps(kinds))
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 512, "do_lower_case": False}))
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": hidden, "pooling_mode_mean_tokens": True}))
        for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]:
            shutil.copy(options.tokenizer / file, folder)
        # Attention itself changes what it reads by the one rank; the other is added before.
        for rank, kind in [(16, "adapters"), (20, "adapters-of-20")]:
            config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["query", "value"], init_lora_weights=False)
            model = get_peft_model(BertModel.from_pretrained(folder), config, adapter_name="a0")
            adapters = options.folder / f"{name}-{kind}"
            model.save_pretrained(adapters)
            told = adapters / "a0/adapter_config.json"
            told.write_text(json.dumps(json.loads(told.read_text()) | {"base_model_name_or_path": str(folder)}))
            tensors = load_file(adapters / "a0/adapter_model.safetensors")
            for number in range(1, ADAPTERS):
                # PEFT takes a minute to make as many. The same numbers elsewhere are other ones.
                other = shutil.copytree(adapters / "a0", adapters / f"a{number}", dirs_exist_ok=True)
                mixed = {key: tensor.flatten()[torch.randperm(tensor.numel())].view_as(tensor) for key, tensor in tensors.items()}
                save_file(mixed, other / "adapter_model.safetensors", {"format": "pt"})


def texts(tokenizer):
    """A set of texts for each length, of words that are a token each, between a first and a last one."""
    vocabulary = json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    words = sorted(word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 1)
    chance = random.Random(0)
    text = lambda tokens: {"text": " ".join(chance.choices(words, k=tokens - 2)), "tokens": tokens}
    return {str(length): [text(length) for _ in range(TOKENS // length)] for length in sorted(set(sum(LENGTHS.values(), [])))}


def median(options, run):
    """Seconds of one run, which ends on the host."""
    run()
    times = []
    for _ in range(options.rounds):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def say(**figures):
    print(json.dumps(figures), flush=True)


def tokens_per_s(options, peer, name, length, work, **more):
    """Of the best size of batches, and of one text alone: `work(batch)` is what is to be run, and of how many texts it is."""
    rates = {}
    for tokens in options.tokens:
        batch = max(1, tokens // length)
        run, count = work(batch)
        rates[batch] = count * length / median(options, run)
    batch = max(rates, key=rates.get)
    one, _ = work(1)
    say(peer=peer, model=name, length=length, **more, batch=batch, tokens_per_s=rates[batch], one_text_ms=1e3 * median(options, one))


def of_ids(options, length, embed):
    def work(batch):
        ids = torch.randint(1000, 30000, (batch, length), device=options.device)
        return lambda: embed(ids), batch

    return work


def of_texts(options, length, pipeline):
    rows = json.loads((options.folder / "texts.json").read_text())[str(length)]
    counted = len(pipeline.tokenizer(rows[0]["text"])["input_ids"])
    assert counted == length, f"texts of {counted} tokens, not {length}"

    def work(batch):
        chosen = [row["text"] for row in rows[: 1 if batch == 1 else None]]
        return lambda: pipeline.encode(chosen, batch_size=batch, show_progress_bar=False), len(chosen)

    return work


def run(options):
    from peft import PeftModel
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    a, b = (torch.randn(options.peak, options.peak, device=options.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = median(options, lambda: [a @ b for _ in range(8)][-1][0, 0].item()) / 8
    say(peer="peak of bfloat16 products", tflops=2 * options.peak**3 / seconds / 1e12)
    arguments = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
    for name in SHAPES:
        pipeline = SentenceTransformer(str(options.folder / name), device=options.device, model_kwargs=arguments)

        def embed(ids):
            with torch.inference_mode():
                return pipeline({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["sentence_embedding"].float().cpu()

        for length in LENGTHS[name]:
            peer = "sentence-transformers, bfloat16, SDPA"
            tokens_per_s(options, peer, name, length, of_ids(options, length, embed), inputs="ids")
            tokens_per_s(options, peer, name, length, of_texts(options, length, pipeline), inputs="texts")
        folder = options.folder / f"{name}-adapters"
        base = AutoModel.from_pretrained(options.folder / name, **arguments).to(options.device)
        model = PeftModel.from_pretrained(base, folder / "a0", adapter_name="a0")
        for number in range(1, ADAPTERS):
            model.load_adapter(folder / f"a{number}", adapter_name=f"a{number}")
        model.to(options.device, torch.bfloat16).eval()

        def mixed(ids):
            names = [f"a{i % ADAPTERS}" for i in range(len(ids))]
            with torch.inference_mode():
                hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids), adapter_names=names).last_hidden_state
                return torch.nn.functional.normalize(hidden.mean(1)).float().cpu()

        for length in LENGTHS[name]:
            tokens_per_s(options, "PEFT, an adapter a text", name, length, of_ids(options, length, mixed), inputs="ids", adapters=ADAPTERS)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["make", "run"])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--tokenizer", type=pathlib.Path, help="a folder whose tokenizer the models get")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16384, 65536], help="of a batch; the best counts")
    parser.add_argument("--peak", type=int, default=8192, help="rows and columns of the product that shows the peak")
    options = parser.parse_args()
    globals()[options.job](options)


if __name__ == "__main__":
    main()
