//! The queue: adapters mixed in one batch, order, bounds, and callers that go away.

mod support;

use serde_json::{Value, json};
use std::time::Duration;
use support::{ADAPTERS, Door, FAMILIES, embeddings, gap, named, read, together_max};
use veneer::error::Error;

/// Eight adapters of one base, from three checkpoints under several names.
fn eight() -> Vec<String> {
    (0..8).map(|i| named(&format!("a{i}"), &format!("bert/{}", ADAPTERS[i % 3]))).collect()
}

fn texts() -> Vec<String> {
    serde_json::from_value(read("bert/golden.json")["texts"].clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_adapters_and_the_base_at_once_are_each_as_alone() {
    let door = std::sync::Arc::new(Door::open(&[named("base", "bert/base")], &eight(), &[]));
    let names: Vec<String> = (0..8).map(|i| format!("a{i}")).chain(["base".into()]).collect();
    let mut alone = Vec::new();
    for name in &names {
        alone.push(door.vectors(name, texts()).await);
    }
    // All at once, each text its own request, several rounds.
    let mut tasks = tokio::task::JoinSet::new();
    for round in 0..6 {
        for (name_index, name) in names.iter().enumerate() {
            for (text_index, text) in texts().into_iter().enumerate() {
                let (door, name) = (door.clone(), name.clone());
                tasks.spawn(async move { (name_index, text_index, round, door.vectors(&name, [text]).await) });
            }
        }
    }
    while let Some(done) = tasks.join_next().await {
        let (name, text, _, vectors) = done.unwrap();
        let gap = gap(&vectors, &alone[name][text..=text]);
        assert!(gap <= together_max(), "{} text {text}: {gap}", names[name]);
    }
    assert!(gap(&alone[0], &alone[8]) > 1e-2, "an adapter is not its base");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_bases_take_turns_on_one_device() {
    let door = Door::open(&[named("b", "bert/base"), named("q", "qwen3/base")], &[], &[]);
    let (bert, qwen) = (door.vectors("b", texts()).await, door.vectors("q", texts()).await);
    let (again_bert, again_qwen) = tokio::join!(door.vectors("b", texts()), door.vectors("q", texts()));
    assert_eq!((bert, qwen), (again_bert, again_qwen));
}

#[tokio::test]
async fn batches_smaller_than_a_request_give_the_same_vectors_in_input_order() {
    for family in FAMILIES {
        let base = [named("base", &format!("{family}/base"))];
        let whole = Door::open(&base, &[], &[]).vectors("base", texts()).await;
        for tokens in ["1", "20", "64"] {
            let split = Door::open(&base, &[], &[("max_batch_tokens", tokens)]).vectors("base", texts()).await;
            assert!(gap(&whole, &split) <= 2.0 * together_max(), "{family} {tokens}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vectors_of_many_texts_are_each_its_own() {
    let door = Door::open(&[named("base", "bert/base")], &[], &[]);
    let words = texts().join(" ");
    let words: Vec<&str> = words.split_whitespace().collect();
    let many: Vec<String> = (0..150)
        .map(|i| words[i % words.len()..].iter().take(1 + i % 7).copied().collect::<Vec<_>>().join(" "))
        .collect();
    let together = door.vectors("base", many.clone()).await;
    for (index, text) in many.into_iter().enumerate() {
        let alone = door.vectors("base", [text]).await;
        assert!(gap(&together[index..=index], &alone) <= together_max(), "text {index}");
    }
}

#[tokio::test]
async fn a_request_larger_than_the_queue_is_answered_when_it_is_empty() {
    let door = Door::open(&[named("base", "bert/base")], &[], &[("max_queued_tokens", "8")]);
    assert_eq!(door.vectors("base", texts()).await.len(), texts().len());
}

/// A body that keeps the worker busy for a while.
fn long() -> Value {
    let text = "the quick brown fox jumps over the lazy dog ".repeat(4);
    json!({"model": "base", "input": vec![text; 400], "truncate": true})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_429_with_retry_after_and_no_request_is_lost() {
    let door = Door::open(&[named("base", "bert/base")], &[], &[("max_queued_tokens", "20000")]);
    let ask = |body: Value| {
        let request = axum::http::Request::post("/v1/embeddings").body(axum::body::Body::from(body.to_string()));
        door.send(request.unwrap())
    };
    let replies = futures_util::future::join_all((0..6).map(|_| ask(long()))).await;
    let (mut served, mut refused) = (0, 0);
    for reply in replies {
        match reply.status().as_u16() {
            200 => served += 1,
            429 => {
                let seconds: u64 = reply.headers()["retry-after"].to_str().unwrap().parse().unwrap();
                assert!(seconds >= 1);
                let (_, error) = support::parts(reply).await;
                assert_eq!(error["error"]["type"], "rate_limit_error");
                refused += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert!(served >= 1 && refused >= 1, "{served} served, {refused} refused");
    // The places are free again.
    assert_eq!(ask(long()).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_frees_its_place() {
    let door = Door::open(&[named("base", "bert/base")], &[], &[("max_queued_tokens", "20000")]);
    for _ in 0..20 {
        // Dropped at its first wait, as a handler is when its connection closes.
        let gone = tokio::time::timeout(Duration::from_millis(5), door.ask(long())).await;
        drop(gone);
    }
    let engine = &door.app.serving().unwrap().engine;
    let patience = tokio::time::timeout(Duration::from_secs(20), async {
        while engine.queued_tokens() > 0 {
            tokio::task::yield_now().await;
        }
    });
    assert!(patience.await.is_ok(), "{} tokens are still held", engine.queued_tokens());
    let (status, reply) = door.ask(json!({"model": "base", "input": "still here"})).await;
    assert_eq!(status, 200);
    assert_eq!(embeddings(&reply).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_in_the_end_is_refused_and_workers_do_not_outlive_what_they_compute() {
    let door = Door::open(&[named("base", "bert/base")], &[], &[("max_batch_tokens", "64")]);
    let patience = Duration::from_secs(20);
    let engine = &door.app.serving().unwrap().engine;
    let early = engine.admit(1).unwrap();
    let end = async {
        while engine.queued_tokens() == 1 {
            tokio::task::yield_now().await;
        }
        door.app.end();
        while engine.is_alive() || engine.queued_tokens() > 1 {
            tokio::task::yield_now().await;
        }
    };
    let (refused, ended) = tokio::join!(door.ask(long()), tokio::time::timeout(patience, end));
    assert!(ended.is_ok(), "a worker is still there");
    assert_eq!((refused.0, &refused.1["error"]["code"]), (503, &json!("unavailable")), "{}", refused.1);
    // Whoever was let in and comes now.
    assert!(matches!(engine.submit(Vec::new(), early), Err(Error::Unavailable(_))));
}
