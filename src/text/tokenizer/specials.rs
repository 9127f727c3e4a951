//! Added tokens: those that a folder's files list, and those that they, or the class, name as special.

use super::classes::Class;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// The names of special tokens, in the order in which they are added.
pub const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Added tokens in order, as tokenizer.json writes them, with what asks for each.
pub struct Specials {
    tokens: Vec<(Value, Asker)>,
    /// Where they are, by their texts; some models have thousands.
    places: HashMap<String, usize>,
    /// The named ones, by their names.
    named: Vec<(String, String)>,
}

/// What asks for an added token.
#[derive(Clone, PartialEq)]
enum Asker {
    /// A list of added tokens.
    List,
    /// A key of a file.
    Key(String),
    /// The class, where no file says otherwise.
    Class,
}

impl Specials {
    /// `stored` are those that the tokenizer has before.
    pub fn of(stored: Vec<Value>, keys: &Map<String, Value>, class: &Class, content: &Value) -> Result<Self, String> {
        let mut specials = Self { tokens: Vec::new(), places: HashMap::new(), named: Vec::new() };
        stored.into_iter().for_each(|token| specials.put(token, Asker::List));
        let listed = listed(keys, content)?;
        listed.into_iter().for_each(|token| specials.put(token, Asker::List));
        let of_class =
            NAMES.iter().zip(class.specials).filter(|(name, token)| !token.is_empty() && !keys.contains_key(**name));
        let own =
            keys.iter().filter(|(key, token)| key.ends_with("_token") && (token.is_string() || token.is_object()));
        let mut named: Vec<(&str, Value, Asker)> =
            of_class.map(|(name, token)| (*name, json!(token), Asker::Class)).collect();
        named.extend(own.map(|(key, token)| (key.as_str(), token.clone(), Asker::Key(key.clone()))));
        named.sort_by_key(|(name, ..)| NAMES.iter().position(|known| known == name).unwrap_or(NAMES.len()));
        for (name, token, asker) in named {
            let strips = name == "mask_token" && class.mask_strips && token.is_string();
            let token = special(&token, strips).ok_or_else(|| format!("{name} is no token"))?;
            specials.named.push((name.to_owned(), text(&token).to_owned()));
            specials.ask(token, asker, true);
        }
        for (token, asker) in extra(keys, class) {
            let token = special(&token, false)
                .ok_or("extra_special_tokens or additional_special_tokens has what is no token")?;
            specials.ask(token, asker, false);
        }
        if class.specials_are_plain {
            specials.tokens.iter_mut().filter(|(token, _)| token["special"] == true).for_each(|(token, _)| {
                *token = special(&json!(text(token)), false).unwrap_or_default();
            });
        }
        Ok(specials)
    }

    /// The token of a name.
    pub fn named(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(known, _)| known == name).map(|(_, token)| token.as_str())
    }

    /// In place of one with the same text, else at the end.
    fn put(&mut self, token: Value, asker: Asker) {
        match self.places.get(text(&token)) {
            Some(place) => self.tokens[*place].0 = token,
            None => self.push(token, asker),
        }
    }

    fn push(&mut self, token: Value, asker: Asker) {
        self.places.insert(text(&token).to_owned(), self.tokens.len());
        self.tokens.push((token, asker));
    }

    /// Where one with this text is there it stays as it is, but that a named one is special.
    fn ask(&mut self, token: Value, asker: Asker, is_named: bool) {
        match self.places.get(text(&token)) {
            Some(place) if is_named => self.tokens[*place].0["special"] = json!(true),
            Some(_) => {}
            None => self.push(token, asker),
        }
    }

    /// The list with the ids that the `tokenizers` library gives, for a model whose embedding has so many rows. What only
    /// the class names may have no row; what a key names must have one.
    pub fn fit(&self, content: &Value, rows: usize) -> Result<Value, String> {
        let mut next = vocabulary(content).len();
        let mut fitting = Vec::new();
        for (token, asker) in &self.tokens {
            let known = vocabulary(content).id(text(token));
            let id = known.unwrap_or(next);
            match asker {
                Asker::Key(key) if known.is_none() && id >= rows => {
                    let token = text(token);
                    return Err(format!(
                        "{key} names the token '{token}', which tokenizer.json has not, and the model has no row for it"
                    ));
                }
                Asker::Class if known.is_none() && id >= rows => continue,
                _ => {}
            }
            next = next.max(id + 1);
            let mut token = token.clone();
            token["id"] = json!(id);
            fitting.push(token);
        }
        Ok(Value::Array(fitting))
    }

    /// A template that wraps a text in the tokens of these names.
    pub fn template(&self, content: &Value, first: Option<&str>, last: &str) -> Result<Value, String> {
        let mut known = Map::new();
        let mut end = |name: &str, kind: usize| {
            let token =
                self.named(name).ok_or_else(|| format!("{name} names no token, but texts are wrapped in it"))?;
            let added = content["added_tokens"].as_array().into_iter().flatten();
            let id = added.into_iter().find(|added| text(added) == token).map(|added| added["id"].clone());
            let id = id.ok_or_else(|| format!("{name} '{token}' is not in tokenizer.json"))?;
            known.insert(token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
            Ok::<_, String>(json!({"SpecialToken": {"id": token, "type_id": kind}}))
        };
        let mut single: Vec<Value> = first.map(|first| end(first, 0)).transpose()?.into_iter().collect();
        single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
        single.push(end(last, 0)?);
        // Nothing here reads pairs.
        let pair = [single.clone(), vec![json!({"Sequence": {"id": "B", "type_id": 1}}), end(last, 1)?]].concat();
        Ok(json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": known}))
    }
}

/// Those of tokenizer_config.json, else of tokenizer.json, in the order of their ids.
fn listed(keys: &Map<String, Value>, content: &Value) -> Result<Vec<Value>, String> {
    let mut tokens = match keys.get("added_tokens_decoder").and_then(Value::as_object) {
        Some(by_id) => {
            let token = |(id, token): (&String, &Value)| {
                let id: u64 = id.parse().map_err(|_| format!("added_tokens_decoder: '{id}' is no id"))?;
                let text = token["content"].as_str().ok_or("added_tokens_decoder: a token has no content")?;
                let flag = |flag: &str, default: bool| token[flag].as_bool().unwrap_or(default);
                Ok((id, added(text, flag)))
            };
            by_id.iter().map(token).collect::<Result<Vec<_>, String>>()?
        }
        None => {
            let stored = content["added_tokens"].as_array().into_iter().flatten();
            stored.map(|token| (token["id"].as_u64().unwrap_or_default(), token.clone())).collect()
        }
    };
    tokens.sort_by_key(|(id, _)| *id);
    Ok(tokens.into_iter().map(|(_, token)| token).collect())
}

/// Special tokens without names, or with names that only the model knows. A list counts for itself, and any list in place
/// of the class's.
fn extra(keys: &Map<String, Value>, class: &Class) -> Vec<(Value, Asker)> {
    let asked = |key: &str, token: &Value| (token.clone(), Asker::Key(key.to_owned()));
    let list = |key: &str| keys.get(key).and_then(Value::as_array);
    let [new, old] = ["extra_special_tokens", "additional_special_tokens"];
    let mut tokens: Vec<_> = match keys.get(new) {
        Some(Value::Object(named)) => named.values().map(|token| asked(new, token)).collect(),
        _ => Vec::new(),
    };
    match (list(new), list(old)) {
        (Some(listed), _) if !listed.is_empty() => tokens.extend(listed.iter().map(|token| asked(new, token))),
        (_, Some(listed)) => tokens.extend(listed.iter().map(|token| asked(old, token))),
        (Some(_), None) => {}
        (None, None) => tokens.extend((class.extra)(keys).into_iter().map(|token| (json!(token), Asker::Class))),
    }
    tokens
}

/// A special token that a text, or an object with its flags, stands for.
fn special(token: &Value, strips: bool) -> Option<Value> {
    if let Some(text) = token.as_str() {
        return Some(added(text, |flag, _| flag == "special" || flag == "lstrip" && strips));
    }
    let flag = |flag: &str, default: bool| flag == "special" || token[flag].as_bool().unwrap_or(default);
    token["content"].as_str().map(|text| added(text, flag))
}

/// An added token as tokenizer.json writes it; a flag's default is transformers'.
fn added(text: &str, flag: impl Fn(&str, bool) -> bool) -> Value {
    let is_special = flag("special", false);
    json!({
        "content": text,
        "single_word": flag("single_word", false),
        "lstrip": flag("lstrip", false),
        "rstrip": flag("rstrip", false),
        "normalized": flag("normalized", !is_special),
        "special": is_special,
    })
}

fn text(token: &Value) -> &str {
    token["content"].as_str().unwrap_or_default()
}

/// A model's pieces.
enum Vocabulary<'a> {
    ByPiece(&'a Map<String, Value>),
    Scored(&'a [Value]),
}

fn vocabulary(content: &Value) -> Vocabulary<'_> {
    match &content["model"]["vocab"] {
        Value::Object(pieces) => Vocabulary::ByPiece(pieces),
        other => Vocabulary::Scored(other.as_array().map(Vec::as_slice).unwrap_or_default()),
    }
}

impl Vocabulary<'_> {
    fn len(&self) -> usize {
        match self {
            Self::ByPiece(pieces) => pieces.len(),
            Self::Scored(pieces) => pieces.len(),
        }
    }

    fn id(&self, text: &str) -> Option<usize> {
        match self {
            Self::ByPiece(pieces) => pieces.get(text)?.as_u64().map(|id| id as usize),
            Self::Scored(pieces) => pieces.iter().rposition(|piece| piece[0] == text),
        }
    }
}
