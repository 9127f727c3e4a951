//! Compiles the kernels of this folder: with `cuda` to fatbins by nvcc, which the driver embeds; with `emulated` for
//! the host, by the C++ compiler. Without either it does nothing.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::{fs, num::NonZero};

const FOLDER: &str = "src/kernels/cuda";
/// Machine code for A100 and what is like it, and for H100; from the last, devices that are newer compile their own.
const TARGETS: [&str; 3] =
    ["arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_90,code=compute_90"];
/// What includes this is for H100 alone, and for its like.
const OF_WARPGROUPS: &str = "warpgroup.cuh";
const TARGETS_OF_WARPGROUPS: [&str; 1] = ["arch=compute_90a,code=sm_90a"];

fn main() {
    println!("cargo:rerun-if-changed={FOLDER}/build.rs");
    let is_set = |feature: &str| env::var_os(format!("CARGO_FEATURE_{feature}")).is_some();
    if !is_set("CUDA") && !is_set("EMULATED") {
        return;
    }
    // A file that comes or goes changes the folder.
    println!("cargo:rerun-if-changed={FOLDER}");
    for extension in ["cu", "cuh", "cpp", "hpp"] {
        files(extension).iter().for_each(|file| println!("cargo:rerun-if-changed={}", file.display()));
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    if is_set("CUDA") {
        embed(&out);
    }
    #[cfg(feature = "emulated")]
    emulate(is_set("RACES"));
}

/// Files of the folder, in the order of their names.
fn files(extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(FOLDER).unwrap_or_else(|error| panic!("{FOLDER}: {error}"));
    let paths = entries.map(|entry| entry.unwrap_or_else(|error| panic!("{FOLDER}: {error}")).path());
    let mut files: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    files
}

/// Compiles every `.cu`, several at once, and writes `fatbins.rs`: by what, their names, and what they were compiled to.
fn embed(out: &Path) {
    let nvcc = nvcc();
    let sources = files("cu");
    let (next, threads) = (AtomicUsize::new(0), thread::available_parallelism().map_or(1, NonZero::get));
    thread::scope(|scope| {
        for _ in 0..threads.min(sources.len()) {
            scope.spawn(|| {
                while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                    compile(&nvcc, source, &fatbin(out, source));
                }
            });
        }
    });
    let entry = |source: &PathBuf| {
        format!("    ({:?}, {}, include_bytes!({:?})),\n", stem(source), is_of_warpgroups(source), fatbin(out, source))
    };
    let entries: String = sources.iter().map(entry).collect();
    let (major, minor) = release(&nvcc);
    let text = format!(
        "/// The CUDA toolkit that they are compiled by.\n\
         pub const TOOLKIT: (i32, i32) = ({major}, {minor});\n\
         /// Kernels by the names of their files, and whether they are of warpgroups.\n\
         pub const FATBINS: &[(&str, bool, &[u8])] = &[\n{entries}];\n"
    );
    fs::write(out.join("fatbins.rs"), text).expect("OUT_DIR can be written to");
}

fn stem(source: &Path) -> String {
    source.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn fatbin(out: &Path, source: &Path) -> PathBuf {
    out.join(format!("{}.fatbin", stem(source)))
}

fn compile(nvcc: &Path, source: &Path, target: &Path) {
    let mut command = Command::new(nvcc);
    command.args(["-std=c++17", "-O3", "-fatbin"]);
    let targets = if is_of_warpgroups(source) { TARGETS_OF_WARPGROUPS.as_slice() } else { &TARGETS };
    command.args(targets.iter().flat_map(|target| ["-gencode", target]));
    let output = command.arg("-o").arg(target).arg(source).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", nvcc.display()));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} does not compile {}:\n{told}", nvcc.display(), source.display());
    // Such as that products of warpgroups wait for each other, or do not get the registers that they take: both are several
    // times slower, and no error.
    let is_slow = |line: &&str| line.contains("Potential Performance Loss") || line.contains("setmaxnreg");
    told.lines().filter(is_slow).for_each(|line| println!("cargo:warning={}: {line}", source.display()));
}

/// The release of the toolkit that a compiler is of.
fn release(nvcc: &Path) -> (u32, u32) {
    let output = Command::new(nvcc).arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    let told = String::from_utf8_lossy(&output);
    let numbers = told.split("release ").nth(1).and_then(|rest| rest.split(',').next()?.split_once('.'));
    let release = numbers.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    release.unwrap_or_else(|| panic!("{} does not say which release it is:\n{told}", nvcc.display()))
}

fn is_of_warpgroups(source: &Path) -> bool {
    let text = fs::read_to_string(source).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
    text.contains(OF_WARPGROUPS)
}

/// The compiler, by the first name that runs.
fn nvcc() -> PathBuf {
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let below_homes = homes.map(|home| PathBuf::from(home).join("bin/nvcc"));
    let mut places = below_homes.chain(["nvcc".into(), "/usr/local/cuda/bin/nvcc".into()]);
    let runs =
        |nvcc: &PathBuf| Command::new(nvcc).arg("--version").output().is_ok_and(|output| output.status.success());
    places.find(runs).unwrap_or_else(|| {
        panic!(
            "feature 'cuda' needs nvcc, which is neither in $CUDA_HOME/bin, $CUDA_PATH/bin or /usr/local/cuda/bin nor \
             on the PATH. Install the CUDA toolkit (12.8 or newer; older ones compile attention for H100 to something \
             slow), or set NVCC to the compiler or CUDA_HOME to the toolkit."
        )
    })
}

/// Compiles the same files for the host, and what runs them there.
#[cfg(feature = "emulated")]
fn emulate(looks_for_races: bool) {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).define("EMULATED", None).warnings(false);
    if looks_for_races {
        build.define("RACES", None);
    }
    let mut kernels = build.clone();
    // By their names the compiler would not know what they are.
    kernels.flag("-x").flag("c++").files(files("cu"));
    // What a GPU does not forgive: it faults where a load of several numbers is not aligned.
    let checks = ["-fsanitize=alignment,bounds,shift,integer-divide-by-zero", "-fsanitize-undefined-trap-on-error"];
    checks.iter().for_each(|flag| {
        kernels.flag_if_supported(flag);
    });
    if looks_for_races {
        // Every load and store calls what races.cpp has for it.
        kernels.flag("-fsanitize=thread");
    }
    // Kernels announce themselves before `main`, so the linker may leave out none.
    kernels.link_lib_modifier("+whole-archive").compile("emulated_kernels");
    build.files(files("cpp")).compile("emulator");
}
