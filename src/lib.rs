//! **veneer** serves sentence-embedding models over HTTP, with any number of PEFT adapters laid over each base model like
//! a veneer on solid wood. A request names a base or an adapter; texts for different adapters share one packed batch,
//! one copy of the base weights and one pass through the device. What it returns is what sentence-transformers with
//! PEFT would return.
//!
//! # Words
//! *Request*, *input* (one text of a request), *sequence* (its tokens), *batch* (packed sequences), *segment* (the rows
//! of one adapter in a batch), *base*, *adapter*, *site* (a module an adapter changes, named by its checkpoint path),
//! *rank*, *scale*, *delta* (the change at one site), *footprint* (a hash of the sites that an adapter changes),
//! *blend* (several adapters at once), *checkpoint*, *family* (an architecture's spec and names), *spec*, *hidden
//! states*, *pooling*, *pipeline* (what follows the transformer), *route* (what becomes of one kind of text, such as
//! queries, where a model tells them apart), *registry*, *lease* (a request's hold on what it was resolved to),
//! *worker*, *permit*, *generation* and *fingerprint* (hashes of an adapter's bits, and of those it lies on), *probe*
//! (a sentence that shows what an adapter does).
//!
//! # The house
//! From the top; an arrow of knowledge only ever goes down. `tests/tidy.rs` holds it.
//!
//! | room | what it holds |
//! |---|---|
//! | `main.rs`, `once.rs` | the binary: arguments to configuration to telemetry to serving to draining; what runs once |
//! | [`cli`] | subcommands, and a flag for every key of the configuration |
//! | [`http`] | the only place that names axum or a status code: routes, layers, [`http::embed`] and one file a dialect |
//! | [`registry`] | names to routes of (base, adapter, pipeline, text); how all of it is loaded, checked, and named by its bits |
//! | [`engine`] | the queue, the batcher (pure), the workers: one thread each that owns a device; which adapters lie there |
//! | [`adapters`] | PEFT files to deltas; everything binds or the load fails |
//! | [`text`] | prompts, tokenizers, limits, truncation; ways around the `tokenizers` library that give its ids sooner |
//! | [`hub`] | a folder or a Hub `repo@revision` to files |
//! | [`model`] | a folder to a model; a packed batch to vectors. Knows no text, HTTP, queue or PEFT file |
//! | [`kernels`] | the operations, on the CPU a fast twin and a plain one each, on a GPU one more; the only unsafe but for mapped weights |
//! | [`config`], [`error`], [`folder`], [`telemetry`] | leaves |
//!
//! # One request
//! 1. `http/openai.rs` parses the body into a [`http::Call`]; what is wrong with it is refused here.
//! 2. [`registry::Registry::find`] turns the name into a lease before anything is queued: unknown is 404, never a
//!    silent base vector. Where the model has routes, the kind of text chooses one: [`registry::Served::route`].
//! 3. [`text::Text::encode`] tokenizes, long texts on blocking threads, as many as are configured, and stops with its caller.
//!    A [`text::Reader`] finds the library's ids by itself where it knows how; the other parts of a text the library reads.
//! 4. [`engine::Engine::admit`] takes permits, one a token; a full queue is 429.
//! 5. A worker takes what waits for the oldest sequence's model, up to `max_batch_tokens`, and sorts it so that each
//!    adapter is one row range. Several devices with the same models take from one queue. An adapter that is not on a GPU
//!    yet is brought by a thread beside the worker; what waits for it stays in the queue, and the rest goes on. No timer: while the device computes, the queue fills, and that is the batching.
//!    On a CPU, where much waits, each thread takes batches of its own, as long as a core's cache holds, so that no
//!    product waits for another thread and every answer goes out as soon as it is there; where little does, it is one
//!    batch, whose operations the threads share. On a GPU the next batch is packed and asked for while one is computed; one
//!    that its memory does not hold is begun again in halves. What a small one asks for is sent at once, as a graph if
//!    it came before (`kernels/cuda/pass.rs`).
//! 6. [`model::Model::embed`]: one pass of the transformer over packed rows, no padding; each site adds its deltas to
//!    the rows of the adapters that have one.
//! 7. Pipelines by segment, one copy to the host, one reply a sequence; the handler joins them in input order.
//!
//! # Invariants
//! - **Packed always.** Hidden states are `[tokens, hidden]` plus sequence offsets. There is no padded path.
//! - **One transformer.** An architecture is a [`model::Spec`], plain data. Nothing after `model/families` asks which.
//! - **One linear.** Its weight is stacked from checkpoint modules, each a site; separate q, k, v and a fused qkv are
//!   the same thing, always one product.
//! - **Site = checkpoint path.** Every tensor of an adapter is consumed once and every A has its B, or the load fails
//!   and names what was left over. The same holds for a base's own tensors.
//! - **Base traffic pays nothing.** Rows without an adapter are not in a batch's [`model::Plan`].
//! - **Alone = together** within 1e-6, and a base's vectors are bit-identical whatever adapters ran before. On a GPU
//!   cuBLASLt may take another algorithm for another number of rows, which moved vectors
//!   of float32 by up to 3.3e-6, and in 16 bits rounds a sum to its neighbour. Where a product activates its own sums there,
//!   rows that adapters change before that are multiplied apart (`model/layers/linear.rs`), so that no other row is rounded
//!   in another place for them.
//! - **Equal tags, equal vectors.** A reply's tag is a hash over every file that its loading found, see
//!   [`folder::Folder::found`]. A loader that reads files by another way than [`folder::Folder`] breaks this.
//! - **A GPU is tried before it is trusted.** Each kind of operation, small and in the format of its matrices, runs on it and
//!   on the CPU before models are loaded (`registry/devices.rs`); where the two differ, it serves nobody, unless
//!   `self_test` is false.
//! - **Refuse what is not understood.** Never a 200 with a wrong vector; a vector that is not finite is a 500.
//! - **Every queue, body, batch and wait has a bound**, and it is in `config/default.toml`. (Not yet: the number of
//!   connections, and the time in which a request's head arrives.)
//! - Only `main.rs` reads the environment and the arguments. `model` never imports `adapters`.
//!
//! # How to add a family
//! 1. Most architectures are a variation of one of two: `PostNorm` in `families/post_norm.rs` (BERT and its heirs) and
//!    `Decoder` in `families/decoder.rs` (Llama and its heirs, causal or not). Write `families/<name>.rs`: a serde
//!    `Config` of the keys of config.json that the architecture reads, and `Family::spec`, which fills one of the two in
//!    and changes what differs in the [`model::Spec`] that it makes, with every module's checkpoint path. Rotary settings
//!    are `families/rope.rs`. An architecture that differs in nothing but keys shares a file with its like (as Qwen2 and
//!    Qwen3 do).
//! 2. Keys: what transformers' configuration class gives a default may be missing, and then means that default, unless
//!    every file has it, since transformers writes it. Refuse by name a value that changes vectors and is not supported;
//!    ignore what only training or other heads read.
//! 3. Idle modules, in checkpoints but never run: look through the reference's `For...` classes, whose heads are saved
//!    beside the body. A tensor that is neither read nor idle keeps a checkpoint from loading.
//! 4. Name it in the table of `families/mod.rs` (in order of `model_type`), in `families/tokenizers.rs` where transformers
//!    has a class of tokenizers for it, and in README.md under "What is supported". A class that
//!    `text/tokenizer/classes.rs` lacks goes there, with rows in `tests/fixtures/classes.py`.
//! 5. Fixtures: a row in the table of `tests/fixtures/families.py`, and `python generate.py . <folder>` there, which
//!    writes `<folder>` anew; what no library can load goes to `legacy.py`. Name the folder in `FAMILIES` of
//!    `tests/support`. `cargo test --test golden -- --nocapture` then prints its line; `queue.rs` and `families.rs` hold
//!    it to mixed batches and half precision.
//! 6. Where the spec lacks something, add a field or one enum arm in `model/spec`, its meaning in one file of
//!    `model/layers`, and arithmetic, if it needs any, in one file of `kernels` with a plain twin in its tests, one of
//!    `kernels/cuda` with its kernels in a `.cu` beside it, a line in `kernels/twins.rs`, and a case in `kernels/selftest`.
//!
//! # How to add a type of adapter
//! 1. One file in `adapters/methods`: a reader of the keys of adapter_config.json that change vectors (what only training
//!    reads is left, what is not understood stays and is refused), and a [`model::Delta`] of one module's tensors, each
//!    taken once with its shape. What every type may have, whole weights and biases and rows of tokens, is not its affair.
//! 2. Prefer a low-rank update or a scale, which lies beside the base's weight; else `Module::plus` holds the effective
//!    weight. `is_sum` is true only where PEFT adds several such adapters up, and then they can be blended.
//! 3. What of it is refused says what to do instead, from `ways_out.rs`.
//! 4. A line in the table of `methods/mod.rs`, in README.md, and in the tables of `tests/fixtures/peft_types.py`, with the
//!    merge by hand; `tests/peft.rs` finds the rest.
//!
//! # Absent on purpose
//! - A padded batch, a merged copy of a model, a timer in the batcher, a lock around a model.
//! - Not built yet: loading adapters while serving.
//! - Products of our own where cuBLASLt's can be had. One with its adapters and its activation in one launch was built, and had
//!   half of cuBLASLt's speed; attention has kernels of its own, on a GPU of compute capability 9.0 those in which four warps
//!   multiply together (`kernels/cuda/attention_group.cu`).
//! - candle's CUDA. Of its operations a forward pass needs a dozen, all trivial; for them a build takes minutes of nvcc, and
//!   the binary does not start where CUDA's libraries are missing. [`kernels::Tensor`] is candle's on the CPU and an array of
//!   our own on a GPU, over a driver that is opened at run time and that a test can replace: the feature `emulated` runs
//!   the same kernels on the CPU, with every block's threads in any order.
//! - Of PEFT what learns prompts or prefixes, routes between adapters, draws its matrices from torch's random numbers, or
//!   changes the base in ways that its weights do not tell (LoftQ, CorDA).
//! - Of sentence-transformers' modules those that are no part of a transformer's pipeline (convolutions, LSTMs, words and
//!   their weights, images, sparse and multi-vector encoders), and its modules on features under names of their own.
//! - A Router in a forward pass: at load every route becomes a pipeline, and a request's kind of text chooses one.
//! - Hidden states in less than f32: `dtype` is that of a base's matrices, and of what they and attention multiply at that
//!   moment ([`kernels::Format`]); between products all is f32, and so are norms and adapters. On a GPU what a product gives
//!   is of `dtype` until it is added to the hidden states, and so are the factors of adapters; and a sum that a norm passes on
//!   is of 24 bits, since there it is the bytes that take time (`kernels/cuda/split.cuh`).
//! - A pool of tasks below the engine: [`kernels::Threads`] share one operation, or take batches from the queue, never both.
//! - `folder` is a leaf, not part of `hub`, because models, adapters and tokenizers read folders and know no Hub.

pub mod adapters;
pub mod cli;
pub mod config;
pub mod engine;
pub mod error;
pub mod folder;
pub mod http;
pub mod hub;
pub mod kernels;
pub mod model;
pub mod registry;
pub mod telemetry;
pub mod text;
