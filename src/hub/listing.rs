//! What a repo holds at one commit, and which of it a server needs.

use serde::Deserialize;

use crate::folder::stays_inside;

/// The Hub's answer to `GET /api/models/{id}/revision/{revision}?blobs=true`.
#[derive(Deserialize)]
pub(super) struct Listing {
    #[serde(rename = "sha")]
    pub(super) commit: String,
    #[serde(rename = "siblings")]
    files: Vec<RemoteFile>,
}

/// One file of a repo. A mirror may leave out all but the name.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RemoteFile {
    #[serde(rename = "rfilename")]
    pub(super) name: String,
    /// Bytes.
    pub(super) size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    sha256: String,
}

const CONFIGS: [&str; 10] = [
    "config.json",
    "adapter_config.json",
    "modules.json",
    "router_config.json",
    "config_sentence_transformers.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "veneer_golden.json",
];
/// Read only where there is no `tokenizer.json`.
const VOCABULARIES: [&str; 6] =
    ["vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model"];
const MODEL: &str = "model.safetensors";
const MODEL_INDEX: &str = "model.safetensors.index.json";
const ADAPTER: &str = "adapter_model.safetensors";

impl Listing {
    /// Refuses what would lead out of the cache once it becomes part of a path.
    pub(super) fn check(&self) -> Result<(), String> {
        if !is_commit(&self.commit) {
            return Err(format!("the Hub's answer names `{}` as a commit", self.commit));
        }
        match self.files.iter().find(|file| !file.is_safe()) {
            Some(file) => Err(format!("the repo lists a file that leads out of it: `{}`", file.name)),
            None => Ok(()),
        }
    }

    /// The files that a server reads, in the order listed.
    pub(super) fn needed(&self) -> impl Iterator<Item = &RemoteFile> {
        self.files.iter().filter(|file| self.is_needed(&file.name))
    }

    fn is_needed(&self, path: &str) -> bool {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let in_module = is_module_folder(folder);
        if !folder.is_empty() && !in_module {
            return false;
        }
        let prefix = &path[..path.len() - name.len()];
        let beside = |other: &str| self.files.iter().any(|file| file.name.strip_prefix(prefix) == Some(other));
        match name {
            MODEL | ADAPTER => true,
            "adapter_model.bin" => !beside(ADAPTER),
            "pytorch_model.bin" => !beside(MODEL) && !beside(MODEL_INDEX),
            _ if name == MODEL_INDEX || is_shard(name) => !beside(MODEL),
            _ if VOCABULARIES.contains(&name) => !beside("tokenizer.json"),
            _ if in_module => name.ends_with(".json"),
            _ => CONFIGS.contains(&name) || is_max_length_config(name),
        }
    }
}

impl RemoteFile {
    /// What the cache calls the content: its hash or, where the listing gives none, a name that no
    /// other content can have.
    pub(super) fn blob(&self, commit: &str) -> String {
        let unique = || format!("{commit}-{}", self.name.replace('/', "--"));
        self.hash().map_or_else(unique, str::to_owned)
    }

    /// The SHA-256 of a large file, git's own hash of any other.
    fn hash(&self) -> Option<&str> {
        let large = self.lfs.as_ref().map(|large| large.sha256.as_str());
        large.or(self.blob_id.as_deref())
    }

    fn is_safe(&self) -> bool {
        stays_inside(&self.name) && self.hash().is_none_or(is_hex)
    }
}

/// Whether a revision is a whole commit hash, which no branch can move.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && is_hex(revision)
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// `1_Pooling` and its like, a router's `query_0_Dense`, and folders in them.
fn is_module_folder(folder: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'/');
    let is_index = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let (name, _) = folder.split_once('/').unwrap_or((folder, ""));
    let (before, _) = name.rsplit_once('_').unwrap_or_default();
    before.split('_').any(is_index) && folder.bytes().all(is_plain)
}

/// `model-00001-of-00002.safetensors`.
fn is_shard(name: &str) -> bool {
    name.strip_prefix("model-")
        .and_then(|name| name.strip_suffix(".safetensors"))
        .is_some_and(|name| name.contains("-of-"))
}

/// `sentence_bert_config.json`, which older models call `sentence_roberta_config.json` and so on.
fn is_max_length_config(name: &str) -> bool {
    name.starts_with("sentence_") && name.ends_with("_config.json")
}
