//! What a configuration's words lead to: folders and names.

use crate::adapters;
use crate::config;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::hub::{Hub, Source};
use crate::model::Modules;
use std::path::{Path, PathBuf};

/// The adapters of a folder: its own, where it is a PEFT checkpoint itself, and those of [`below`].
pub fn in_folder(path: &Path) -> Result<Vec<config::Adapter>> {
    let folder = Folder::open(path)?;
    let own = place_of_adapter(&folder)?.map(|_| {
        let source = path.display().to_string();
        config::Adapter { name: default_name(&Source::Folder(path.to_owned())), source, base: None }
    });
    Ok(own.into_iter().chain(below(path)?).collect())
}

/// Sub-folders with an adapter, under their names.
fn below(path: &Path) -> Result<Vec<config::Adapter>> {
    let entries = std::fs::read_dir(path).map_err(|e| Error::load(path, e.to_string()))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::load(path, e.to_string()))?;
        if entry.path().is_dir() && place_of_adapter(&Folder::open(&entry.path())?)?.is_some() {
            let (name, source) = (entry.file_name(), entry.path());
            let (name, source) = (name.to_string_lossy().into_owned(), source.to_string_lossy().into_owned());
            found.push(config::Adapter { name, source, base: None });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The other adapters of a checkpoint of several, of which PEFT saves one in the folder itself; what a trainer left there
/// on its way is none of them.
pub fn beside(folder: &Folder) -> Result<Vec<config::Adapter>> {
    let is_on_the_way = |adapter: &config::Adapter| Path::new(&adapter.source).join("trainer_state.json").is_file();
    let (left, others) = below(folder.path())?.into_iter().partition::<Vec<_>, _>(is_on_the_way);
    for adapter in left {
        tracing::info!(folder = adapter.source, "a trainer's checkpoint is left out; --adapter would serve it");
    }
    Ok(others)
}

/// The adapters of a checkpoint that is nothing but several of them, each in a sub-folder of its name; none where the folder
/// is a model or an adapter itself.
pub fn several_in(folder: &Folder) -> Result<Vec<config::Adapter>> {
    for file in ["config.json", "modules.json", "adapter_config.json"] {
        if folder.file(file)?.is_some() {
            return Ok(Vec::new());
        }
    }
    below(folder.path())
}

/// Where a folder's adapter lies, relative to it: in the folder itself, or where its modules.json has the body; none where
/// it holds none.
pub fn place_of_adapter(folder: &Folder) -> Result<Option<String>> {
    let bodies = Modules::bodies(folder)?;
    let is_whole = |place: &str| folder.path().join(place) == folder.path();
    let outside = (!bodies.iter().any(|place| is_whole(place))).then(String::new);
    let mut found = Vec::new();
    for place in bodies.iter().chain(&outside) {
        if adapters::Config::is_in(&folder.subfolder(place)?)? {
            found.push(place);
        }
    }
    let fail =
        |place: &str, reason: &str| Err(Error::load(folder.path().join(place).join("adapter_config.json"), reason));
    if let Some(place) = found.iter().find(|place| bodies.len() > 1 && !is_whole(place)) {
        return fail(
            place,
            "no adapter can lie on one of several bodies of a Router; merge_and_unload it into that body",
        );
    }
    match found.as_slice() {
        [] => Ok(None),
        [place] => Ok(Some((*place).clone())),
        [place, other, ..] => {
            let other = folder.path().join(other);
            fail(
                place,
                &format!("another adapter is in {}, and only one can be served; take one away", other.display()),
            )
        }
    }
}

/// An error where an adapter is asked for and the folder holds none, or several.
pub fn require_adapter(folder: &Folder) -> Result<()> {
    let several: Vec<String> = several_in(folder)?.into_iter().map(|adapter| adapter.source).collect();
    match several.is_empty() {
        true => Ok(()),
        false => {
            let path = folder.path().display();
            let way_out = format!("name one of {}, or serve all with --adapters {path}", several.join(", "));
            Err(Error::load(folder.path(), format!("it holds adapters in sub-folders: {way_out}")))
        }
    }
}

/// The folder itself, whatever links lead there.
pub fn real_path(folder: &Folder) -> PathBuf {
    folder.path().canonicalize().unwrap_or_else(|_| folder.path().to_owned())
}

/// The name that a model is served by: what its entry says, else the Hub id, or the folder's own name.
///
/// # Errors
/// Where its source is none.
pub fn name_of(entry: &config::Model) -> Result<String> {
    let source = Source::parse(&entry.source)?;
    Ok(entry.name.clone().unwrap_or_else(|| default_name(&source)))
}

fn default_name(source: &Source) -> String {
    match source {
        Source::Repo(repo) => repo.id().to_owned(),
        Source::Folder(path) => {
            let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
            whole.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
        }
    }
}

/// Name, root and folder of the base that a PEFT checkpoint lies on: the folder itself where it holds base weights
/// too, else what the operator says, else what adapter_config.json says. `place` is where in the folder the checkpoint is.
pub fn base_of(
    hub: &Hub,
    folder: &Folder,
    place: &str,
    given: Option<&str>,
    name: &str,
) -> Result<(String, String, Folder)> {
    let peft_folder = folder.subfolder(place)?;
    let peft = adapters::Config::of(&peft_folder)?;
    if given.is_none() && peft_folder.file("config.json")?.is_some() {
        let root = folder.path().display().to_string();
        return Ok((format!("{name}/base"), root, folder.clone()));
    }
    let (wanted, key) = match (given, &peft.base) {
        (Some(given), _) => (given, "--base"),
        (None, Some(base)) => (base.as_str(), "base_model_name_or_path"),
        (None, None) => ("", "base_model_name_or_path"),
    };
    // A relative path is the trainer's; it may still lead from the working folder or from the adapter to the base.
    let beside = peft_folder.path().join(wanted);
    let source = match !wanted.is_empty() && !Path::new(wanted).is_dir() && beside.is_dir() {
        true => Ok(Source::Folder(beside)),
        false => Source::parse(wanted),
    };
    if let (Ok(Source::Repo(repo)), None) = (&source, given) {
        tracing::info!(file = %peft.path().display(), base = %repo, "no such folder, so {key} is taken for a Hub id");
    }
    let found = source.and_then(|source| Ok((default_name(&source), hub.fetch(&source)?)));
    let (base_name, base_folder) = found.map_err(|error| {
        let way_out = "say where the base is with --base SOURCE, or serve the base and attach this folder to it with \
                       --adapter NAME=FOLDER";
        Error::load(peft.path(), format!("{key} '{wanted}' is not to be had ({error}); {way_out}"))
    })?;
    Ok((base_name, wanted.to_owned(), base_folder))
}

/// Shapes that fit are no proof: many bases have the same.
pub fn warn_of_another_base(name: &str, peft: &adapters::Config, root: &str) {
    let last = |path: &str| path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
    let Some(trained_on) = &peft.base else { return };
    if last(trained_on) != last(root) {
        tracing::warn!(adapter = name, trained_on, base = root, "trained on a base of another name; its shapes fit");
    }
}
