//! The three profiles: which rules hold for keys that are not written.

use serde::{Deserialize, Serialize};

use super::image::{ImageSet, Pull};
use super::mount::{DeniedPath, Root};
use super::rules::{Binds, Download, Girder, Http, Images, Namespaces, Rules};
use super::terms::{Capabilities, Limit, Names, Namespace, Network, Redirects, UploadLinks};
use crate::units::{Size, Span};

/// A set of defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Nothing that reaches beyond the container, and otherwise what Girder's tasks use.
    #[default]
    Standard,
    /// Nothing that was not allowed by name.
    Strict,
    /// What `girder_worker` allows: everything.
    Open,
}

/// The folders that make a host what it is, and the sockets in them.
const SYSTEM: &[&str] = &[
    "/",
    "/boot",
    "/dev",
    "/etc",
    "/proc",
    "/root",
    "/run",
    "/sys",
    "/usr",
    "/bin",
    "/sbin",
    "/lib*",
    "/var/run",
    "/var/lib/docker",
];

/// Link-local addresses, where clouds answer for a host's identity, and the metadata services that live elsewhere.
const METADATA: &[&str] = &[
    "169.254.0.0/16",
    "fe80::/10",
    "fd00:ec2::254",
    "fd20:ce::254",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
];

const GIB: u64 = 1 << 30;

impl Profile {
    /// The rules of the profile.
    pub fn rules(self) -> Rules {
        match self {
            Self::Standard => standard(),
            Self::Strict => strict(),
            Self::Open => open(),
        }
    }
}

fn names(texts: &[&str]) -> Names {
    let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
    Names::try_from(texts).expect("invariant: the profiles' patterns are tested")
}

fn standard() -> Rules {
    let images =
        ImageSet::try_from(vec!["*".to_owned()]).expect("invariant: the profiles' patterns are tested");
    Rules {
        images: Images {
            allowed: images,
            pull_policies: vec![Pull::Always, Pull::Missing, Pull::Never],
            require_digest: false,
        },
        binds: Binds {
            roots: vec![Root::whole()],
            denied: SYSTEM.iter().filter_map(|path| DeniedPath::try_from((*path).to_owned()).ok()).collect(),
            protect_worker: true,
        },
        privileged: false,
        devices: names(&[]),
        cap_add: names(&[]),
        capabilities: Capabilities::Docker,
        security_opt: names(&[]),
        cgroup_parent: names(&[]),
        namespaces: Namespaces { host: Vec::new(), container: Vec::new() },
        network_modes: names(&["*"]),
        ports: true,
        runtimes: names(&["runc", "nvidia"]),
        gpus: true,
        user: "image".to_owned(),
        group_add: names(&["*"]),
        no_new_privileges: false,
        named_volumes: names(&["*"]),
        volume_drivers: names(&["local"]),
        volumes_from: false,
        log_drivers: names(&["json-file", "local", "journald", "none"]),
        fields: names(&[]),
        memory_max: Limit::Machine,
        memory_default: Limit::Unlimited,
        cpus_max: Limit::Machine,
        pids_max: Limit::Unlimited,
        pids_default: Limit::At(4096),
        log_max: Size(64 << 20),
        progress_line_max: Size(64 << 10),
        volume_max: Limit::Unlimited,
        task_timeout: Limit::Unlimited,
        pull_timeout: Span::seconds(600),
        http: Http {
            allowed_hosts: names(&["*"]),
            denied_networks: METADATA.iter().filter_map(|range| range.parse::<Network>().ok()).collect(),
            redirects: Redirects::Any,
        },
        upload_links: UploadLinks::Skip,
        download: Download { max_files: Limit::At(100_000), max_bytes: Limit::Unlimited },
        girder: Girder { allow_insecure_tls: false },
    }
}

fn strict() -> Rules {
    let standard = standard();
    Rules {
        images: Images {
            allowed: ImageSet::default(),
            pull_policies: vec![Pull::Missing, Pull::Never],
            require_digest: false,
        },
        binds: Binds { roots: Vec::new(), ..standard.binds },
        capabilities: Capabilities::None,
        network_modes: names(&["bridge", "none"]),
        ports: false,
        runtimes: names(&["runc"]),
        gpus: false,
        user: "65534:65534".to_owned(),
        group_add: names(&[]),
        no_new_privileges: true,
        named_volumes: names(&[]),
        memory_max: Limit::At(Size(4 * GIB)),
        memory_default: Limit::At(Size(4 * GIB)),
        cpus_max: Limit::At(2.0),
        pids_max: Limit::At(256),
        pids_default: Limit::At(256),
        volume_max: Limit::At(Size(20 * GIB)),
        task_timeout: Limit::At(Span::seconds(86_400)),
        http: Http { allowed_hosts: names(&[]), redirects: Redirects::Listed, ..standard.http },
        upload_links: UploadLinks::Error,
        download: Download { max_files: Limit::At(100_000), max_bytes: Limit::At(Size(50 * GIB)) },
        ..standard
    }
}

fn open() -> Rules {
    let standard = standard();
    Rules {
        binds: Binds { roots: vec![Root::whole()], denied: Vec::new(), protect_worker: false },
        privileged: true,
        devices: names(&["*"]),
        cap_add: names(&["*"]),
        security_opt: names(&["*"]),
        cgroup_parent: names(&["*"]),
        namespaces: Namespaces { host: Namespace::ALL.to_vec(), container: Namespace::ALL.to_vec() },
        runtimes: names(&["*"]),
        volume_drivers: names(&["*"]),
        volumes_from: true,
        log_drivers: names(&["*"]),
        fields: names(&["*"]),
        memory_max: Limit::Unlimited,
        cpus_max: Limit::Unlimited,
        pids_default: Limit::Unlimited,
        http: Http { denied_networks: Vec::new(), ..standard.http },
        download: Download { max_files: Limit::Unlimited, max_bytes: Limit::Unlimited },
        girder: Girder { allow_insecure_tls: true },
        ..standard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_and_range_of_the_profiles_is_a_sound_one() {
        let rules = Profile::Standard.rules();
        assert_eq!(rules.binds.denied.len(), SYSTEM.len());
        assert_eq!(rules.http.denied_networks.len(), METADATA.len());
    }

    /// What people read to see what a profile allows.
    #[test]
    fn the_profiles_are_as_documented() {
        for profile in [Profile::Standard, Profile::Strict, Profile::Open] {
            insta::assert_json_snapshot!(format!("{profile:?}"), profile.rules());
        }
    }
}
