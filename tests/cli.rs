//! The binary as an operator meets it: configuration layers, refusals, one-off commands, start and drain.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::{fixture, gap, named, read, rows};

/// The binary with no environment but what a test gives it.
fn veneer(args: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_veneer"));
    command.args(args).env_clear().envs(environment.iter().copied());
    command
}

fn output(args: &[&str]) -> Output {
    veneer(args, &[]).output().unwrap()
}

/// Exit code 2 and one line that has all parts. A server that should have refused is ended, with another code.
fn assert_refused(args: &[&str], parts: &[&str]) {
    let mut command = Command::new("timeout");
    command.args(["60", env!("CARGO_BIN_EXE_veneer")]).args(args).env("VENEER_SERVER__PORT", "0");
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("veneer: ")).collect();
    assert_eq!(lines.len(), 1, "{said}");
    for part in parts {
        assert!(lines[0].contains(part), "'{part}' is not in: {said}");
    }
}

/// A running server on a free port, ended with the test.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(args: &[&str], environment: &[(&str, &str)]) -> Self {
        let args: Vec<&str> = ["serve", "--port", "0"].into_iter().chain(args.iter().copied()).collect();
        let mut child = veneer(&args, environment).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split("http://").nth(1).unwrap_or_else(|| panic!("no address in {line:?}"));
        let address = address.split_whitespace().next().unwrap().to_owned();
        Self { child, address }
    }

    /// Sends a whole HTTP/1.0 request and returns everything that comes back.
    fn call(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }

    /// Returns once an embedding request is under way.
    fn wait_for_a_request(&self) {
        self.wait_for_requests(1);
    }

    /// Until so many are under way, or answered.
    fn wait_for_requests(&self, count: usize) {
        let begun = Instant::now();
        loop {
            let metrics = self.call("GET /metrics HTTP/1.0\r\n\r\n");
            let number = |name: &str| {
                let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
                value.map_or(0, |value| value.parse::<usize>().unwrap())
            };
            if number("veneer_requests_running") + number("te_request_count") == count {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "not {count} requests are under way:\n{metrics}");
        }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn post(body: &str) -> String {
    format!("POST /v1/embeddings HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn flags_go_before_environment_before_file_before_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("veneer.toml");
    std::fs::write(&file, "[server]\nport = 1111\n[limits]\nmax_inputs = 11\nmax_batch_tokens = 12\n").unwrap();
    let args = ["serve", "--print-config", "--config", file.to_str().unwrap(), "--port", "3333"];
    let environment = [
        ("VENEER_SERVER__PORT", "2222"),
        ("VENEER_LIMITS__MAX_INPUTS", "22"),
        ("HF_HUB_OFFLINE", "1"),
        ("HF_TOKEN", "secret"),
    ];
    let output = veneer(&args, &environment).output().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    for line in ["port = 3333", "max_inputs = 22", "max_batch_tokens = 12", "host = \"127.0.0.1\"", "offline = true"] {
        assert!(shown.contains(line), "{line} is not in {shown}");
    }
    assert!(!shown.contains("secret"), "a token is shown");
}

#[test]
fn every_key_is_a_flag_and_an_environment_variable() {
    let help = String::from_utf8(output(&["serve", "--help"]).stdout).unwrap();
    let keys = veneer::config::keys();
    assert!(keys.len() > 15);
    for key in keys {
        assert!(help.contains(&format!("--{} ", key.name.replace('_', "-"))), "{}", key.name);
        assert!(help.contains(&key.env_name()), "{}", key.env_name());
        // Whole sentences, on however many lines.
        assert!(key.comment.starts_with(char::is_uppercase) && key.comment.ends_with(['.', ')']), "{}", key.comment);
    }
}

#[test]
fn what_kubernetes_sets_for_a_service_called_veneer_is_not_ours() {
    let environment = [("VENEER_PORT", "tcp://10.0.0.1:8000"), ("VENEER_SERVICE_HOST", "10.0.0.1")];
    assert!(veneer(&["serve", "--print-config"], &environment).output().unwrap().status.success());
}

#[test]
fn a_bad_configuration_is_one_line_and_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("veneer.toml");
    std::fs::write(&file, "[server]\nprot = 1\n").unwrap();
    let base = named("base", "bert/base");
    assert_refused(&["serve", "--config", file.to_str().unwrap()], &["veneer.toml", "prot"]);
    assert_refused(&["serve"], &["--model"]);
    assert_refused(&["serve", "--model", "/no/such/folder"], &["/no/such/folder", "does not exist"]);
    assert_refused(&["serve", "--model", &base, "--port", "99999"], &["--port", "99999"]);
    assert_refused(&["serve", "--model", &base, "--device", "cuda"], &["cuda", "CUDA"]);
    assert_refused(&["serve", "--model", &base, "--dtype", "int4"], &["int4", "float32, bfloat16, float16, int8"]);
    assert_refused(&["serve", "--model", &base, "--model", &base], &["base", "twice"]);
    assert_refused(&["serve", "--model", &base, "--max-inputs", "0"], &["max_inputs"]);
    let adapter = named("a", "minilm/minilm-stsb-r8-qv");
    assert_refused(&["serve", "--model", &base, "--adapter", &adapter], &["adapter_model.safetensors", "384"]);
    let unknown = veneer(&["serve", "--print-config"], &[("VENEER_SERVER__PROT", "1")]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
}

#[test]
fn a_missing_base_is_one_line_that_names_file_key_and_way_out() {
    let adapter = fixture("minilm/minilm-stsb-r8-qv").display().to_string();
    let parts = ["adapter_config.json", "base_model_name_or_path", "out/all-MiniLM-L6-v2", "--base"];
    assert_refused(&["serve", "--model", &adapter, "--offline", "true"], &parts);
}

#[test]
fn a_base_given_by_hand_takes_the_place_of_the_trainers_path() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let text = std::fs::read(fixture("bert/lora-all").join(name)).unwrap();
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let config = std::fs::read_to_string(folder.path().join("adapter_config.json")).unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), config.replace("../base", "/home/trainer/base")).unwrap();
    let (adapter, base) = (folder.path().display().to_string(), fixture("bert/base").display().to_string());
    assert_refused(&["serve", "--model", &adapter], &["/home/trainer/base"]);
    assert!(output(&["embed", "--model", &adapter, "--base", &base, "a text"]).status.success());
}

#[test]
fn embed_prints_a_json_line_a_text() {
    let golden = read("mpnet/golden.json");
    let texts: Vec<String> = serde_json::from_value(golden["texts"].clone()).unwrap();
    let (base, adapter) = (fixture("mpnet/base"), fixture("mpnet/lora-all"));
    let output = output(&[
        "embed",
        "--model",
        base.to_str().unwrap(),
        "--adapter",
        adapter.to_str().unwrap(),
        &texts[1],
        &texts[2],
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<serde_json::Value> =
        output.stdout.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    let ours: Vec<Vec<f32>> = lines.iter().map(|l| serde_json::from_value(l["embedding"].clone()).unwrap()).collect();
    assert!(gap(&ours, &rows(&golden["lora-all"])[1..3]) <= 1e-5);
}

#[test]
fn embed_asks_the_model_that_it_was_given_whatever_else_is_configured() {
    let base = fixture("bert/base").display().to_string();
    let one = format!("one={}", fixture("bert/lora-all").display());
    let embed = |variables: &[(&str, &str)]| {
        let output = veneer(&["embed", "--model", &base, "a text"], variables).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let plain = embed(&[]);
    assert_eq!(embed(&[("VENEER_ADAPTER", &one)]), plain, "an adapter that the environment names is not asked for");
    let other = fixture("mpnet/base").display().to_string();
    assert_eq!(embed(&[("VENEER_MODEL", &other)]), plain, "nor is a model");
    let empty = [("VENEER_CONFIG", ""), ("VENEER_BASE", ""), ("VENEER_SERVER__PORT", ""), ("HF_HOME", "")];
    assert_eq!(embed(&empty), plain, "what is empty is not set");
}

#[test]
fn check_says_what_an_adapter_changes_or_why_it_does_not_load() {
    let base = fixture("qwen3/base").display().to_string();
    let check = |adapter: &Path| output(&["check", "--model", &base, "--adapter", adapter.to_str().unwrap()]);
    let fits = check(&fixture("qwen3/lora-attention"));
    let said = String::from_utf8(fits.stdout).unwrap();
    assert!(fits.status.success() && said.contains("layers.2.self_attn.q_proj: rank 4") && said.contains("cosine"));
    let foreign = check(&fixture("bert/lora-attention"));
    let said = String::from_utf8(foreign.stderr).unwrap();
    assert_eq!(foreign.status.code(), Some(1));
    assert!(said.contains("adapter_model.safetensors") && said.contains("encoder.layer.0"), "{said}");
}

#[test]
fn a_folder_of_adapters_is_served_under_the_folders_names() {
    let (base, adapters) = (named("base", "bert/base"), tempfile::tempdir().unwrap());
    for name in ["lora-all", "lora-attention"] {
        std::os::unix::fs::symlink(fixture("bert").join(name), adapters.path().join(name)).unwrap();
    }
    std::fs::create_dir(adapters.path().join("no adapter")).unwrap();
    let server = Server::start(&["--model", &base, "--adapters", adapters.path().to_str().unwrap()], &[]);
    let reply = server.call(&post(r#"{"model":"lora-all","input":"x"}"#));
    assert!(reply.starts_with("HTTP/1.0 200"), "{reply}");
    let health = output(&["health", "--address", &server.address]);
    assert!(health.status.success());
}

#[test]
fn models_and_adapters_can_come_from_the_environment() {
    let (base, adapter) = (named("base", "bert/base"), named("a", "bert/lora-all"));
    let server = Server::start(&[], &[("VENEER_MODEL", &base), ("VENEER_ADAPTER", &adapter)]);
    assert!(server.call(&post(r#"{"model":"base:a","input":"x"}"#)).contains("200 OK"));
}

#[test]
fn sigterm_lets_requests_under_way_finish_and_ends_with_0() {
    let mut server = Server::start(&["--model", &named("base", "bert/base")], &[]);
    // A request whose body is not there yet is under way.
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let body = r#"{"model":"base","input":"last one"}"#;
    let request = post(body);
    let (head, tail) = request.split_at(request.len() - body.len());
    stream.write_all(head.as_bytes()).unwrap();
    server.wait_for_a_request();
    server.signal("-TERM");
    // Once new connections are refused, draining has begun.
    let begun = Instant::now();
    while TcpStream::connect(&server.address).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(10), "it goes on listening");
        std::thread::yield_now();
    }
    stream.write_all(tail.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.contains("200 OK"), "{reply}");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_server_that_is_not_there_is_not_healthy() {
    assert_eq!(output(&["health", "--address", "127.0.0.1:1"]).status.code(), Some(1));
}

#[test]
fn a_caller_that_never_finishes_does_not_hold_up_the_end() {
    let mut server = Server::start(&["--model", &named("base", "bert/base"), "--drain-timeout-s", "1"], &[]);
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.write_all(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{").unwrap();
    server.wait_for_a_request();
    server.signal("-TERM");
    let begun = Instant::now();
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn who_still_waits_when_draining_takes_too_long_is_told_so() {
    let args =
        ["--drain-timeout-s", "1", "--threads", "1", "--max-batch-tokens", "64", "--max-queued-tokens", "100000000"];
    let mut server = Server::start(&[&["--model", &named("base", "bert/base")][..], &args].concat(), &[]);
    let text = "the quick brown fox jumps over the lazy dog ".repeat(4);
    let body = serde_json::json!({"model": "base", "input": vec![text; 2048], "truncate": true}).to_string();
    let ask = |_| {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.write_all(post(&body).as_bytes()).unwrap();
        stream
    };
    let callers: Vec<TcpStream> = (0..40).map(ask).collect();
    server.wait_for_requests(callers.len());
    server.signal("-TERM");
    let mut refused = 0;
    for mut stream in callers {
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let is_refused = reply.contains("503 Service Unavailable") && reply.contains("shutting down");
        assert!(is_refused || reply.contains("200 OK"), "a reply that is cut off: {reply}");
        refused += usize::from(is_refused);
    }
    assert!(refused > 0, "there was time for all of them");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}
