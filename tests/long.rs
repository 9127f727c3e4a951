//! Memory of long inputs. Alone in its file: what it measures is the whole process.

mod support;

use serde_json::json;
use support::{Door, copy_of, edit_json, test_device};

/// The process's highest resident memory so far, in MiB.
fn peak_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() >> 10
}

/// A family's base that reads so many tokens.
async fn embed(family: &str, tokens: usize) -> usize {
    let folder = copy_of(&format!("{family}/base"));
    for (file, key) in [("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")] {
        edit_json(&folder.path().join(file), |content| content[key] = json!(tokens));
    }
    let door = Door::open(&[format!("m={}", folder.path().display())], &[], &[("max_batch_tokens", "65536")]);
    let before = peak_mib();
    let ids: Vec<usize> = (0..tokens).map(|i| 5 + i * 7 % 300).collect();
    let (status, reply) = door.ask(json!({"model": "m", "input": ids})).await;
    assert_eq!(status, 200, "{reply}");
    assert_eq!(reply["usage"]["total_tokens"], tokens);
    peak_mib() - before
}

/// One head's scores of 16,384 tokens by 16,384 are 1 GiB; those of 8,192 by 8,192 are 256 MiB.
#[tokio::test]
async fn memory_does_not_grow_with_the_square_of_the_length() {
    if let Some(device) = test_device() {
        return println!("skipped: the memory of {device} is not this process's");
    }
    for (family, tokens) in [("modernbert", 8_192), ("qwen3", 16_384)] {
        let grown = embed(family, tokens).await;
        println!("{family:12} {tokens} tokens: {grown} MiB more");
        assert!(grown < 128, "{family}: {grown} MiB");
    }
}
