//! Where the worker's own requests for a task may go: streams to HTTP servers, and redirects.
//!
//! A host is judged twice: by its name when the task is judged, and with its addresses by whoever connects, because a
//! name may resolve to another address by then.

use std::net::IpAddr;

use super::denied::quoted;
use super::{Judging, Policy, Section, Verdict};
use crate::task::{QueueName, TaskId};

/// The rules for one task's requests.
pub struct HttpPolicy<'a> {
    policy: &'a Policy,
    section: &'a Section,
    task: &'a TaskId,
    girder: Option<String>,
}

impl<'a> HttpPolicy<'a> {
    pub(super) fn new(policy: &'a Policy, queue: &QueueName, task: &'a TaskId, girder: Option<&str>) -> Self {
        let girder = girder.and_then(host_of);
        Self { policy, section: policy.section(queue), task, girder }
    }

    /// Judges a request to `host`, whose name resolved to `addresses`. Connect to no other than these.
    pub fn judge_url(&self, host: &str, addresses: &[IpAddr]) -> Verdict {
        let mut denied = Vec::new();
        let rules = &self.section.rules.http;
        let name = plain(host);
        if self.girder.as_deref() != Some(name.as_str()) && !rules.allowed_hosts.matches(&name) {
            denied.push(self.policy.denied(
                self.section,
                self.task,
                "http.allowed_hosts",
                format!("host {}", quoted(&name)),
            ));
        }
        let literal = name.parse::<IpAddr>().ok();
        for address in addresses.iter().copied().chain(literal) {
            if let Some(network) = rules.denied_networks.iter().find(|network| network.contains(address)) {
                let asked = format!("host {} at {address}", quoted(&name));
                let mut violation =
                    self.policy.denied(self.section, self.task, "http.denied_networks", asked);
                violation.value = format!("[…, \"{network}\", …]");
                if !denied.contains(&violation) {
                    denied.push(violation);
                }
            }
        }
        Verdict { mode: self.section.mode, denied, mounts: Vec::new() }
    }
}

/// Judges the names of all streams, and how Girder is talked to.
pub(super) fn judge(judging: &mut Judging<'_>) {
    let request = judging.request;
    if request.insecure_girder && !judging.rules().girder.allow_insecure_tls {
        // Whoever may write a message could otherwise have the tokens in it told to anybody on the way.
        let asked =
            "Girder without a check of its certificate (verify=false; tls.ca_file can name its issuer)";
        judging.deny("girder.allow_insecure_tls", asked.to_owned());
    }
    let http = HttpPolicy {
        policy: judging.policy,
        section: judging.section,
        task: request.task,
        girder: request.girder.and_then(host_of),
    };
    for url in request.streams {
        match host_of(url) {
            Some(host) => judging.denied.extend(http.judge_url(&host, &[]).denied),
            // What another reader may take for another host is not judged by its looks.
            None if !judging.rules().http.allowed_hosts.is_any()
                || !judging.rules().http.denied_networks.is_empty() =>
            {
                judging.deny(
                    "http.allowed_hosts",
                    "a stream URL that names no plain http or https host".to_owned(),
                );
            }
            None => {}
        }
    }
}

/// The host of an `http` or `https` URL; none if two readers could disagree about it.
pub(super) fn host_of(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let authority = rest.split(['/', '?', '#']).next()?;
    let sound = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    if authority.is_empty() || !authority.chars().all(sound) {
        return None;
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(six) => {
            six.split_once(']').map(|(host, rest)| (host, rest.strip_prefix(':').unwrap_or(rest)))?
        }
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let host = plain(host);
    (!host.is_empty() && port.chars().all(|c| c.is_ascii_digit())).then_some(host)
}

/// Lower case, without brackets and the final dot.
fn plain(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_read_from_plain_urls_only() {
        for (url, host) in [
            ("http://example.org/x", Some("example.org")),
            ("HTTPS://Example.ORG.:8443?x", Some("example.org")),
            ("http://[::1]:80/", Some("::1")),
            ("http://10.0.0.1", Some("10.0.0.1")),
            ("ftp://example.org", None),
            ("http://user@example.org", None),
            ("http://good.test\\@evil.test", None),
            ("http://exa mple.org", None),
            ("http://example.org:80a/", None),
            ("http:///x", None),
            ("http://%65vil.test", None),
        ] {
            assert_eq!(host_of(url).as_deref(), host, "{url}");
        }
    }
}
