//! Sources, folders and downloads, against a stand-in for the Hub on this machine.

mod hub_stand_in;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::thread;

use hub_stand_in::StandIn;
use serde_json::Value;
use tempfile::TempDir;
use veneer::error::Error;
use veneer::folder::Folder;
use veneer::hub::{Hub, HubConfig, Source};

const BASE: &str = "org/base";
const BASE_FILES: [&str; 6] = [
    "config.json",
    "modules.json",
    "tokenizer.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "model.safetensors",
];

/// A repo's folder, a stand-in that serves it as [`BASE`], and an empty cache.
struct Scene {
    folder: TempDir,
    home: TempDir,
    hub: StandIn,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in BASE_FILES {
            write(folder.path(), name, &format!("{{\"of\": \"{name}\"}}"));
        }
        write(folder.path(), "model.safetensors", &"weights ".repeat(50_000));
        let hub = StandIn::start(&[(BASE, "main", folder.path())]);
        Self { folder, home: tempfile::tempdir().unwrap(), hub }
    }

    fn fetch(&self, source: &str) -> Result<Folder, Error> {
        self.fetch_with(source, |_| {})
    }

    fn fetch_with(&self, source: &str, change: impl Fn(&mut HubConfig)) -> Result<Folder, Error> {
        let mut config = HubConfig {
            home: self.home.path().to_owned(),
            token: None,
            endpoint: self.hub.endpoint.clone(),
            offline: false,
        };
        change(&mut config);
        Hub::new(config)?.fetch(&Source::parse(source)?)
    }

    fn fetch_error(&self, source: &str) -> String {
        one_line(self.fetch(source).unwrap_err())
    }

    /// The ranges of files that were asked for.
    fn ranges(&self) -> Vec<String> {
        let requests = self.hub.file_requests().into_iter();
        requests.filter_map(|request| request.range).collect()
    }

    fn cache(&self) -> PathBuf {
        self.home.path().join("hub/models--org--base")
    }
}

fn write(folder: &Path, name: &str, content: &str) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn one_line(error: Error) -> String {
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

#[track_caller]
fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in `{text}`");
    }
}

#[track_caller]
fn assert_same_files(fetched: &Folder, original: &Path, names: &[&str]) {
    for name in names {
        let path = fetched.require(name).unwrap();
        assert_eq!(fs::read(path).unwrap(), fs::read(original.join(name)).unwrap(), "{name}");
    }
}

#[test]
fn the_files_of_a_repo_equal_the_originals() {
    let scene = Scene::new();
    let folder = scene.fetch(BASE).unwrap();
    assert_same_files(&folder, scene.folder.path(), &BASE_FILES);
    assert_eq!(folder.commit().unwrap().len(), 40);
    assert_contains(&folder.to_string(), &[BASE, folder.commit().unwrap()]);
}

#[test]
fn the_cache_is_laid_out_as_huggingface_hub_does() {
    let scene = Scene::new();
    let folder = scene.fetch(BASE).unwrap();
    let commit = folder.commit().unwrap();
    assert_eq!(fs::read_to_string(scene.cache().join("refs/main")).unwrap(), commit);
    assert_eq!(folder.path(), scene.cache().join("snapshots").join(commit));
    let link = fs::read_link(folder.path().join("1_Pooling/config.json")).unwrap();
    assert!(link.starts_with("../../../blobs"), "{}", link.display());
    let blobs = fs::read_dir(scene.cache().join("blobs")).unwrap();
    assert_eq!(blobs.count(), BASE_FILES.len());
}

#[test]
fn only_what_a_server_reads_is_downloaded() {
    let scene = Scene::new();
    let unneeded = [
        "README.md",
        "onnx/model.onnx",
        "openvino/config.json",
        "pytorch_model.bin",
        "tf_model.h5",
        "flax_model.msgpack",
        "vocab.txt",
        "checkpoint-10/model.safetensors",
        "model-00001-of-00002.safetensors",
    ];
    for name in unneeded {
        write(scene.folder.path(), name, name);
    }
    scene.hub.replace(BASE, "main", scene.folder.path());
    let folder = scene.fetch(BASE).unwrap();
    for name in unneeded {
        assert!(folder.file(name).unwrap().is_none(), "{name}");
    }
    assert_same_files(&folder, scene.folder.path(), &BASE_FILES);
}

#[test]
fn shards_vocabularies_and_pickles_are_downloaded_where_nothing_better_is_listed() {
    let scene = Scene::new();
    let repo = tempfile::tempdir().unwrap();
    let needed = [
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "vocab.txt",
        "adapter_model.bin",
        "2_Dense/pytorch_model.bin",
        "router_config.json",
        "query_0_StaticEmbedding/tokenizer.json",
        "3_Router/document_0_Dense/model.safetensors",
    ];
    for name in needed {
        write(repo.path(), name, name);
    }
    scene.hub.replace(BASE, "main", repo.path());
    let folder = scene.fetch(BASE).unwrap();
    assert_same_files(&folder, repo.path(), &needed);
}

#[test]
fn a_revision_picks_that_revisions_files() {
    let scene = Scene::new();
    let other = tempfile::tempdir().unwrap();
    write(other.path(), "config.json", "{\"of\": \"a pull request\"}");
    scene.hub.replace(BASE, "refs/pr/1", other.path());
    let folder = scene.fetch("org/base@refs/pr/1").unwrap();
    assert_same_files(&folder, other.path(), &["config.json"]);
    assert_same_files(&scene.fetch(BASE).unwrap(), scene.folder.path(), &BASE_FILES);
    let by_commit = scene.fetch(&format!("org/base@{}", folder.commit().unwrap())).unwrap();
    assert_eq!(by_commit.path(), folder.path());
}

#[test]
fn a_second_fetch_downloads_nothing_again() {
    let scene = Scene::new();
    scene.fetch(BASE).unwrap();
    let requests = scene.hub.file_requests().len();
    assert!(requests >= BASE_FILES.len());
    let folder = scene.fetch(BASE).unwrap();
    assert_eq!(scene.hub.file_requests().len(), requests);
    assert_same_files(&folder, scene.folder.path(), &BASE_FILES);
}

#[test]
fn a_complete_cache_is_not_written_to() {
    let scene = Scene::new();
    scene.fetch(BASE).unwrap();
    let locks = scene.home.path().join("hub/.locks");
    fs::remove_dir_all(&locks).unwrap();
    let written = || fs::metadata(scene.cache().join("refs/main")).unwrap().modified().unwrap();
    let before = written();
    scene.fetch(BASE).unwrap();
    assert_eq!(written(), before);
    assert!(!locks.exists());
}

#[test]
fn a_new_commit_downloads_only_the_files_it_changed() {
    let scene = Scene::new();
    let old = scene.fetch(BASE).unwrap();
    let before = scene.hub.file_requests().len();
    write(scene.folder.path(), "config.json", "{\"of\": \"a new commit\"}");
    scene.hub.replace(BASE, "main", scene.folder.path());
    let new = scene.fetch(BASE).unwrap();
    assert_ne!(new.commit(), old.commit());
    assert_same_files(&new, scene.folder.path(), &BASE_FILES);
    let requests = scene.hub.file_requests();
    assert_eq!(requests.len(), before + 1);
    assert!(requests[before].path.ends_with("/config.json"));
}

#[test]
fn a_download_that_broke_off_goes_on_where_it_stopped() {
    let scene = Scene::new();
    let only_weights = tempfile::tempdir().unwrap();
    let weights = scene.folder.path().join("model.safetensors");
    fs::copy(weights, only_weights.path().join("model.safetensors")).unwrap();
    scene.hub.replace(BASE, "main", only_weights.path());
    scene.hub.served().breaks = 1;
    let folder = scene.fetch(BASE).unwrap();
    assert_same_files(&folder, only_weights.path(), &["model.safetensors"]);
    assert_eq!(scene.ranges().len(), 2, "the Hub's and its file host's");
}

#[test]
fn what_another_run_left_of_a_download_is_completed() {
    let scene = Scene::new();
    let folder = scene.fetch(BASE).unwrap();
    let weights = folder.path().join("model.safetensors");
    let blob = fs::canonicalize(&weights).unwrap();
    let part = blob.with_extension("incomplete");
    let bytes = fs::read(&blob).unwrap();
    for length in [1000, bytes.len(), bytes.len() + 1] {
        let mut left = bytes.clone();
        left.resize(length, 0);
        fs::write(&part, left).unwrap();
        fs::remove_file(&blob).unwrap();
        assert_same_files(&scene.fetch(BASE).unwrap(), scene.folder.path(), &BASE_FILES);
        assert!(!part.exists());
    }
    assert_eq!(scene.ranges(), ["bytes=1000-", "bytes=1000-"]);
}

#[test]
fn a_file_that_comes_whole_replaces_what_was_left_of_it() {
    let scene = Scene::new();
    let folder = scene.fetch(BASE).unwrap();
    let blob = fs::canonicalize(folder.path().join("model.safetensors")).unwrap();
    fs::write(blob.with_extension("incomplete"), "left").unwrap();
    fs::remove_file(&blob).unwrap();
    scene.hub.served().ignores_ranges = true;
    assert_same_files(&scene.fetch(BASE).unwrap(), scene.folder.path(), &BASE_FILES);
    assert!(!scene.ranges().is_empty());
}

#[test]
fn fetches_at_once_download_each_file_once() {
    let scene = Scene::new();
    let folders: Vec<_> = thread::scope(|scope| {
        let fetches: Vec<_> = (0..4).map(|_| scope.spawn(|| scene.fetch(BASE).unwrap())).collect();
        fetches.into_iter().map(|fetch| fetch.join().unwrap()).collect()
    });
    for folder in folders {
        assert_same_files(&folder, scene.folder.path(), &BASE_FILES);
    }
    let redirect = 1;
    assert_eq!(scene.hub.file_requests().len(), BASE_FILES.len() + redirect);
}

#[test]
fn a_mirror_that_lists_bare_names_is_served_from() {
    let scene = Scene::new();
    scene.hub.served().is_terse = true;
    let folder = scene.fetch(BASE).unwrap();
    assert_same_files(&folder, scene.folder.path(), &BASE_FILES);
}

#[test]
fn offline_uses_the_cache_and_opens_no_connection() {
    let scene = Scene::new();
    let online = scene.fetch(BASE).unwrap();
    let before = scene.hub.requests().len();
    let offline = scene.fetch_with(BASE, |config| config.offline = true).unwrap();
    assert_eq!(offline.path(), online.path());
    assert_eq!(offline.commit(), online.commit());
    assert_eq!(scene.hub.requests().len(), before);
}

#[test]
fn offline_without_a_cache_is_an_error_that_names_the_repo() {
    let scene = Scene::new();
    let error = scene.fetch_with("org/base@v2", |config| config.offline = true).unwrap_err();
    assert_contains(&one_line(error), &["org/base@v2", "cache", "HF_HUB_OFFLINE"]);
    assert!(scene.hub.requests().is_empty());
}

#[test]
fn a_hub_that_is_down_is_replaced_by_the_cache() {
    let scene = Scene::new();
    let online = scene.fetch(BASE).unwrap();
    scene.hub.served().is_down = true;
    assert_eq!(scene.fetch(BASE).unwrap().path(), online.path());
    // The port of a listener that is gone: nobody answers.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = format!("http://{gone}");
    let nobody = |config: &mut HubConfig| config.endpoint = endpoint.clone();
    assert_eq!(scene.fetch_with(BASE, nobody).unwrap().path(), online.path());
    let error = one_line(scene.fetch_with("org/other", nobody).unwrap_err());
    assert_contains(&error, &["org/other", &endpoint, "cache"]);
}

#[test]
fn a_download_that_fails_leaves_the_revision_where_it_was() {
    let scene = Scene::new();
    let old = scene.fetch(BASE).unwrap();
    write(scene.folder.path(), "config.json", "{\"of\": \"a gated commit\"}");
    scene.hub.replace(BASE, "main", scene.folder.path());
    scene.hub.served().is_gated = true;
    let error = scene.fetch_error(BASE);
    assert_contains(&error, &[BASE, "config.json", "restricted", "HF_TOKEN"]);
    let offline = scene.fetch_with(BASE, |config| config.offline = true).unwrap();
    assert_eq!(offline.commit(), old.commit());
}

#[test]
fn an_unknown_repo_or_revision_is_an_error_that_says_so() {
    let scene = Scene::new();
    let error = scene.fetch_error("org/nothing");
    assert_contains(&error, &["org/nothing", "no such repo", "private", "HF_TOKEN"]);
    assert_contains(&scene.fetch_error("org/base@v9"), &["org/base@v9", "no such revision"]);
}

#[test]
fn the_token_is_sent_to_the_hub_and_to_no_other_host() {
    let scene = Scene::new();
    scene.hub.served().token = Some("hf_secret".to_owned());
    assert_contains(&scene.fetch_error(BASE), &[BASE, "private", "HF_TOKEN"]);
    let before = scene.hub.requests().len();
    let with_token = |config: &mut HubConfig| config.token = Some("hf_secret\n".to_owned());
    scene.fetch_with(BASE, with_token).unwrap();
    let requests = scene.hub.requests().split_off(before);
    let hub = scene.hub.endpoint.trim_start_matches("http://");
    let (to_hub, elsewhere): (Vec<_>, Vec<_>) = requests.into_iter().partition(|request| request.host == hub);
    assert_eq!(to_hub.len(), 1 + BASE_FILES.len());
    assert!(to_hub.iter().all(|it| it.authorization.as_deref() == Some("Bearer hf_secret")));
    assert_eq!(elsewhere.len(), 1, "the weights come from another host");
    assert_eq!(elsewhere[0].authorization, None);
}

#[test]
fn the_token_of_a_login_is_used_when_none_is_configured() {
    let scene = Scene::new();
    scene.hub.served().token = Some("hf_login".to_owned());
    write(scene.home.path(), "token", "hf_login\n");
    scene.fetch(BASE).unwrap();
}

#[test]
fn an_adapter_and_the_base_that_it_names_are_both_fetched() {
    let scene = Scene::new();
    let adapter = tempfile::tempdir().unwrap();
    let config = format!("{{\"peft_type\": \"LORA\", \"base_model_name_or_path\": \"{BASE}\"}}");
    write(adapter.path(), "adapter_config.json", &config);
    write(adapter.path(), "adapter_model.safetensors", "delta");
    scene.hub.replace("org/adapter", "main", adapter.path());
    let fetched = scene.fetch("org/adapter").unwrap();
    assert_same_files(&fetched, adapter.path(), &["adapter_model.safetensors"]);
    let config: Value = fetched.require_json("adapter_config.json").unwrap();
    let base = scene.fetch(config["base_model_name_or_path"].as_str().unwrap()).unwrap();
    assert_same_files(&base, scene.folder.path(), &BASE_FILES);
}

#[test]
fn a_listing_that_leads_out_of_the_repo_is_refused() {
    for name in ["../outside.json", "/outside.json", "1_Pooling/../../config.json"] {
        let scene = Scene::new();
        scene.hub.served().listed_too = vec![name.to_owned()];
        assert_contains(&scene.fetch_error(BASE), &[BASE, name]);
        assert!(scene.hub.file_requests().is_empty());
    }
}

#[test]
fn a_name_that_leads_out_of_a_folder_is_refused() {
    let scene = Scene::new();
    let modules = r#"[{"path": ""}, {"path": "../1_Pooling"}, {"path": "/1_Pooling"}]"#;
    write(scene.folder.path(), "modules.json", modules);
    let folder = scene.fetch(scene.folder.path().to_str().unwrap()).unwrap();
    let modules: Vec<Value> = folder.require_json("modules.json").unwrap();
    let subfolder = |index: usize| folder.subfolder(modules[index]["path"].as_str().unwrap());
    assert!(subfolder(0).unwrap().file("config.json").unwrap().is_some());
    assert_contains(&one_line(subfolder(1).unwrap_err()), &["../1_Pooling"]);
    assert_contains(&one_line(subfolder(2).unwrap_err()), &["/1_Pooling"]);
    for name in ["../config.json", "/etc/hostname", "1_Pooling/../../config.json"] {
        assert_contains(&one_line(folder.file(name).unwrap_err()), &[name]);
    }
}

#[test]
fn a_symlink_in_a_users_folder_is_followed() {
    let scene = Scene::new();
    let elsewhere = tempfile::tempdir().unwrap();
    write(elsewhere.path(), "shared.json", "7");
    let link = scene.folder.path().join("linked.json");
    std::os::unix::fs::symlink(elsewhere.path().join("shared.json"), link).unwrap();
    let folder = scene.fetch(scene.folder.path().to_str().unwrap()).unwrap();
    assert_eq!(folder.json::<u32>("linked.json").unwrap(), Some(7));
}

#[test]
fn a_bad_json_file_is_an_error_that_names_file_line_and_column() {
    let scene = Scene::new();
    write(scene.folder.path(), "config.json", "{\n  \"hidden_size\": oops\n}");
    let folder = scene.fetch(scene.folder.path().to_str().unwrap()).unwrap();
    let error = one_line(folder.json::<Value>("config.json").unwrap_err());
    assert_contains(&error, &["config.json", "line 2 column 18"]);
    let missing = one_line(folder.require_json::<Value>("absent.json").unwrap_err());
    assert_contains(&missing, &["absent.json"]);
    assert_eq!(folder.json::<Value>("absent.json").unwrap(), None);
}

#[test]
fn a_folder_that_exists_wins_over_a_repo_of_its_name() {
    let scene = Scene::new();
    let text = scene.folder.path().to_str().unwrap();
    assert_eq!(Source::parse(text).unwrap(), Source::Folder(scene.folder.path().to_owned()));
    assert_eq!(scene.fetch(text).unwrap().path(), scene.folder.path());
    assert!(scene.hub.requests().is_empty());
}

#[test]
fn a_path_that_is_no_folder_is_never_taken_for_a_repo() {
    for text in ["/no/such", "./model", "../model", "~/model", "a/b/c", "a/b/c@main"] {
        let error = one_line(Source::parse(text).unwrap_err());
        assert_contains(&error, &[text, "folder", "does not exist"]);
    }
}

#[test]
fn a_repo_is_read_by_the_hubs_own_rules() {
    for text in ["gpt2", "org/name", "org/na.me-x_1", "org/name@refs/pr/1", "gpt2@v1.0"] {
        let source = Source::parse(text).unwrap();
        assert!(matches!(source, Source::Repo(_)), "{text}");
        assert_eq!(source.to_string(), text);
    }
    let refused = [
        "",
        "org/",
        "a b",
        "org/na--me",
        "org/na..me",
        "org/-x",
        "org/x.git",
        "org/é",
        "org/x?y=1",
        "org/x@",
        "org/x@../y",
        "org/x@a//b",
        "org/x@a b",
        "org/x@#",
        "c:\\model",
    ];
    for text in refused {
        assert_contains(&one_line(Source::parse(text).unwrap_err()), &[text]);
    }
}

#[test]
fn an_endpoint_that_is_no_url_is_refused() {
    let scene = Scene::new();
    let error = scene.fetch_with(BASE, |config| config.endpoint = "example".to_owned());
    assert_contains(&one_line(error.unwrap_err()), &["example", "endpoint"]);
}
