//! The engine on a GPU. Where there is none, its kernels run on the CPU, in a build with the feature `emulated`; in one
//! without it these tests say that they are skipped. With TEST_DEVICE=cuda, or =emulated, all other tests run there too.

mod support;

use serde_json::{Value, json};
use support::{
    ADAPTERS, Door, config, copy_of, cosine, embeddings, gap, gpu, mixed, named, read, rows, test_device, texts,
    untrain,
};

/// Families of which each has something that the others do not.
const FAMILIES: [&str; 10] = [
    "bert",
    "mpnet",
    "qwen3",
    "modernbert",
    "gemma3",
    "jina-v2",
    "jina-v2-code",
    "nomic-v2-moe",
    "deberta-v2",
    "t5-gated",
];

/// A family's base and three adapters there.
fn door(family: &str, device: &str, keys: &[(&str, &str)]) -> Door {
    let adapters = ADAPTERS.map(|adapter| named(adapter, &format!("{family}/{adapter}")));
    let keys: Vec<_> =
        [("device", device), ("max_batch_tokens", "2048")].into_iter().chain(keys.iter().copied()).collect();
    Door::open(&[named("base", &format!("{family}/base"))], &adapters, &keys)
}

/// Every text under the base and every adapter in one request, and what the oracle answers.
fn asked(golden: &Value) -> (Value, Vec<Vec<f32>>) {
    let texts = texts(golden);
    let (body, pairs) = mixed(&texts);
    let place = |text: &String| texts.iter().position(|other| other == text).unwrap();
    let oracle = |(text, name): &(&String, Option<&str>)| rows(&golden[name.unwrap_or("base")])[place(text)].clone();
    let oracle = pairs.iter().map(oracle).collect();
    (body, oracle)
}

#[tokio::test]
async fn a_mixed_batch_is_within_1e5_of_the_oracle_and_in_16_bits_points_the_same_way() {
    let Some(device) = gpu() else { return };
    for family in FAMILIES {
        let golden = read(&format!("{family}/golden.json"));
        let (body, oracle) = asked(&golden);
        let (status, reply) = door(family, &device, &[]).ask(body.clone()).await;
        assert_eq!(status, 200, "{reply}");
        let error = gap(&embeddings(&reply), &oracle);
        let mut cosines = Vec::new();
        for dtype in ["bfloat16", "float16"] {
            let (status, reply) = door(family, &device, &[("dtype", dtype)]).ask(body.clone()).await;
            assert_eq!(status, 200, "{reply}");
            cosines.push(cosine(&embeddings(&reply), &oracle));
        }
        println!("{family:16} f32 {error:.1e}, cosines bf16 {:.6}, f16 {:.6}", cosines[0], cosines[1]);
        assert!(error <= 1e-5, "{family}: {error}");
        // Of checkpoints of random numbers; a trained model's vectors turn far less. Rounding to bf16 can send a token to
        // another expert, which is another network.
        let least = if family == "nomic-v2-moe" { 0.9 } else { 0.995 };
        assert!(cosines[0] >= least && cosines[1] >= 0.9998, "{family}: {cosines:?}");
    }
}

#[tokio::test]
async fn in_16_bits_a_base_is_the_same_with_adapters_beside_it() {
    let Some(device) = gpu() else { return };
    let text = "the quick brown fox jumps over the lazy dog";
    for family in FAMILIES {
        for dtype in ["bfloat16", "float16"] {
            let door = door(family, &device, &[("dtype", dtype)]);
            let alone = door.vectors("base", [text]).await;
            let body =
                json!({"model": "base", "adapters": [null, "lora-all"], "input": [text, text], "normalize": false});
            let (status, reply) = door.ask(body).await;
            assert_eq!(status, 200, "{reply}");
            let together = embeddings(&reply);
            assert!(gap(&together[..1], &alone) <= 1e-6, "{family} {dtype}: {}", gap(&together[..1], &alone));
            assert!(gap(&together[1..], &alone) > 1e-2, "{family} {dtype}: the adapter does nothing");
        }
    }
}

#[tokio::test]
async fn in_16_bits_an_adapter_that_was_never_trained_is_known_for_it() {
    let Some(device) = gpu() else { return };
    let untrained = copy_of("bert/lora-all");
    untrain(untrained.path());
    let adapters = [format!("untrained={}", untrained.path().display()), named("trained", "bert/lora-all")];
    for dtype in ["bfloat16", "float16"] {
        let keys = [("device", device.as_str()), ("max_batch_tokens", "256"), ("dtype", dtype)];
        let door = Door::open(&[named("base", "bert/base")], &adapters, &keys);
        let is_nothing = ["untrained", "trained"].map(|name| {
            let serving = door.app.serving().unwrap();
            serving.registry.find(name).unwrap().report.effect.as_ref().unwrap().is_nothing()
        });
        assert_eq!(is_nothing, [true, false], "{dtype}");
    }
}

#[tokio::test]
async fn adapters_that_are_read_while_others_are_tried_out_keep_their_order_and_errors_theirs() {
    let Some(device) = gpu() else { return };
    // More than are read at once.
    let mut adapters: Vec<String> =
        (0..20).map(|number| named(&format!("a{number}"), &format!("bert/{}", ADAPTERS[number % 3]))).collect();
    let keys = [("device", device.as_str()), ("max_batch_tokens", "256"), ("threads", "1")];
    let load = |adapters: &[String]| Door::with(config(&[named("base", "bert/base")], adapters, &keys).unwrap());
    let door = load(&adapters).unwrap();
    let serving = door.app.serving().unwrap();
    let names: Vec<&str> = serving.registry.iter().map(|served| served.label()).collect();
    assert_eq!(names[0], "base");
    assert!(names[1..].iter().enumerate().all(|(number, name)| *name == format!("a{number}")), "{names:?}");
    let golden = read("bert/golden.json");
    let vectors = door.vectors("a19", texts(&golden)).await;
    assert!(gap(&vectors, &rows(&golden[ADAPTERS[19 % 3]])) <= 1e-5);
    for number in [19, 12] {
        adapters[number] = format!("a{number}=no/folder-{number}");
        let error = load(&adapters).err().unwrap().to_string();
        assert!(error.contains(&format!("no/folder-{number}")), "{error}");
    }
}

#[tokio::test]
async fn a_batch_that_does_not_fit_into_memory_is_halved_and_nothing_is_lost() {
    if test_device().is_some() || gpu().is_none() {
        return;
    }
    let inputs: Vec<String> = (0..600).map(|i| format!("the quick brown fox jumps over the lazy dog {i}")).collect();
    let body = json!({"model": "base", "input": inputs, "normalize": false});
    let mut answers = Vec::new();
    for device in ["emulated:4", "emulated:256"] {
        let keys = [("device", device), ("max_batch_tokens", "100000")];
        let door = Door::open(&[named("base", "bert/base")], &[], &keys);
        let (status, reply) = door.ask(body.clone()).await;
        assert_eq!(status, 200, "{device}: {reply}");
        answers.push((embeddings(&reply), door.counter("veneer_batches_halved_total").await));
    }
    let [(small, some), (large, as_many)] = answers.as_slice() else { panic!("two devices") };
    assert!(*some > 0 && some == as_many, "{some} {as_many}");
    assert!(gap(small, large) <= 1e-6);
}

#[tokio::test]
async fn a_batch_is_as_large_as_the_free_memory_allows() {
    if test_device().is_some() || gpu().is_none() {
        return;
    }
    let tokens = ["emulated:16", "emulated:64"].map(|device| {
        let door = Door::open(&[named("base", "bert/base")], &[], &[("device", device)]);
        let mut limits = door.app.config.limits.clone();
        limits.max_batch_tokens = 0;
        door.app.serving().unwrap().registry.places(&limits).unwrap()[0].batch_tokens_max
    });
    println!("{tokens:?}");
    assert!(tokens[0] > 100 && tokens[1] > 3 * tokens[0], "{tokens:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_devices_share_the_requests_and_answer_alike() {
    if test_device().is_some() || gpu().is_none() {
        return;
    }
    let golden = read("bert/golden.json");
    let (body, oracle) = asked(&golden);
    let door = door("bert", "emulated:64, emulated:64", &[("max_batch_tokens", "64")]);
    let answers = futures_util::future::join_all((0..6).map(|_| door.ask(body.clone()))).await;
    for (status, reply) in answers {
        assert_eq!(status, 200, "{reply}");
        assert!(gap(&embeddings(&reply), &oracle) <= 1e-5);
    }
    let batches = [0, 1].map(|device| format!("veneer_batches_total{{device=\"{device}\"}}"));
    for line in batches {
        assert!(door.counter(&line).await > 0, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_that_do_not_fit_into_memory_together_take_turns_there() {
    if test_device().is_some() || gpu().is_none() {
        return;
    }
    let golden = read("bert/golden.json");
    let (body, oracle) = asked(&golden);
    let brought = "veneer_adapters_brought_total{result=\"ok\"}";
    let shares = ADAPTERS[..2].iter().map(|name| json!({"name": name, "weight": 0.5})).collect::<Vec<_>>();
    let blend = json!({"model": "base", "adapters": shares, "input": "a small text", "normalize": false});
    let expected = door("bert", "cpu", &[]).ask(blend.clone()).await.1;
    // None fits, so that each is there alone; one or two do; all do.
    for bytes in ["1", "30000", "0"] {
        let door = door("bert", "emulated:64", &[("max_adapter_bytes", bytes)]);
        let before = door.counter(brought).await;
        let answers = futures_util::future::join_all((0..4).map(|_| door.ask(body.clone()))).await;
        for (status, reply) in answers {
            assert_eq!(status, 200, "{reply}");
            assert!(gap(&embeddings(&reply), &oracle) <= 1e-5);
        }
        let more = door.counter(brought).await - before;
        println!("{bytes}: {more} adapters brought");
        assert!(more >= 3);
        let (status, reply) = door.ask(blend.clone()).await;
        match bytes {
            "0" => assert!(gap(&embeddings(&reply), &embeddings(&expected)) <= 1e-5, "{reply}"),
            _ => assert!(status == 400 && reply["error"]["param"] == "adapters", "{reply}"),
        }
    }
}
