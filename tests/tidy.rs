//! Holds the house: which room may know which, where unsafe, cfg(feature), axum and the environment may stand, and how
//! long functions and files may be. See the crate's documentation.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Rooms from the top, each floor a line; a room may use those of lower floors only.
const FLOORS: [&[&str]; 10] = [
    &["main", "once", "lib"],
    &["cli"],
    &["http"],
    &["registry"],
    &["engine", "adapters", "text"],
    &["hub"],
    &["model"],
    &["kernels"],
    &["config", "folder", "telemetry"],
    &["error"],
];
const FILE_LINES_MAX: usize = 300;
const TEST_FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;

struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// The room: the first part of its path below src.
    fn room(&self) -> String {
        let below = self.path.strip_prefix(root().join("src")).unwrap();
        below.components().next().unwrap().as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
    }

    fn is_product(&self) -> bool {
        self.path.starts_with(root().join("src"))
    }

    fn name(&self) -> String {
        self.path.strip_prefix(root()).unwrap().display().to_string()
    }

    /// Without comments, and without the tests at the end.
    fn code(&self) -> String {
        let code = self.text.split("\n#[cfg(test)]").next().unwrap();
        code.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn walk(folder: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(Source { text: fs::read_to_string(&path).unwrap(), path });
        }
    }
}

fn sources(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    walk(&root().join(folder), &mut found);
    assert!(found.len() > 3, "{folder} has sources");
    found
}

fn floor(room: &str) -> usize {
    FLOORS.iter().position(|rooms| rooms.contains(&room)).unwrap_or_else(|| panic!("'{room}' has no floor in tidy.rs"))
}

/// Rooms that a file names: `crate::room`, or `veneer::room` in the binary.
fn imports(code: &str) -> Vec<String> {
    let after = ["crate::", "veneer::"].iter().flat_map(|prefix| code.split(prefix).skip(1));
    let word = |rest: &str| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap().to_owned();
    after.map(word).filter(|word| !word.is_empty()).collect()
}

#[test]
fn knowledge_goes_down_only() {
    for source in sources("src") {
        let own = source.room();
        for room in imports(&source.code()) {
            let fine = room == own || floor(&room) > floor(&own);
            assert!(fine, "{} in floor {} uses '{room}' of floor {}", source.name(), floor(&own), floor(&room));
        }
    }
}

#[test]
fn unsafe_stands_in_kernels_and_where_weights_are_mapped() {
    for source in sources("src") {
        let allowed = source.room() == "kernels" || source.name() == "src/model/checkpoint.rs";
        let text = source.code().replace("unsafe_code", "");
        assert!(allowed || !text.contains("unsafe"), "{}", source.name());
        let blocks = text.matches("unsafe {").count() + text.matches("unsafe impl").count();
        assert_eq!(blocks, source.text.matches("// SAFETY:").count(), "a SAFETY line a block in {}", source.name());
    }
}

#[test]
fn only_http_names_axum_and_status_codes() {
    for source in sources("src") {
        let code = source.code();
        let names = code.contains("axum") || code.contains("StatusCode");
        assert!(!names || source.room() == "http", "{}", source.name());
    }
}

#[test]
fn only_main_reads_the_environment() {
    for source in sources("src") {
        let code = source.code();
        // What cargo tells a build script is in its environment.
        let is_script = source.name().ends_with("/build.rs");
        assert!(!code.contains("env::") || source.room() == "main" || is_script, "{}", source.name());
    }
}

#[test]
fn features_are_switched_in_kernels() {
    for source in sources("src") {
        let switched = source.code().contains("cfg(feature") || source.code().contains("cfg(not(feature");
        assert!(!switched || source.room() == "kernels", "{}", source.name());
    }
}

#[test]
fn models_name_no_architecture_outside_families() {
    let sources = sources("src");
    let table = sources.iter().find(|source| source.name() == "src/model/families/mod.rs").unwrap();
    // An entry is `entry::<Config>("name")`.
    let entries = table.text.split(">(\"").skip(1).map(|rest| format!("\"{}\"", rest.split('"').next().unwrap()));
    let named: Vec<String> = entries.chain(["model_type".to_owned()]).collect();
    assert!(named.len() > 20 && named.contains(&"\"qwen3\"".to_owned()), "{named:?}");
    for source in &sources {
        // sentence-transformers' own key of this name says what kind of encoder a folder is.
        let own = source.name() == "src/model/modules/mod.rs";
        let code = source.code().to_lowercase();
        let mut named = named.iter().filter(|name| !own || *name != "model_type");
        let found = named.find(|name| code.contains(name.as_str()));
        assert!(found.is_none() || source.name().starts_with("src/model/families/"), "{found:?} in {}", source.name());
    }
}

#[test]
fn files_and_functions_are_short() {
    for source in sources("src").into_iter().chain(sources("tests")) {
        let lines = source.text.split("\n#[cfg(test)]").next().unwrap().lines().count();
        let lines_max = if source.is_product() { FILE_LINES_MAX } else { TEST_FILE_LINES_MAX };
        assert!(lines <= lines_max, "{} has {lines} lines", source.name());
        for (name, length) in functions(&source.text) {
            assert!(length <= FUNCTION_LINES_MAX, "{}: fn {name} has {length} lines", source.name());
        }
    }
}

/// Functions with their lengths, by rustfmt's indentation: a body ends at a brace as far in as its `fn`.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some((before, rest)) = line.split_once("fn ") else { continue };
        let is_head = before.trim().split(' ').all(|word| {
            word.is_empty() || ["pub", "async", "const", "unsafe"].contains(&word) || word.starts_with("pub(")
        });
        if !is_head || line.trim_end().ends_with(';') {
            continue;
        }
        let name = rest.split(['(', '<']).next().unwrap().to_owned();
        let closing = format!("{}}}", " ".repeat(indent(line)));
        let end = lines[start..].iter().position(|line| *line == closing).unwrap_or(0);
        found.push((name, end + 1));
    }
    found
}

#[test]
fn every_module_opens_with_what_it_is_for() {
    for source in sources("src").into_iter().chain(sources("tests")) {
        assert!(source.text.starts_with("//!"), "{}", source.name());
    }
}

#[test]
fn there_are_no_drawers_and_no_leftovers() {
    for source in sources("src").into_iter().chain(sources("tests")) {
        let (name, text) = (source.name(), source.text.as_str());
        if name == "tests/tidy.rs" {
            continue;
        }
        for drawer in ["util", "common", "helper"] {
            assert!(!name.contains(drawer), "{name} is named for nothing in particular");
        }
        for leftover in ["TODO", "FIXME", "todo!(", "unimplemented!(", "dbg!(", "#[ignore", "#[allow(clippy"] {
            assert!(!text.contains(leftover), "{leftover} in {name}");
        }
        let unwraps = source.is_product() && source.code().contains(".unwrap()");
        assert!(!unwraps, "unwrap in {name}");
    }
}

/// Its first layer builds dependencies over an empty crate, which must have every target that the manifest names.
#[test]
fn the_image_begins_with_a_crate_that_cargo_reads() {
    let dockerfile = fs::read_to_string(root().join("Dockerfile")).unwrap();
    let begin = dockerfile.find("RUN mkdir benches").expect("it makes an empty crate");
    let step = dockerfile[begin..].split("&& cargo build").next().unwrap();
    let step = step.trim_start_matches("RUN").replace("\\\n", "");
    let folder = tempfile::tempdir().unwrap();
    for file in ["Cargo.toml", "Cargo.lock", "src/kernels/cuda/build.rs"] {
        assert!(dockerfile[..begin].contains(file), "{file} is copied before");
        fs::create_dir_all(folder.path().join(file).parent().unwrap()).unwrap();
        fs::copy(root().join(file), folder.path().join(file)).unwrap();
    }
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).current_dir(folder.path()).output().unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert_eq!(run("sh", &["-c", &step]), "");
    // Nothing is built, but all targets are looked for.
    let said = run(env!("CARGO"), &["build", "--bin", "none", "--offline", "--locked"]);
    assert!(said.contains("no bin target named `none`"), "{said}");
}

#[test]
fn every_top_level_entry_is_a_known_room() {
    let known = [
        "Cargo.toml",
        "Cargo.lock",
        "src",
        "benches",
        "config",
        "Dockerfile",
        "tests",
        "openapi.yaml",
        "README.md",
        "LICENSE",
    ];
    let known =
        |name: &str| known.contains(&name) || name.starts_with('.') || ["target", "rustfmt.toml"].contains(&name);
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        assert!(known(&name), "{name} stands at the top level");
    }
}
