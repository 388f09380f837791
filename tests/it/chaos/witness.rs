//! What the workers of a run did, as each of them noted it in one file beside them: see `src/failpoint.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use longshore::failpoint::Moment;

/// The file of one run.
pub(super) struct Witness {
    path: PathBuf,
}

/// One line of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) moment: Moment,
    pub(super) task: String,
    pub(super) fence: u64,
    pub(super) pid: u32,
}

/// What follows from all lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Starts {
    /// Beyond the first of each task.
    pub(super) extra: usize,
    /// Attempts of workers that were hurt, which ended in nothing: each may be begun once more.
    pub(super) cut_short: usize,
    /// Effects of attempts after a later one of the same task had begun.
    pub(super) stale: usize,
}

impl Witness {
    pub(super) fn in_folder(folder: &Path) -> Self {
        Self { path: folder.join("witness") }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// All lines so far, oldest first.
    pub(super) fn seen(&self) -> Vec<Seen> {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        text.lines()
            .map(|line| read(line).unwrap_or_else(|| panic!("no line of a witness: {line:?}")))
            .collect()
    }

    /// How many different tasks came to `moment`.
    pub(super) fn count(&self, moment: Moment) -> usize {
        let seen = self.seen().into_iter().filter(|seen| seen.moment == moment);
        seen.map(|seen| seen.task).collect::<BTreeSet<_>>().len()
    }

    /// Judges all lines; `hurt` are the processes that were killed, frozen or told to give back what they ran.
    pub(super) fn starts(&self, hurt: &BTreeSet<u32>) -> Starts {
        judge(&self.seen(), hurt)
    }
}

fn read(line: &str) -> Option<Seen> {
    let mut words = line.split(' ');
    let moment = Moment::parse(words.next()?)?;
    let task = words.next()?.to_owned();
    Some(Seen { moment, task, fence: words.next()?.parse().ok()?, pid: words.next()?.parse().ok()? })
}

fn judge(seen: &[Seen], hurt: &BTreeSet<u32>) -> Starts {
    let recorded: BTreeSet<(&str, u64)> =
        seen.iter().filter(|s| s.moment == Moment::Recorded).map(|s| (s.task.as_str(), s.fence)).collect();
    let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
    let mut starts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut stale = 0;
    for s in seen {
        let task = s.task.as_str();
        match s.moment {
            Moment::Staging | Moment::Running => {
                let newest = newest.entry(task).or_default();
                *newest = (*newest).max(s.fence);
                if s.moment == Moment::Running {
                    let (all, cut_short) = starts.entry(task).or_default();
                    *all += 1;
                    *cut_short += usize::from(hurt.contains(&s.pid) && !recorded.contains(&(task, s.fence)));
                }
            }
            Moment::Effect => stale += usize::from(newest.get(task).is_some_and(|fence| *fence > s.fence)),
            Moment::Received | Moment::Uploading | Moment::Recorded | Moment::Published => {}
        }
    }
    Starts {
        extra: starts.values().map(|(all, _)| all - 1).sum(),
        cut_short: starts.values().map(|(all, cut_short)| (*cut_short).min(*all)).sum(),
        stale,
    }
}

#[test]
fn extra_starts_and_stale_effects_are_told_from_what_a_kill_excuses() {
    let line = |moment, fence, pid| Seen { moment, task: "t".to_owned(), fence, pid };
    let healthy = [line(Moment::Running, 1, 7), line(Moment::Effect, 1, 7), line(Moment::Recorded, 1, 7)];
    assert_eq!(judge(&healthy, &BTreeSet::new()), Starts::default());
    let twice = [&healthy[..], &[line(Moment::Running, 2, 8), line(Moment::Effect, 1, 7)]].concat();
    let hurt = BTreeSet::from([7]);
    assert_eq!(
        judge(&twice, &hurt),
        Starts { extra: 1, cut_short: 0, stale: 1 },
        "what is recorded excuses nothing"
    );
    let killed = [line(Moment::Running, 1, 7), line(Moment::Running, 2, 8), line(Moment::Effect, 2, 8)];
    assert_eq!(judge(&killed, &hurt), Starts { extra: 1, cut_short: 1, stale: 0 });
    assert_eq!(judge(&killed, &BTreeSet::new()), Starts { extra: 1, cut_short: 0, stale: 0 });
}
