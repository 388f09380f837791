//! Processes as the kernel sees them, and children that end with the bench.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeValLike;
use nix::unistd::{Pid, getpgid};

use super::Outcome;

/// A program that ends with this value, however that ends: see `peers/leash`.
pub(crate) struct Leashed {
    child: Child,
    input: Option<ChildStdin>,
}

impl Leashed {
    /// Starts `command`; what it prints goes to the file `log`.
    pub(crate) fn start(command: &Command, log: &Path) -> Outcome<Self> {
        let output = std::fs::File::create(log)?;
        let mut leash = Command::new(super::peer::script("leash"));
        leash.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => leash.env(name, value),
                None => leash.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            leash.current_dir(folder);
        }
        // A process group of its own: an interrupt at the terminal must not end the leash before what it holds.
        std::os::unix::process::CommandExt::process_group(&mut leash, 0);
        leash.stdin(Stdio::piped()).stdout(output.try_clone()?).stderr(output);
        let mut child = leash.spawn()?;
        let input = child.stdin.take();
        Ok(Self { child, input })
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> Outcome<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// The ids of all that it started and that live.
    pub(crate) fn members(&self) -> Vec<u32> {
        let parents: Vec<(u32, u32)> =
            all().filter_map(|process| Some((process, parent_of(process)?))).collect();
        let mut members = vec![self.child.id()];
        let mut seen = 0;
        while seen < members.len() {
            let of = members[seen];
            members.extend(parents.iter().filter(|(_, parent)| *parent == of).map(|(process, _)| *process));
            seen += 1;
        }
        // The leash itself, and what watches its input: they hold the others, also while those are stopped.
        let group = |process: &u32| getpgid(i32::try_from(*process).ok().map(Pid::from_raw)).ok();
        let leash = group(&self.child.id());
        members.retain(|process| group(process) != leash);
        members
    }
}

impl Drop for Leashed {
    fn drop(&mut self) {
        drop(self.input.take());
        // The leash kills what it holds; nothing is left to be told.
        let _ = self.child.wait();
    }
}

fn all() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn parent_of(process: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name is in brackets and may hold anything; state and parent follow it.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// The program and its arguments.
pub(crate) fn command_line(process: u32) -> String {
    let told = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&told).replace('\0', " ")
}

/// What this process has used of all processors so far.
pub(crate) fn processor_time() -> Outcome<Duration> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let time = usage.user_time() + usage.system_time();
    Ok(Duration::from_micros(u64::try_from(time.num_microseconds())?))
}

/// Resident memory in KiB.
pub(crate) fn resident(process: u32) -> Outcome<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    field(&status, "VmRSS:").ok_or_else(|| format!("/proc/{process}/status has no VmRSS").into())
}

/// How often each of its threads went to sleep of its own accord so far: each time something had woken it.
pub(crate) fn sleeps(process: u32) -> Outcome<HashMap<OsString, f64>> {
    let mut sleeps = HashMap::new();
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let thread = thread?;
        // A thread may end while we look.
        let status = std::fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let count = field(&status, "voluntary_ctxt_switches:").unwrap_or(0.0);
        sleeps.insert(thread.file_name(), count);
    }
    Ok(sleeps)
}

/// Wake-ups since `before` was taken. A thread that ended meanwhile took its count along and adds none: a sum over the
/// threads that live would fall with it.
pub(crate) fn wakeups_since(process: u32, before: &HashMap<OsString, f64>) -> Outcome<f64> {
    let now = sleeps(process)?;
    Ok(now.iter().map(|(thread, count)| count - before.get(thread).unwrap_or(&0.0)).sum())
}

fn field(status: &str, name: &str) -> Option<f64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}

/// Sends `signal` to all of `processes` that still are.
pub(crate) fn signal(processes: &[u32], signal: Signal) {
    for process in processes.iter().filter_map(|process| i32::try_from(*process).ok()) {
        let _ = kill(Pid::from_raw(process), signal);
    }
}
