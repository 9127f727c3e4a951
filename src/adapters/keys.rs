//! The keys of adapter_config.json: each is read, or known to change nothing, or refused.

use super::ways_out;
use crate::folder::{says_nothing, typed};
use fancy_regex::Regex;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Why a configuration is refused.
pub type Reading<T> = Result<T, String>;

/// What of the file nobody has read yet.
#[derive(Debug)]
pub struct Keys {
    left: Map<String, Value>,
}

impl Keys {
    /// All of them.
    pub fn new(content: Map<String, Value>) -> Self {
        Self { left: content }
    }

    /// A key's value; none where it is missing or null.
    pub fn take<T: DeserializeOwned>(&mut self, key: &str) -> Reading<Option<T>> {
        match self.left.shift_remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => typed(value).map(Some).map_err(|reason| format!("{key}: {reason}")),
        }
    }

    /// A key's value, or PEFT's default.
    pub fn or<T: DeserializeOwned>(&mut self, key: &str, default: T) -> Reading<T> {
        Ok(self.take(key)?.unwrap_or(default))
    }

    /// A number, or PEFT's default where the key is missing; PEFT cannot count with null.
    pub fn number<T: DeserializeOwned>(&mut self, key: &str, default: T) -> Reading<T> {
        match self.left.get(key) {
            Some(Value::Null) => Err(format!("{key} must be a number, not null")),
            _ => self.or(key, default),
        }
    }

    /// A count, which must not be 0.
    pub fn count(&mut self, key: &str, default: usize) -> Reading<usize> {
        match self.number(key, default)? {
            0 => Err(format!("{key} must be at least 1")),
            count => Ok(count),
        }
    }

    /// Leaves keys aside that change nothing here once the adapter is trained.
    pub fn leave(&mut self, keys: &[&str]) {
        keys.iter().for_each(|key| drop(self.left.shift_remove(*key)));
    }

    /// Refuses a key that nobody has read, unless it says nothing.
    pub fn finish(self) -> Reading<()> {
        match self.left.iter().find(|(_, value)| !says_nothing(value)) {
            Some((key, value)) => Err(format!("{key} = {value} is not supported; {}", ways_out::of_key(key))),
            None => Ok(()),
        }
    }
}

/// A number that some modules have of their own, as `rank_pattern` and `alpha_pattern` give it.
#[derive(Debug)]
pub struct ByModule {
    default: f64,
    exceptions: Vec<(Regex, f64)>,
}

impl ByModule {
    /// Ranks: `default`, but for what `rank_pattern` says.
    pub fn ranks(keys: &mut Keys, default: usize) -> Reading<Self> {
        let is_rank = |number: f64| number >= 1.0 && number.fract() == 0.0;
        Self::read(keys, "rank_pattern", default as f64, is_rank, "a whole number from 1 on")
    }

    /// `default`, but for what the map under `key` says.
    fn read(keys: &mut Keys, key: &str, default: f64, fits: fn(f64) -> bool, expected: &str) -> Reading<Self> {
        let map: Map<String, Value> = keys.or(key, Map::new())?;
        let exceptions = map.into_iter().map(|(pattern, value)| {
            let regex = Regex::new(&format!("^(?:.*\\.)?(?:{pattern})$"));
            let regex = regex.map_err(|e| format!("{key} '{pattern}': {e}"))?;
            match value.as_f64() {
                Some(number) if fits(number) => Ok((regex, number)),
                _ => Err(format!("{key} '{pattern}': expected {expected}, found {value}")),
            }
        });
        Ok(Self { default, exceptions: exceptions.collect::<Reading<_>>()? })
    }

    /// What most modules have, in words.
    pub fn summary(&self, name: &str) -> String {
        format!("{name}={}{}", self.default, if self.exceptions.is_empty() { "" } else { " (varies)" })
    }

    /// A module's: that of the first pattern, in file order, that matches its name.
    pub fn of(&self, module: &str) -> Reading<f64> {
        for (regex, value) in &self.exceptions {
            if matches(regex, module)? {
                return Ok(*value);
            }
        }
        Ok(self.default)
    }
}

/// `r` and an alpha with their patterns: a rank and a scale for every module.
#[derive(Debug)]
pub struct Ranks {
    rank: ByModule,
    alpha: ByModule,
    /// Whether the scale is alpha / sqrt(rank), not alpha / rank (rsLoRA, arXiv:2312.03732).
    by_root: bool,
}

impl Ranks {
    /// From `r`, the key `alpha`, `rank_pattern` and `alpha_pattern`; `alpha` of 8 where there is none.
    pub fn read(keys: &mut Keys, alpha: &str, by_root: bool) -> Reading<Self> {
        let (rank, alpha) = (keys.count("r", 8)?, keys.number(alpha, 8.0)?);
        let rank = ByModule::ranks(keys, rank)?;
        Ok(Self { rank, alpha: ByModule::read(keys, "alpha_pattern", alpha, f64::is_finite, "a number")?, by_root })
    }

    /// The rank and the scale of most modules, in words.
    pub fn summary(&self) -> String {
        let scale = self.alpha.default / if self.by_root { self.rank.default.sqrt() } else { self.rank.default };
        let varies = if self.rank.exceptions.is_empty() && self.alpha.exceptions.is_empty() { "" } else { " (varies)" };
        format!("r={} scale={scale}{varies}", self.rank.default)
    }

    /// A module's rank and the factor on its update.
    pub fn of(&self, module: &str) -> Reading<(usize, f64)> {
        let (rank, alpha) = (self.rank.of(module)?, self.alpha.of(module)?);
        Ok((rank as usize, alpha / if self.by_root { rank.sqrt() } else { rank }))
    }
}

/// Whether a pattern is found in a name; an error where that takes too long to tell.
pub fn matches(pattern: &Regex, name: &str) -> Reading<bool> {
    pattern.is_match(name).map_err(|e| format!("pattern '{pattern}' on '{name}': {e}"))
}
