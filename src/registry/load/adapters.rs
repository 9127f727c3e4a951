//! Adapters over bases: read, and tried out, side by side; served in the order in which they are named.

use super::{Base, Loading, now};
use crate::adapters;
use crate::config;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::hub::Source;
use crate::kernels::share_results;
use crate::registry::check::{Effect, Report};
use crate::registry::fitted::Fitted;
use crate::registry::golden::Agreement;
use crate::registry::{Loaded, sources};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};

/// So many adapters a thread are read at once; while a GPU tries them out, as many again.
const READ_AHEAD: usize = 8;

/// Bytes of a model of which every thread may have a matrix to itself.
const SMALL_BYTES: usize = 4 << 30;

/// An adapter that is read.
struct Read<'a> {
    loaded: Loaded,
    base: &'a Base,
    peft: adapters::Config,
    folder: Folder,
}

/// Adapters that were read, up to the first that could not be, and its error.
type Several<'a> = (Vec<Read<'a>>, Result<()>);

impl Loading<'_> {
    /// Fetches, loads and serves adapters of a base; without one, each over the model that its entry names, or the only
    /// one that it fits. An error is the first adapter's that has one.
    pub fn adapters(&mut self, entries: &[config::Adapter], base: Option<&Base>) -> Result<()> {
        let loaded = self.fetched(entries, base)?;
        self.loaded.extend(loaded);
        Ok(())
    }

    /// While a GPU tries some out, the next are read.
    fn fetched(&self, entries: &[config::Adapter], base: Option<&Base>) -> Result<Vec<Loaded>> {
        let mut parts = entries.chunks(READ_AHEAD * self.prober.threads().count());
        let is_over = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            let is_ahead = !self.readings.are_on_cpu();
            let begin = |part| (part, is_ahead.then(|| scope.spawn(move || self.fetch(part, base, is_over))));
            let (mut loaded, mut next) = (Vec::with_capacity(entries.len()), parts.next().map(begin));
            while let Some((part, ahead)) = next {
                let read = match ahead {
                    Some(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                    None => self.fetch(part, base, is_over),
                };
                next = parts.next().filter(|_| read.1.is_ok()).map(begin);
                let tried = self.tried(read);
                is_over.store(tried.is_err(), Ordering::Relaxed);
                loaded.extend(tried?);
            }
            Ok(loaded)
        })
    }

    /// Adapters whose folders are there, over this base or their own.
    pub fn over(&self, fetched: &[(&config::Adapter, Folder)], base: Option<&Base>) -> Result<Vec<Loaded>> {
        self.tried(self.read_all(fetched, base))
    }

    /// Fetches and reads adapters; no more of them once others have failed.
    fn fetch<'a>(&'a self, entries: &[config::Adapter], base: Option<&'a Base>, is_over: &AtomicBool) -> Several<'a> {
        let (mut fetched, mut outcome) = (Vec::with_capacity(entries.len()), Ok(()));
        for entry in entries.iter().take_while(|_| !is_over.load(Ordering::Relaxed)) {
            match Source::parse(&entry.source).and_then(|source| self.hub.fetch(&source)) {
                Ok(folder) => fetched.push((entry, folder)),
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        let (read, was_read) = self.read_all(&fetched, base);
        (read, was_read.and(outcome))
    }

    fn read_all<'a>(&'a self, fetched: &[(&config::Adapter, Folder)], base: Option<&'a Base>) -> Several<'a> {
        let read = || share_results(fetched, |(entry, folder)| self.read(entry, folder, base));
        if self.are_small(base) { self.prober.threads().run(read) } else { read() }
    }

    /// Tries out what was read, before what could not be is an error.
    fn tried(&self, (read, was_read): Several) -> Result<Vec<Loaded>> {
        let (mut loaded, mut read) = (Vec::with_capacity(read.len()), read.into_iter());
        let threads = self.prober.threads();
        while read.len() > 0 {
            let count = self.tried_at_once(read.len());
            let some: Vec<Read> = read.by_ref().take(count).collect();
            let try_out = || share_results(&some, |read| self.try_out(read));
            // Beside a GPU all threads are for what is read.
            let (tried, outcome) = if self.readings.are_on_cpu() { threads.run(try_out) } else { try_out() };
            for (read, (effect, golden)) in some.into_iter().zip(tried) {
                loaded.push(read.told(effect, golden)?);
            }
            outcome?;
        }
        was_read.map(|()| loaded)
    }

    /// Whether there is memory for adapters of this base, or of any, to be read side by side: some need their base's whole
    /// weights for it, in f32.
    fn are_small(&self, base: Option<&Base>) -> bool {
        let bases = base.map_or(self.bases.as_slice(), std::slice::from_ref);
        let models = bases.iter().flat_map(|base| base.routes.iter()).map(|parts| &parts.model);
        models.map(|model| model.bytes()).max().is_none_or(|bytes| bytes <= SMALL_BYTES)
    }

    /// Of so many adapters, how many are tried out side by side: on a CPU one a thread, as often as that goes. All threads
    /// together try out each of the rest, and a GPU each of all, which then needs no room for more.
    fn tried_at_once(&self, count: usize) -> usize {
        let threads = self.prober.threads().count();
        if self.readings.are_on_cpu() && count >= threads { count - count % threads } else { 1 }
    }

    /// Reads an adapter and what it brings.
    fn read<'a>(&'a self, entry: &config::Adapter, folder: &Folder, base: Option<&'a Base>) -> Result<Read<'a>> {
        let (base, fitted) = self.fit(entry, folder, base)?;
        let (routes, provenance) = self.readings.adapter(&fitted, base, self.config.server.pipeline)?;
        let loaded = Loaded {
            name: entry.name.clone(),
            parent: Some(base.name.clone()),
            root: entry.source.clone(),
            created: now(),
            adapter: Some(fitted.adapter),
            routes,
            provenance,
            report: Report::default(),
        };
        Ok(Read { loaded, base, peft: fitted.peft, folder: fitted.folder })
    }

    /// Lays an adapter over a base, the model that its entry names, or the only one that it fits.
    fn fit<'a>(
        &'a self,
        entry: &config::Adapter,
        folder: &Folder,
        base: Option<&'a Base>,
    ) -> Result<(&'a Base, Fitted)> {
        if entry.name.is_empty() || entry.name.contains(':') {
            return Err(Error::Config(format!("'{}' cannot be an adapter's name", entry.name)));
        }
        let base = match (base, &entry.base, self.bases.as_slice()) {
            (Some(base), ..) => Some(base),
            (None, Some(name), bases) => {
                let base = bases.iter().find(|base| base.name == *name);
                let unknown = || Error::Config(format!("adapter '{}': no model is called '{name}'", entry.name));
                Some(base.ok_or_else(unknown)?)
            }
            (None, None, [only]) => Some(only),
            (None, None, _) => None,
        };
        match base {
            Some(base) => Ok((base, Fitted::on(base, folder)?)),
            None => self.fit_only(entry, folder),
        }
    }

    /// Lays an adapter over the only model that it fits.
    fn fit_only(&self, entry: &config::Adapter, folder: &Folder) -> Result<(&Base, Fitted)> {
        let (mut fitting, mut reasons) = (Vec::new(), Vec::new());
        for base in &self.bases {
            match Fitted::on(base, folder) {
                Ok(fitted) => fitting.push((base, fitted)),
                Err(error) => reasons.push(format!("{}: {error}", base.name)),
            }
        }
        let names: Vec<&str> = fitting.iter().map(|(base, _)| base.name.as_str()).collect();
        let (name, names, count) = (&entry.name, names.join(", "), fitting.len());
        match fitting.pop().filter(|_| count == 1) {
            Some(only) => Ok(only),
            None if count == 0 => {
                Err(Error::Config(format!("adapter '{name}' fits no model ({})", reasons.join("; "))))
            }
            None => {
                let way_out = format!("name one: BASE:{name}={}", entry.source);
                Err(Error::Config(format!("adapter '{name}' fits several models: {names}; {way_out}")))
            }
        }
    }

    /// What an adapter does, and whether it meets the vectors that its folder expects.
    fn try_out(&self, Read { loaded, base, peft, folder }: &Read) -> Result<(Effect, Result<Option<Agreement>>)> {
        let effect = self.prober.effect(loaded, peft.summary(), base.routes.main())?;
        Ok((effect, self.golden(folder, loaded)))
    }
}

impl Read<'_> {
    /// What is served of it, with what was found out, which it tells.
    fn told(self, effect: Effect, golden: Result<Option<Agreement>>) -> Result<Loaded> {
        let Self { mut loaded, base, peft, .. } = self;
        effect.warn(&loaded.name);
        loaded.report = Report { golden: golden?, effect: Some(effect.clone()) };
        if let Some(adapter) = &loaded.adapter {
            let (sites, rank, kib) = (adapter.deltas().count(), adapter.rank(), adapter.bytes() >> 10);
            let (kind, moves) = (effect.kind, effect.moves.1);
            tracing::info!(adapter = loaded.name, base = base.name, kind, sites, rank, kib, moves, "adapter loaded");
        }
        sources::warn_of_another_base(&loaded.name, &peft, &base.root);
        Ok(loaded)
    }
}
