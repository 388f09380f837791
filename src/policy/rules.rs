//! The keys of `[policy]`: [`PolicySettings`] as they are written, each optional, and [`Rules`] as they hold for a
//! queue, each with a value.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::image::{ImageSet, Pull};
use super::mount::{DeniedPath, Root};
use super::profile::Profile;
use super::terms::{Capabilities, Limit, Names, Namespace, Network, Redirects, UploadLinks};
use crate::task::QueueName;
use crate::units::{Size, Span};

/// Writes a struct of values and its twin of optional values, so that no key stands in one of them only.
macro_rules! layered {
    (
        $(#[$doc:meta])* $rules:ident / $settings:ident {
            $($(#[$field_doc:meta])* $field:ident: $kind:ty $(=> $nested:ty)?,)*
        }
        $(written { $($(#[$only_doc:meta])* $only:ident: $only_kind:ty,)* })?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $rules {
            $($(#[$field_doc])* pub $field: $kind,)*
        }
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $settings {
            $($(
                $(#[$only_doc])*
                #[serde(default, skip_serializing_if = "is_default")]
                pub $only: $only_kind,
            )*)?
            $(
                $(#[$field_doc])*
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub $field: Option<layered!(@ $kind $(, $nested)?)>,
            )*
        }
    };
    (@ $kind:ty) => { $kind };
    (@ $kind:ty, $nested:ty) => { $nested };
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

layered! {
    /// Which images may run.
    Images / ImagesSettings {
        /// Patterns of images; see [`ImageSet`].
        allowed: ImageSet,
        /// The values that `pull` may have.
        pull_policies: Vec<Pull>,
        /// Whether an image must be named by its digest.
        require_digest: bool,
    }
}

layered! {
    /// Which host paths may be mounted.
    Binds / BindsSettings {
        /// Paths at or below which a host path may be mounted, with `:ro` to allow reading only.
        roots: Vec<Root>,
        /// Paths of which no part may be mounted, after links are resolved.
        denied: Vec<DeniedPath>,
        /// Whether Docker's socket and the worker's own state and settings are denied, too.
        protect_worker: bool,
    }
}

layered! {
    /// Which namespaces a container may share.
    Namespaces / NamespacesSettings {
        /// With the host.
        host: Vec<Namespace>,
        /// With another container.
        container: Vec<Namespace>,
    }
}

layered! {
    /// Where the worker's own HTTP requests for a task may go.
    Http / HttpSettings {
        /// Hosts of streams, besides the task's Girder.
        allowed_hosts: Names,
        /// Addresses that no host may have, judged after its name was resolved.
        denied_networks: Vec<Network>,
        /// Which redirects are followed.
        redirects: Redirects,
    }
}

layered! {
    /// How the worker talks to the task's Girder.
    Girder / GirderSettings {
        /// Whether a message may turn the check of Girder's certificate off (`verify` of its session).
        allow_insecure_tls: bool,
    }
}

layered! {
    /// How much a task may download.
    Download / DownloadSettings {
        /// Files.
        max_files: Limit<u64>,
        /// Bytes.
        max_bytes: Limit<Size>,
    }
}

layered! {
    /// What a task may ask for.
    Rules / PolicySettings {
        /// Which images may run.
        images: Images => ImagesSettings,
        /// Which host paths may be mounted.
        binds: Binds => BindsSettings,
        /// Whether a container may have full access to the host.
        privileged: bool,
        /// Host devices that may be passed in.
        devices: Names,
        /// Capabilities that may be added, without `CAP_`.
        cap_add: Names,
        /// Capabilities of every container.
        capabilities: Capabilities,
        /// Security options that may be set, such as `seccomp=unconfined`; `no-new-privileges` always may.
        security_opt: Names,
        /// Parents of control groups that may be named.
        cgroup_parent: Names,
        /// Which namespaces may be shared.
        namespaces: Namespaces => NamespacesSettings,
        /// Networks that may be joined, by name; `bridge` is the default one.
        network_modes: Names,
        /// Whether ports may be published on the host.
        ports: bool,
        /// Runtimes that may be named.
        runtimes: Names,
        /// Whether GPUs may be used.
        gpus: bool,
        /// `image` for the image's or the task's own choice, otherwise the user of every container, as `uid:gid`.
        user: String,
        /// Groups that may be added.
        group_add: Names,
        /// Whether every container starts with `no-new-privileges`.
        no_new_privileges: bool,
        /// Named volumes that may be mounted.
        named_volumes: Names,
        /// Volume drivers that may be named; their options need `*`, for they can mount any path.
        volume_drivers: Names,
        /// Whether the volumes of other containers may be mounted.
        volumes_from: bool,
        /// Log drivers that may be named.
        log_drivers: Names,
        /// Further fields of the engine's HostConfig that may be set, by its own names.
        fields: Names,
        /// The most memory that may be asked for.
        memory_max: Limit<Size>,
        /// Memory when none is asked for.
        memory_default: Limit<Size>,
        /// The most processors that may be asked for.
        cpus_max: Limit<f64>,
        /// The most processes that may be asked for.
        pids_max: Limit<u32>,
        /// Processes when nothing is asked for.
        pids_default: Limit<u32>,
        /// The most that is kept of a container's output.
        log_max: Size,
        /// The longest line of a progress pipe.
        progress_line_max: Size,
        /// The most that a task's temporary volumes may hold.
        volume_max: Limit<Size>,
        /// The longest time that a task may run.
        task_timeout: Limit<Span>,
        /// The longest time that a pull may take.
        pull_timeout: Span,
        /// Where the worker's own HTTP requests may go.
        http: Http => HttpSettings,
        /// What happens at links in uploads.
        upload_links: UploadLinks,
        /// How much may be downloaded.
        download: Download => DownloadSettings,
        /// How Girder is talked to.
        girder: Girder => GirderSettings,
    }
    written {
        /// Which defaults hold for the keys that are not written.
        profile: Option<Profile>,
        /// Whether violations refuse a task or are only told; enforced when not written.
        mode: Option<Mode>,
        /// Other rules for the tasks of a queue, by its name.
        queue: BTreeMap<QueueName, PolicySettings>,
    }
}

/// What happens to a task that asks for too much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It is refused.
    #[default]
    Enforce,
    /// It runs as it asked, and what would have been refused is told.
    Audit,
}
