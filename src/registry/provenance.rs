//! Which bits make a name's vectors: hashes over the contents of what it was loaded from, equal on every machine.

use crate::error::{Error, Result};
use crate::folder::Folder;
use blake3::{Hash, Hasher};
use std::fmt;
use std::fs::File;

/// A BLAKE3 hash; shown, and compared by callers, as its first 128 bits in hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(Hash);

/// The bits behind one served name. Names with different vectors differ in it, also where they share their files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// What the adapter's folder contributed: configuration, weights, and what of pipeline, tokenizer and prompts it
    /// brings; none for a base.
    pub generation: Option<Digest>,
    /// The base's weights and configuration in its number format, and the pipeline, tokenizer and prompts in use.
    pub fingerprint: Digest,
}

/// Whose pipeline, tokenizer and prompts an adapter uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadAs {
    /// The base's.
    Base,
    /// Its own, as far as its folder has them, else the base's.
    Own,
    /// Mean pooling without prompts.
    Bare,
}

impl Provenance {
    /// Of a base that was loaded from the files found in a folder, its matrices in this number format.
    pub fn of_base(folder: &Folder, dtype: &str) -> Result<Self> {
        let fingerprint = Digest::of(&["base", dtype, &contents(folder)?]);
        Ok(Self { generation: None, fingerprint })
    }

    /// Of an adapter inside this base's own checkpoint.
    pub fn with_task(&self, name: &str) -> Self {
        let generation = Digest::of(&["task", name, &self.fingerprint.whole()]);
        Self { generation: Some(generation), fingerprint: self.fingerprint }
    }

    /// Of an adapter of this base: its weights are the files found in one folder, its reading those in the other.
    pub fn with_adapter(&self, weights: &Folder, reading: &Folder, read_as: ReadAs) -> Result<Self> {
        let reading_contents = contents(reading)?;
        let generation = Digest::of(&["adapter", &contents(weights)?, &reading_contents]);
        let fingerprint = match read_as {
            ReadAs::Base => self.fingerprint,
            ReadAs::Own if reading.found().is_empty() => self.fingerprint,
            ReadAs::Own => Digest::of(&["own", &self.fingerprint.whole(), &reading_contents]),
            ReadAs::Bare => Digest::of(&["bare", &self.fingerprint.whole(), &reading_contents]),
        };
        Ok(Self { generation: Some(generation), fingerprint })
    }

    /// Of several names at once, in order; one name's alone is its own. Each half is the hash of the names' halves as
    /// they are shown, joined by commas, a base's generation being empty.
    pub fn combined(names: &[&Self]) -> Self {
        let joined = |half: fn(&Self) -> String| names.iter().map(|name| half(name)).collect::<Vec<_>>().join(",");
        match names {
            [one] => (*one).clone(),
            _ => Self {
                generation: Some(Digest(blake3::hash(joined(Self::shown_generation).as_bytes()))),
                fingerprint: Digest(blake3::hash(joined(|name| name.fingerprint.to_string()).as_bytes())),
            },
        }
    }

    /// Of adapters that read text alike, blended with these weights; one at weight 1 is itself.
    pub fn blended<'a>(parts: impl IntoIterator<Item = (&'a Self, f32)>) -> Self {
        let parts: Vec<(&Self, f32)> = parts.into_iter().collect();
        if let [(one, 1.0)] = parts.as_slice() {
            return (*one).clone();
        }
        let words = parts.iter().flat_map(|(part, weight)| [part.tag(), weight.to_string()]);
        let words: Vec<String> = ["blend".to_owned()].into_iter().chain(words).collect();
        let generation = Digest::of(&words.iter().map(String::as_str).collect::<Vec<_>>());
        let prints: Vec<String> = parts.iter().map(|(part, _)| part.fingerprint.to_string()).collect();
        let same = prints.windows(2).all(|pair| pair[0] == pair[1]);
        let fingerprint = match parts.first().filter(|_| same) {
            Some((first, _)) => first.fingerprint,
            None => Digest::of(&prints.iter().map(String::as_str).collect::<Vec<_>>()),
        };
        Self { generation: Some(generation), fingerprint }
    }

    /// Both halves in one word; a base has only the second.
    pub fn tag(&self) -> String {
        match self.generation {
            Some(generation) => format!("{generation}.{}", self.fingerprint),
            None => self.fingerprint.to_string(),
        }
    }

    fn shown_generation(&self) -> String {
        self.generation.map(|generation| generation.to_string()).unwrap_or_default()
    }
}

impl Digest {
    /// Of parts, each with its length before it, so that no two lists give the same bytes.
    fn of(parts: &[&str]) -> Self {
        let mut hasher = Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        Self(hasher.finalize())
    }

    fn whole(&self) -> String {
        self.0.to_hex().to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0.to_hex()[..32])
    }
}

/// Bytes of a file from which on several threads hash it together; smaller ones are hashed side by side.
const LARGE_BYTES: u64 = 64 << 20;

/// The hash of all files found in a folder, by their paths inside it and their contents.
fn contents(folder: &Folder) -> Result<String> {
    let mut parts = Vec::new();
    for (name, path) in folder.found() {
        let mut hasher = Hasher::new();
        let hash = |file: File| match file.metadata()?.len() {
            LARGE_BYTES.. => hasher.update_mmap_rayon(&path).map(drop),
            _ => hasher.update_reader(file).map(drop),
        };
        File::open(&path).and_then(hash).map_err(|error| Error::load(&path, error.to_string()))?;
        parts.extend([name, hasher.finalize().to_hex().to_string()]);
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    Ok(Digest::of(&parts).whole())
}
