//! What to do instead, for what of PEFT is not served.

/// Where PEFT can merge: what remains is a model like any other.
pub const MERGE: &str = "merge it into its base with PEFT's merge_and_unload and serve the result as a model";

/// Keys of adapter_config.json.
const KEYS: [(&str, &str); 9] = [
    (
        "alora_invocation_tokens",
        "it acts on the tokens from these on alone, which cannot be merged: train it as plain LoRA, with null",
    ),
    (
        "arrow_config",
        "it routes every token to some of several adapters: serve each of them, and blend them in requests",
    ),
    ("kasa_config", MERGE),
    (
        "megatron_config",
        "its base is not one of transformers: train or convert it for the base that is served, with null",
    ),
    ("monteclora_config", MERGE),
    ("target_parameters", MERGE),
    ("use_bdlora", MERGE),
    ("use_qalora", "it reads inputs in groups and cannot be merged: train it as plain LoRA, with false"),
    ("velora_config", MERGE),
];

/// Types without an effective weight.
const TYPES: [(&str, &str); 11] = [
    ("ADAPTION_PROMPT", PROMPTS),
    ("CARTRIDGE", PROMPTS),
    ("CPT", PROMPTS),
    ("LILY", "it routes between updates, which cannot be merged: train an adapter of a supported type"),
    ("MULTITASK_PROMPT_TUNING", PROMPTS),
    ("P_TUNING", PROMPTS),
    ("PREFIX_TUNING", PROMPTS),
    ("PROMPT_TUNING", PROMPTS),
    ("POLY", "it routes between adapters, which cannot be merged: train an adapter of a supported type a task"),
    ("SHADOW", "it is a network beside its base, which cannot be merged: train an adapter of a supported type"),
    ("XLORA", "it routes between adapters: serve each of them, and blend them in requests"),
];
const PROMPTS: &str =
    "what it learns stands beside the text and cannot be merged: train an adapter of a supported type";

/// For a key that is not read.
pub fn of_key(key: &str) -> String {
    match find(&KEYS, key) {
        Some(way) => way.to_owned(),
        None => format!("remove it if only training reads it, else {MERGE}"),
    }
}

/// For a type that is not read.
pub fn of_type(kind: &str) -> &'static str {
    find(&TYPES, kind).unwrap_or(MERGE)
}

fn find(table: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    table.iter().find(|(known, _)| *known == name).map(|(_, way)| *way)
}
