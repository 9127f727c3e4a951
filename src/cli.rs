//! The command line: subcommands, and a flag for every key of the configuration.

use crate::config::{self, Config, Flags};
use crate::error::Result;
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// What the process is asked to do.
pub enum Action {
    /// Serve until told to stop.
    Serve(Config),
    /// Print the resolved configuration.
    PrintConfig(Config),
    /// Load a model, with an adapter or without, and say what it is and changes.
    Check(Config),
    /// Embed texts and leave.
    Embed(Config, Vec<String>),
    /// Hold every operation of a GPU to its CPU twin.
    SelfTest {
        /// As `--device` names it.
        device: String,
        /// Only those whose name, or whose type, has this in it.
        only: String,
        /// Leave out what is large.
        is_small: bool,
    },
    /// Ask a server's /health, as containers do.
    Health {
        /// HOST:PORT.
        address: String,
    },
}

/// Reads arguments and environment; prints help and leaves by itself where that is asked for.
pub fn parse(args: impl Iterator<Item = OsString>, environment: &BTreeMap<String, String>) -> Result<Action> {
    let matches = command().get_matches_from(args);
    let (name, matches) = matches.subcommand().expect("a subcommand is required");
    let text = |id: &str| matches.get_one::<String>(id).cloned();
    if name == "health" {
        let port = environment.get("VENEER_SERVER__PORT").map_or("8000", String::as_str);
        return Ok(Action::Health { address: text("address").unwrap_or_else(|| format!("127.0.0.1:{port}")) });
    }
    if name == "selftest" {
        let (device, only) = (text("device").unwrap_or_else(|| "cuda".into()), text("only").unwrap_or_default());
        return Ok(Action::SelfTest { device, only, is_small: matches.get_flag("small") });
    }
    let mut flags = flags(matches);
    if name != "serve" {
        // One adapter without a name: it needs none to be asked for.
        flags.adapters = flags.adapters.iter().map(|source| format!("{ADAPTER}={source}")).collect();
    }
    let file = text("config").or_else(|| environment.get("VENEER_CONFIG").cloned()).map(PathBuf::from);
    let mut config = Config::resolve(file.as_deref(), environment, &flags)?;
    if name != "serve" {
        // What a file or the environment names beside it is not what is asked for, and would only be loaded.
        config.models.drain(..config.models.len() - flags.models.len());
        config.adapters.drain(..config.adapters.len() - flags.adapters.len());
        if flags.keys.iter().all(|(key, _)| key != "adapters") {
            config.server.adapters.clear();
        }
    }
    Ok(match name {
        "serve" if matches.get_flag("print-config") => Action::PrintConfig(config),
        "serve" => Action::Serve(config),
        "check" => Action::Check(config),
        _ => Action::Embed(config, matches.get_many("text").into_iter().flatten().cloned().collect()),
    })
}

/// The name under which `check` and `embed` serve their adapter.
pub const ADAPTER: &str = "adapter";

fn command() -> Command {
    let serve = Command::new("serve").about("Serve models and adapters over HTTP");
    let serve = serve
        .arg(many("model", "[NAME=]SOURCE", "A model: a folder, or a Hub id org/name[@revision]"))
        .arg(many("adapter", "[BASE:]NAME=SOURCE", "An adapter, laid over the model that it fits"))
        .arg(
            Arg::new("print-config").long("print-config").action(ArgAction::SetTrue).help("Print the result and leave"),
        );
    let check = Command::new("check").about("Load a model or an adapter on it, and say what it is and changes");
    let check =
        check.arg(one("model", "SOURCE", "The base").required(true)).arg(one("adapter", "SOURCE", "The adapter"));
    let embed = Command::new("embed").about("Embed texts, one JSON line each");
    let embed = embed
        .arg(one("model", "SOURCE", "The model").required(true))
        .arg(one("adapter", "SOURCE", "The adapter"))
        .arg(Arg::new("text").value_name("TEXT").required(true).num_args(1..));
    let address = one("address", "HOST:PORT", "The server [default: this machine, VENEER_SERVER__PORT or 8000]");
    let health = Command::new("health").about("Ask a server whether it is ready").arg(address);
    let device = one("device", "DEVICE", "The GPU: cuda, or cuda:N [default: cuda]");
    let selftest = Command::new("selftest")
        .about("Run every operation on a GPU and on the CPU, and say how far apart and how fast they are")
        .arg(device)
        .arg(one("only", "WORDS", "Those whose name has all of them: product, 'attention BF16', ..."))
        .arg(Arg::new("small").long("small").action(ArgAction::SetTrue).help("Small arguments only, and no times"));
    Command::new("veneer")
        .about("Sentence embeddings with any number of PEFT adapters, chosen per request")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([serve, check, embed].map(with_keys))
        .subcommands([selftest, health])
}

/// `--config`, `--base` and one flag a key.
fn with_keys(command: Command) -> Command {
    let keys = config::keys().into_iter().map(|key| {
        let flag = key.name.replace('_', "-");
        let help = format!("{} [{}={}]", key.comment, key.env_name(), key.default);
        Arg::new(key.name).long(flag).value_name("VALUE").help(help).help_heading(format!("[{}]", key.section))
    });
    let base = "For a model that is only a PEFT checkpoint: its base, where adapter_config.json leads nowhere";
    command.arg(one("config", "FILE", "A TOML file")).arg(one("base", "SOURCE", base)).args(keys)
}

fn one(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

fn many(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    one(name, value, help).action(ArgAction::Append)
}

fn flags(matches: &ArgMatches) -> Flags {
    let all = |id: &str| matches.get_many::<String>(id).into_iter().flatten().cloned().collect();
    let keys = config::keys().into_iter().filter_map(|key| {
        let value = matches.get_one::<String>(&key.name)?.clone();
        Some((key.name, value))
    });
    Flags {
        keys: keys.collect(),
        models: all("model"),
        adapters: all("adapter"),
        base: matches.get_one::<String>("base").cloned(),
    }
}
