//! Which temporary volumes of a message are one: by identity in its body, by their settings in its hooks.
//!
//! # Decisions
//! A hook is a document of its own, so its volume is never the same object as the body's; the Python worker therefore
//! makes a second, empty folder for it and the upload fails. Here it is the body's when exactly one there has the same
//! settings. A hook's volume that matches none, or several, stays apart, as there.

use std::collections::HashMap;

use crate::task::transform::TemporaryVolume;

/// The temporary volumes of a message.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    /// The body's, by the index of the object.
    body: HashMap<usize, usize>,
    /// All of them, in the order of their first mention.
    all: Vec<TemporaryVolume>,
    /// How many of these are the body's.
    of_body: usize,
}

/// The part of a message in which a volume is mentioned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The arguments.
    Body,
    /// The result hooks, each a document of its own.
    Hook,
}

impl Volumes {
    /// The volume that the object `index` of `part` stands for, with its id.
    pub(super) fn named(&mut self, part: Part, index: usize, settings: &TemporaryVolume) -> TemporaryVolume {
        match part {
            Part::Body => {
                if let Some(n) = self.body.get(&index) {
                    return self.all[*n].clone();
                }
                let n = self.add(settings, "volume");
                self.of_body = self.all.len();
                self.body.insert(index, n);
                self.all[n].clone()
            }
            Part::Hook => self.of_hook(settings),
        }
    }

    fn of_hook(&mut self, settings: &TemporaryVolume) -> TemporaryVolume {
        let same = |volume: &&TemporaryVolume| {
            (&volume.host_dir, volume.mode) == (&settings.host_dir, settings.mode)
        };
        let mut matching = self.all[..self.of_body].iter().filter(same);
        if let (Some(one), None) = (matching.next(), matching.next()) {
            return one.clone();
        }
        let n = self.add(settings, "hook-volume");
        self.all[n].clone()
    }

    fn add(&mut self, settings: &TemporaryVolume, kind: &str) -> usize {
        let n = self.all.len();
        self.all.push(TemporaryVolume { id: Some(format!("{kind}-{}", n + 1)), ..settings.clone() });
        n
    }
}
