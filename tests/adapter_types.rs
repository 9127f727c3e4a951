//! Random valid adapters of several types, alone and with all that any type may hold beside, against bases with the same
//! merged into their weights by the formulas of this file.

mod support;

use serde_json::{Map, Value, json};
use support::chance::Chance;
use support::tensors::{Stored, Tensors, tensors_in, write_tensors};
use support::{Door, copy_of, fixture, gap, named, read, texts};

/// A random adapter of one base, and the base's weights with it merged.
struct Case {
    chance: Chance,
    base: Tensors,
    merged: Tensors,
    tensors: Tensors,
    config: Map<String, Value>,
    rank: usize,
    scale: f64,
    has_magnitudes: bool,
    has_update_biases: bool,
}

impl Case {
    fn new(chance: Chance, base: &str) -> Self {
        let base = tensors_in(&fixture(&format!("{base}/base/model.safetensors")));
        let (merged, config) = (base.clone(), Map::new());
        let (rank, scale, tensors) = (1, 1.0, Tensors::new());
        Self { chance, base, merged, tensors, config, rank, scale, has_magnitudes: false, has_update_biases: false }
    }

    fn yes(&mut self) -> bool {
        self.chance.below(2) == 1
    }

    fn say(&mut self, key: &str, value: impl Into<Value>) {
        self.config.insert(key.into(), value.into());
    }

    /// Random numbers around others, as a tensor of the adapter.
    fn draw(&mut self, name: &str, shape: &[usize], around: impl Fn(usize) -> f64) -> Vec<f64> {
        let count = shape.iter().product();
        let x: Vec<f32> = (0..count).map(|i| around(i) as f32 + 0.4 * self.chance.float()).collect();
        self.tensors.insert(format!("base_model.model.{name}"), Stored::f32(shape.to_vec(), &x));
        x.into_iter().map(f64::from).collect()
    }

    fn weight(&self, name: &str) -> Vec<f64> {
        self.merged[name].floats().into_iter().map(f64::from).collect()
    }

    fn merge(&mut self, name: &str, x: &[f64]) {
        let shape = self.merged[name].shape.clone();
        let x: Vec<f32> = x.iter().map(|x| *x as f32).collect();
        self.merged.insert(name.into(), Stored::f32(shape, &x));
    }

    /// A tensor in place of the base's, under the name that the adapter has for it.
    fn replace(&mut self, name: &str, saved_as: &str) {
        let (shape, before) = (self.merged[name].shape.clone(), self.weight(name));
        let own = self.draw(saved_as, &shape, |i| before[i]);
        self.merge(name, &own);
    }

    /// A whole module, within a wrapper.
    fn replace_all(&mut self, module: &str, wrapper: &str) {
        for part in ["weight", "bias"] {
            let name = format!("{module}.{part}");
            if self.base.contains_key(&name) {
                self.replace(&name, &format!("{module}{wrapper}.{part}"));
            }
        }
    }

    /// Names of modules: linear ones of the layers, and norms.
    fn modules(&self) -> (Vec<String>, Vec<String>) {
        let weights = self.base.iter().filter_map(|(name, tensor)| Some((name.strip_suffix(".weight")?, tensor)));
        let of = |rank: usize| {
            let inside = weights.clone().filter(|(name, _)| rank == 1 || name.contains("layer"));
            inside.filter(|(_, tensor)| tensor.shape.len() == rank).map(|(name, _)| name.to_owned()).collect()
        };
        (of(2), of(1))
    }

    fn has_bias(&self, module: &str) -> bool {
        self.base.contains_key(&format!("{module}.bias"))
    }

    /// The sum of `rank` products of a column `[outer]` and a row `[inner]`, whose elements two functions give.
    fn product(&self, [outer, inner]: [usize; 2], of: impl Fn(usize, usize, usize) -> f64) -> Vec<f64> {
        let element = |i: usize, j: usize| (0..self.rank).map(|k| of(i, j, k)).sum::<f64>();
        (0..outer * inner).map(|place| element(place / inner, place % inner)).collect()
    }

    fn shape(&self, name: &str) -> [usize; 2] {
        self.merged[name].shape.clone().try_into().unwrap()
    }

    /// LoRA, as the settings have it.
    fn lora(&mut self, module: &str) {
        let (name, rank, scale) = (format!("{module}.weight"), self.rank, self.scale);
        let ([outer, inner], is_table) = (self.shape(&name), module.contains("embed"));
        let update = if is_table {
            let a = self.draw(&format!("{module}.lora_embedding_A"), &[rank, outer], |_| 0.0);
            let b = self.draw(&format!("{module}.lora_embedding_B"), &[inner, rank], |_| 0.0);
            self.product([outer, inner], |i, j, k| a[k * outer + i] * b[j * rank + k])
        } else {
            let a = self.draw(&format!("{module}.lora_A.weight"), &[rank, inner], |_| 0.0);
            let b = self.draw(&format!("{module}.lora_B.weight"), &[outer, rank], |_| 0.0);
            self.product([outer, inner], |i, j, k| b[i * rank + k] * a[k * inner + j])
        };
        let mut w: Vec<f64> = self.weight(&name).iter().zip(update).map(|(w, x)| w + scale * x).collect();
        if self.has_magnitudes {
            let line = |place: usize| if is_table { place % inner } else { place / inner };
            let mut lengths = vec![0.0; if is_table { inner } else { outer }];
            w.iter().enumerate().for_each(|(place, w)| lengths[line(place)] += w * w);
            let m = self.draw(&format!("{module}.lora_magnitude_vector"), &[lengths.len()], |i| lengths[i].sqrt());
            w.iter_mut().enumerate().for_each(|(place, w)| *w *= m[line(place)] / lengths[line(place)].sqrt());
        }
        self.merge(&name, &w);
        if self.has_update_biases {
            let (name, shift) =
                (format!("{module}.bias"), self.draw(&format!("{module}.lora_B.bias"), &[outer], |_| 0.0));
            let bias: Vec<f64> = self.weight(&name).iter().zip(shift).map(|(bias, x)| bias + scale * x).collect();
            self.merge(&name, &bias);
        }
    }

    /// LoHa, HiRA or IA3.
    fn other(&mut self, kind: &str, module: &str, is_input: bool) {
        let (name, rank, scale) = (format!("{module}.weight"), self.rank, self.scale);
        let [outer, inner] = self.shape(&name);
        let mut pair = |first: &str, second: &str| {
            let b = self.draw(&format!("{module}.{first}"), &[outer, rank], |_| 0.0);
            let a = self.draw(&format!("{module}.{second}"), &[rank, inner], |_| 0.0);
            self.product([outer, inner], |i, j, k| b[i * rank + k] * a[k * inner + j])
        };
        let w: Vec<f64> = match kind {
            "LOHA" => {
                let (x, y) = (pair("hada_w1_a", "hada_w1_b"), pair("hada_w2_a", "hada_w2_b"));
                self.weight(&name).iter().zip(x.iter().zip(y)).map(|(w, (x, y))| w + scale * x * y).collect()
            }
            "HIRA" => {
                let x = pair("hira_B", "hira_A");
                self.weight(&name).iter().zip(x).map(|(w, x)| w * (1.0 + x)).collect()
            }
            _ => {
                let shape = if is_input { [1, inner] } else { [outer, 1] };
                let l = self.draw(&format!("{module}.ia3_l"), &shape, |_| 1.0);
                if !is_input && self.has_bias(module) {
                    let bias = format!("{module}.bias");
                    let scaled: Vec<f64> = self.weight(&bias).iter().zip(&l).map(|(bias, l)| bias * l).collect();
                    self.merge(&bias, &scaled);
                }
                let factor = |place: usize| l[if is_input { place % inner } else { place / inner }];
                self.weight(&name).iter().enumerate().map(|(place, w)| w * factor(place)).collect()
            }
        };
        self.merge(&name, &w);
    }

    /// Some of the names, at least one.
    fn some(&mut self, of: &[String]) -> Vec<String> {
        let first = self.chance.below(of.len());
        let also: Vec<bool> = of.iter().map(|_| self.chance.below(3) == 0).collect();
        of.iter().enumerate().filter(|(i, _)| *i == first || also[*i]).map(|(_, name)| name.clone()).collect()
    }

    /// Whole modules that are no targets, and biases.
    fn hold_whole(&mut self, targets: &[String], bias: &str) {
        let (linear, norms) = self.modules();
        let free: Vec<String> = linear.into_iter().chain(norms).filter(|name| !targets.contains(name)).collect();
        let saved = if self.yes() { self.some(&free) } else { Vec::new() };
        // PEFT takes all names that end so: `norm` is every norm of Qwen2's.
        let whole: Vec<String> = free.into_iter().filter(|name| saved.iter().any(|end| name.ends_with(end))).collect();
        for module in &whole {
            self.replace_all(module, "");
        }
        let biased: Vec<String> =
            self.base.keys().filter_map(|name| name.strip_suffix(".bias")).map(String::from).collect();
        for module in biased.into_iter().filter(|module| !whole.contains(module)) {
            let is_target = targets.contains(&module);
            if bias == "all" || bias == "lora_only" && is_target {
                let wrapper = if is_target { ".base_layer" } else { "" };
                self.replace(&format!("{module}.bias"), &format!("{module}{wrapper}.bias"));
            }
        }
        self.say("bias", bias);
        self.say("modules_to_save", saved);
    }

    /// LoRA with some of what it may have.
    fn draw_lora(&mut self, words: &str) {
        (self.rank, self.has_magnitudes) = (1 + self.chance.below(5), self.yes());
        let (alpha, by_root) = (1 + self.chance.below(9), self.yes());
        let divisor = if by_root { (self.rank as f64).sqrt() } else { self.rank as f64 };
        self.scale = alpha as f64 / divisor;
        let mut linear = self.modules().0;
        self.has_update_biases = !self.has_magnitudes && self.yes();
        if self.has_update_biases {
            linear.retain(|name| self.has_bias(name));
        }
        let mut targets = self.some(&linear);
        let bias = *self.chance.one(&["none", "all", "lora_only"]);
        self.hold_whole(&targets, bias);
        match self.chance.below(3) {
            // PEFT gives an embedding's update no bias.
            0 if !self.has_update_biases => targets.push(words.to_owned()),
            1 => self.draw_tokens(words, "trainable_token_indices", ".token_adapter"),
            _ => {}
        }
        targets.iter().for_each(|module| self.lora(module));
        self.say("target_modules", targets);
        for (key, value) in [
            ("r", json!(self.rank)),
            ("lora_alpha", json!(alpha)),
            ("use_rslora", json!(by_root)),
            ("use_dora", json!(self.has_magnitudes)),
            ("lora_bias", json!(self.has_update_biases)),
        ] {
            self.say(key, value);
        }
    }

    /// Rows of tokens.
    fn draw_tokens(&mut self, words: &str, key: &str, wrapper: &str) {
        let (name, mut ids) = (format!("{words}.weight"), Vec::new());
        let [rows, width] = self.shape(&name);
        (0..rows).for_each(|id| ids.extend(self.yes().then_some(id)));
        let own = self.draw(&format!("{words}{wrapper}.trainable_tokens_delta"), &[ids.len(), width], |_| 0.0);
        let mut w = self.weight(&name);
        for (place, id) in ids.iter().enumerate() {
            w[id * width..][..width].copy_from_slice(&own[place * width..][..width]);
        }
        self.merge(&name, &w);
        self.say(key, if wrapper.is_empty() { json!(ids) } else { json!({words: ids}) });
    }

    fn draw_kind(&mut self, kind: &str, words: &str) {
        self.say("peft_type", kind);
        let (linear, norms) = self.modules();
        match kind {
            "LORA" => self.draw_lora(words),
            "TRAINABLE_TOKENS" => self.draw_tokens(words, "token_indices", ""),
            "LN_TUNING" => {
                let targets = self.some(&norms);
                for module in &targets {
                    self.replace_all(module, ".ln_tuning_layers");
                }
                self.say("target_modules", targets);
            }
            _ => {
                let (alpha, targets) = (1 + self.chance.below(9), self.some(&linear));
                self.rank = 1 + self.chance.below(5);
                self.scale = alpha as f64 / self.rank as f64;
                let feedforward: Vec<String> = targets.iter().filter(|_| self.chance.below(2) == 0).cloned().collect();
                targets.iter().for_each(|module| self.other(kind, module, feedforward.contains(module)));
                self.say("target_modules", targets);
                match kind {
                    "IA3" => self.say("feedforward_modules", feedforward),
                    _ => self.say("r", self.rank),
                }
                if kind == "LOHA" {
                    self.say("alpha", alpha);
                }
            }
        }
    }
}

#[tokio::test]
async fn any_valid_adapter_is_its_base_with_the_same_merged() {
    const KINDS: [&str; 9] = ["LORA", "LORA", "LORA", "LORA", "IA3", "LOHA", "HIRA", "LN_TUNING", "TRAINABLE_TOKENS"];
    for (base, words) in [("bert", "embeddings.word_embeddings"), ("qwen2", "embed_tokens")] {
        let texts = &texts(&read(&format!("{base}/golden.json")))[1..4];
        for seed in 0..54 {
            let mut case = Case::new(Chance::new(seed), base);
            case.draw_kind(KINDS[seed as usize % KINDS.len()], words);
            let (adapter, merged) = (tempfile::tempdir().unwrap(), copy_of(&format!("{base}/base")));
            write_tensors(&merged.path().join("model.safetensors"), &case.merged);
            write_tensors(&adapter.path().join("adapter_model.safetensors"), &case.tensors);
            let config = Value::Object(case.config).to_string();
            std::fs::write(adapter.path().join("adapter_config.json"), &config).unwrap();
            let models = [named("base", &format!("{base}/base")), format!("merged={}", merged.path().display())];
            let door = Door::open(&models, &[format!("base:random={}", adapter.path().display())], &[]);
            let (ours, meant) = (door.vectors("random", texts).await, door.vectors("merged", texts).await);
            let (error, effect) = (gap(&ours, &meant), gap(&ours, &door.vectors("base", texts).await));
            println!("{base} {seed} max|diff| {error:.1e}  |adapter - base| {effect:.2}");
            assert!(error <= 1e-5 && effect > 1e-3, "{base} {seed}: {error:.1e}, {effect:.1e}: {config}");
        }
    }
}
