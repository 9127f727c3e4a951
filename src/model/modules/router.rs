//! sentence-transformers' `Router`, formerly `Asym`: other modules for other kinds of text. Every route becomes a plain
//! list of modules.

use super::Module;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::model::routes::Routes;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Routers may hold routers; deeper than this is a mistake.
const DEPTH_MAX: usize = 8;

/// A module, or a choice between lists of them.
enum Node {
    Module(Module),
    Router(Router),
}

struct Router {
    /// In the file's order.
    routes: Vec<(String, Vec<Node>)>,
    default: Option<String>,
    /// Kind and modality, each None for any, to a route.
    mappings: Vec<(Option<String>, Option<String>, String)>,
}

/// The lists of modules that the kinds of text lead to.
pub fn routes(folder: &Folder, listed: &[Module]) -> Result<Routes<Vec<Module>>> {
    let nodes = nodes(folder, listed, 0)?;
    // A body that is chosen, and a Transformer, say that what they read is text; a StaticEmbedding does not.
    let modality = match nodes.first() {
        Some(Node::Module(module)) if module.class_name() == "StaticEmbedding" => None,
        _ => Some("text"),
    };
    let mut kinds = BTreeSet::new();
    nodes.iter().for_each(|node| node.kinds(&mut kinds));
    Routes::of(kinds.into_iter().collect(), |kind| flat(&nodes, kind, modality)).ok_or_else(|| {
        let reason = "its Router modules have no route in common, so no text can be embedded";
        Error::load(folder.path().join("modules.json"), reason)
    })
}

fn nodes(folder: &Folder, listed: &[Module], depth: usize) -> Result<Vec<Node>> {
    let node = |module: &Module| match module.class_name() {
        "Router" | "Asym" => Ok(Node::Router(Router::load(folder, &module.path, depth + 1)?)),
        _ => Ok(Node::Module(module.clone())),
    };
    listed.iter().map(node).collect()
}

/// None where some router has no route for the kind.
fn flat(nodes: &[Node], kind: Option<&str>, modality: Option<&str>) -> Option<Vec<Module>> {
    let mut list = Vec::new();
    for node in nodes {
        match node {
            Node::Module(module) => list.push(module.clone()),
            Node::Router(router) => list.extend(flat(router.route(kind, modality)?, kind, modality)?),
        }
    }
    Some(list)
}

impl Node {
    /// Kinds of text that make a difference.
    fn kinds(&self, kinds: &mut BTreeSet<String>) {
        let Self::Router(router) = self else { return };
        kinds.extend(router.mappings.iter().filter_map(|(kind, ..)| kind.clone()));
        for (name, nodes) in &router.routes {
            kinds.insert(name.clone());
            nodes.iter().for_each(|node| node.kinds(kinds));
        }
    }
}

/// router_config.json, which `Asym` called config.json.
#[derive(Deserialize)]
struct File {
    types: BTreeMap<String, String>,
    structure: Map<String, Value>,
    parameters: Parameters,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    default_route: Option<String>,
    #[serde(default = "yes")]
    allow_empty_key: bool,
    route_mappings: Option<BTreeMap<String, String>>,
}

fn yes() -> bool {
    true
}

impl Router {
    fn load(root: &Folder, path: &str, depth: usize) -> Result<Self> {
        let folder = root.subfolder(path)?;
        let name = match folder.file("router_config.json")? {
            Some(_) => "router_config.json",
            None => "config.json",
        };
        let fail = |reason: String| Error::load(folder.path().join(name), reason);
        if depth > DEPTH_MAX {
            return Err(fail(format!("more than {DEPTH_MAX} routers stand inside each other")));
        }
        let File { types, structure, parameters } = folder.require_json(name)?;
        let mut routes = Vec::new();
        for (route, ids) in structure {
            let ids: Vec<String> = crate::folder::typed(ids).map_err(&fail)?;
            let module = |id: &String| match types.get(id) {
                Some(class) => Ok(Module { name: None, class: class.clone(), path: below(path, id) }),
                None => Err(fail(format!("route '{route}' names '{id}', which is not among the types"))),
            };
            let modules = ids.iter().map(module).collect::<Result<Vec<_>>>()?;
            routes.push((route, nodes(root, &modules, depth)?));
        }
        let known: Vec<&str> = routes.iter().map(|(route, _)| route.as_str()).collect();
        let first = known.first().filter(|_| parameters.allow_empty_key).map(|route| (*route).to_owned());
        let default = parameters.default_route.or(first);
        let mut mappings = Vec::new();
        for (key, route) in parameters.route_mappings.unwrap_or_default() {
            let pair = pair(&key).ok_or_else(|| fail(format!("route_mappings: '{key}' is not understood")))?;
            // Of several modalities at once: no text is.
            mappings.extend(pair.map(|(kind, modality)| (kind, modality, route.clone())));
            if !known.contains(&route.as_str()) {
                return Err(fail(format!("route_mappings: there is no route '{route}'")));
            }
        }
        match &default {
            Some(default) if !known.contains(&default.as_str()) => {
                Err(fail(format!("default_route: there is no route '{default}'")))
            }
            _ => Ok(Self { routes, default, mappings }),
        }
    }

    /// Mappings go first, the more exact before the less; then a route of the kind's or the modality's own name; the
    /// default is for texts of no stated kind only.
    fn route(&self, kind: Option<&str>, modality: Option<&str>) -> Option<&[Node]> {
        let mapped = [(kind, modality), (kind, None), (None, modality), (None, None)].into_iter().find_map(|wanted| {
            let fits = |(kind, modality, _): &&(Option<String>, Option<String>, String)| {
                (kind.as_deref(), modality.as_deref()) == wanted
            };
            self.mappings.iter().find(fits).map(|(.., route)| route.as_str())
        });
        let of_name = |name: Option<&str>| self.routes.iter().find(|(route, _)| Some(route.as_str()) == name);
        let by_default = self.default.as_deref().filter(|_| kind.is_none());
        let chosen = match mapped {
            Some(route) => of_name(Some(route)),
            None => of_name(kind).or_else(|| of_name(modality)).or_else(|| of_name(by_default)),
        };
        chosen.map(|(_, nodes)| nodes.as_slice())
    }
}

/// A module's folder inside a router's.
fn below(path: &str, id: &str) -> String {
    PathBuf::from(path).join(id).display().to_string()
}

/// A mapping's key, a Python pair such as `('query', 'text')` or `(None, 'text')`; inside, None for one of several
/// modalities at once.
fn pair(key: &str) -> Option<Option<(Option<String>, Option<String>)>> {
    let (kind, modality) = key.trim().strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    if modality.trim().starts_with('(') {
        return Some(None);
    }
    Some(Some((literal(kind)?, literal(modality)?)))
}

/// `None` or a quoted string without escapes.
fn literal(text: &str) -> Option<Option<String>> {
    let text = text.trim();
    if text == "None" {
        return Some(None);
    }
    let inner = ['\'', '"'].iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote))?;
    (!inner.contains(['\\', '\'', '"', ','])).then(|| Some(inner.to_owned()))
}
