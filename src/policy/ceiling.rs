//! How much a task may take: memory, processors, processes, time.

use bollard::models::{ContainerCreateBody, HostConfig};

use super::rules::Rules;
use super::terms::Limit;
use super::{Judging, Machine};
use crate::units::{Size, Span};

/// The engine's own period where none is given, in microseconds.
const PERIOD: i64 = 100_000;

/// Bounds what the task left open.
pub(super) fn apply(rules: &Rules, machine: &Machine, body: &mut ContainerCreateBody) {
    let host = body.host_config.get_or_insert_default();
    if host.memory.unwrap_or(0) == 0 {
        let bound = rules.memory_default.amount(machine.memory).or(hard(rules.memory_max));
        host.memory = bound.map(|size| i64::try_from(size.bytes()).unwrap_or(i64::MAX)).or(host.memory);
    }
    if hard(rules.memory_max).is_some() && host.memory_swap.unwrap_or(0) == 0 {
        // Otherwise the engine adds as much swap as memory.
        host.memory_swap = host.memory;
    }
    if let (Some(cpus), None) = (hard(rules.cpus_max), cpus(host)) {
        match host.cpu_period.filter(|period| *period > 0) {
            Some(period) => host.cpu_quota = Some(share(cpus, period)),
            None => host.nano_cpus = Some(share(cpus, 1_000_000_000)),
        }
    }
    if host.pids_limit.unwrap_or(0) == 0 {
        host.pids_limit = rules.pids_default.amount(None).or(hard(rules.pids_max)).map(i64::from);
    }
}

/// A limit that binds also those who ask for nothing; the machine's own size does not.
fn hard<T: Copy>(limit: Limit<T>) -> Option<T> {
    match limit {
        Limit::At(amount) => Some(amount),
        Limit::Machine | Limit::Unlimited => None,
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "saturates far above any host"
)]
fn share(cpus: f64, of: i64) -> i64 {
    (cpus * of as f64).round() as i64
}

/// The processors asked for, if any were.
#[expect(clippy::cast_precision_loss, reason = "a message shows it to two places")]
fn cpus(host: &HostConfig) -> Option<f64> {
    let quota = host.cpu_quota.filter(|quota| *quota > 0).map(|quota| {
        let period = host.cpu_period.filter(|period| *period > 0).unwrap_or(PERIOD);
        quota as f64 / period as f64
    });
    host.nano_cpus.filter(|nano| *nano > 0).map(|nano| nano as f64 / 1e9).or(quota)
}

/// Judges what was asked for.
pub(super) fn judge(judging: &mut Judging<'_>) {
    let rules = judging.rules();
    let machine = *judging.machine;
    if let Some(host) = judging.host {
        judge_memory(judging, host, &machine);
        if let (Some(asked), Some(most)) = (cpus(host), rules.cpus_max.amount(machine.cpus))
            && asked > most + 1e-6
        {
            let value = bound(judging, "cpus_max", rules.cpus_max, &most.to_string());
            judging.deny_with("cpus_max", format!("cpus={asked}"), value);
        }
        if let Some(most) = rules.pids_max.amount(None) {
            let asked = host.pids_limit.unwrap_or(0);
            if asked <= 0 || asked > i64::from(most) {
                let asked =
                    if asked <= 0 { "unlimited processes".to_owned() } else { format!("pids_limit={asked}") };
                judging.deny("pids_max", asked);
            }
        }
    }
    if let (Some(asked), Some(most)) = (judging.request.timeout, rules.task_timeout.amount(None))
        && asked > most
    {
        judging.deny("task_timeout", format!("timeout={asked}"));
    }
}

fn judge_memory(judging: &mut Judging<'_>, host: &HostConfig, machine: &Machine) {
    let rules = judging.rules();
    let Some(most) = rules.memory_max.amount(machine.memory) else { return };
    let value = bound(judging, "memory_max", rules.memory_max, &most.to_string());
    let size = |bytes: i64| Size(u64::try_from(bytes).unwrap_or(0));
    let memory = host.memory.unwrap_or(0);
    if size(memory) > most {
        judging.deny_with("memory_max", format!("mem_limit={}", size(memory)), value);
    } else if hard(rules.memory_max).is_some() {
        let swap = host.memory_swap.unwrap_or(0);
        if memory <= 0 {
            judging.deny_with("memory_max", "unlimited memory".to_owned(), value);
        } else if swap < 0 {
            judging.deny_with("memory_max", "unlimited swap".to_owned(), value);
        } else if size(swap) > most {
            judging.deny_with("memory_max", format!("memswap_limit={}", size(swap)), value);
        }
    }
}

/// The limit as it is shown: with its amount where the setting says "machine".
fn bound<T: Copy>(judging: &Judging<'_>, key: &str, limit: Limit<T>, amount: &str) -> String {
    match limit {
        Limit::Machine => format!("\"machine\" ({amount})"),
        Limit::At(_) | Limit::Unlimited => judging.value(key),
    }
}

/// The time after which a task is stopped.
pub(super) fn timeout(rules: &Rules, asked: Option<Span>) -> Option<Span> {
    asked.or(rules.task_timeout.amount(None))
}
