//! The names of an adapter's tensors: every prefix is the same adapter, and none may be missing, changed or of another
//! shape.

mod support;

use support::tensors::{Tensors, change_tensors, tensors_of};
use support::{Door, copy_of, gap, kinds, named, read, rows, texts};
use veneer::adapters;
use veneer::folder::Folder;

type Change = fn(&mut Tensors, &str);

/// What can happen to a tensor.
const CHANGES: [(&str, Change); 3] = [
    ("lost", |tensors, name| drop(tensors.remove(name))),
    ("renamed", |tensors, name| {
        let tensor = tensors.remove(name).unwrap();
        tensors.insert(format!("{name}_x"), tensor);
    }),
    ("reshaped", |tensors, name| {
        tensors.get_mut(name).unwrap().grow();
    }),
];

/// What an adapter may lack, or have otherwise, and mean the same or another thing that is valid.
fn is_free(kind: &str, name: &str, what: &str, all: &Tensors) -> bool {
    // PEFT saves these again under another name.
    let is_twice = name.ends_with("magnitude_vector.weight") || all.contains_key(&format!("{name}.weight"));
    let is_copy = name.contains(".modules_to_save.") || name.contains(".original_module.");
    // The forward pass does not run it, and other models of this base may not have it.
    let is_idle = name.ends_with("pooler.dense.bias");
    let is_embedding = (name.contains("embed") || name.contains("shared")) && name.ends_with("weight");
    let is_wrapped = name
        .rsplit_once('.')
        .is_some_and(|(module, part)| all.contains_key(&format!("{module}.modules_to_save.{part}")));
    match what {
        "lost" => is_copy || is_idle || is_embedding || is_twice || is_wrapped,
        // An embedding of the adapter's own may have any number of rows; its tokenizer needs the new ones.
        "reshaped" => kind.starts_with("resized") && is_embedding && !is_copy,
        // What follows reads as an adapter's name.
        _ => name.ends_with("magnitude_vector.weight"),
    }
}

/// Changes every tensor of every kind of a base in every way: how many changes, and those that were not named.
fn sweep(base: &str) -> (usize, Vec<String>) {
    let (mut changes, mut wrong) = (0, Vec::new());
    let model = Door::open(&[named("base", &format!("{base}/base"))], &[], &[]);
    let model = model.app.serving().unwrap().registry.find("base").unwrap().main().target.model().clone();
    for kind in kinds(&read(&format!("peft/{base}/golden.json"))) {
        let copy = copy_of(&format!("peft/{base}/{kind}"));
        let whole = tensors_of(copy.path());
        let config = adapters::Config::of(&Folder::open(copy.path()).unwrap()).unwrap();
        let repeated = (!config.blocks.is_empty()).then(|| model.repeating(&config.blocks).unwrap());
        for name in whole.keys() {
            for (what, change) in CHANGES.iter().filter(|(what, _)| !is_free(&kind, name, what, &whole)) {
                change_tensors(copy.path(), |tensors| {
                    tensors.clone_from(&whole);
                    change(tensors, name);
                });
                let folder = Folder::open(copy.path()).unwrap();
                let loaded = adapters::load(&folder, &config, repeated.as_ref().unwrap_or(&model));
                let error = loaded.err().map_or("it loads".into(), |error| error.to_string());
                // Where two disagree in shape, the one or the other is named.
                let one_of_two = *what == "reshaped" && name.ends_with(".base_layer.weight");
                let named = if one_of_two { name.trim_end_matches("base_layer.weight") } else { name };
                if !error.contains(named) || !error.contains("adapter_") {
                    wrong.push(format!("{base} {kind}: {name} {what}: {error}"));
                }
                changes += 1;
            }
        }
    }
    (changes, wrong)
}

#[test]
fn any_tensor_of_any_kind_that_is_lost_renamed_or_reshaped_is_named_in_full() {
    let bases = ["bert", "qwen2", "gemma3", "t5", "gte", "modernbert", "deberta-v2", "deberta-v2-unshared"];
    let swept: Vec<_> = std::thread::scope(|scope| {
        let threads = bases.map(|base| scope.spawn(move || sweep(base)));
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let wrong: Vec<&String> = swept.iter().flat_map(|(_, wrong)| wrong).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let changes: usize = swept.iter().map(|(changes, _)| changes).sum();
    assert!(changes > 3000, "{changes}");
}

/// What trainers put before a tensor's name.
#[tokio::test]
async fn all_prefixes_are_the_same_adapter_for_every_kind() {
    for (base, nested) in [("bert", "bert"), ("qwen2", "model")] {
        let golden = read(&format!("peft/{base}/golden.json"));
        let prefixes = ["", "base_model.model.base_model.model.", "base_model.model._orig_mod.", "0.auto_model."];
        let prefixes = prefixes.map(str::to_owned).into_iter().chain([format!("base_model.model.{nested}.")]);
        let prefixes: Vec<String> = prefixes.collect();
        let mut copies = Vec::new();
        for (place, prefix) in prefixes.iter().enumerate() {
            // Ranges of layers and what all modules share are named otherwise.
            for kind in kinds(&golden).into_iter().filter(|kind| !["vera", "layer-replication"].contains(&&**kind)) {
                let copy = copy_of(&format!("peft/{base}/{kind}"));
                change_tensors(copy.path(), |tensors| {
                    let all = std::mem::take(tensors).into_iter();
                    tensors.extend(all.map(|(name, tensor)| (name.replacen("base_model.model.", prefix, 1), tensor)));
                });
                copies.push((format!("{kind}-{place}"), kind, copy));
            }
        }
        let adapters = copies.iter().map(|(name, _, copy)| format!("{name}={}", copy.path().display()));
        let door = Door::open(&[named("base", &format!("{base}/base"))], &adapters.collect::<Vec<_>>(), &[]);
        for (name, kind, _) in &copies {
            let error = gap(&door.vectors(name, &texts(&golden)[..3]).await, &rows(&golden[kind])[..3]);
            assert!(error <= 1e-5, "{base} {name}: {error}");
        }
    }
}
