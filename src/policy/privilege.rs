//! What would lift a container above others: capabilities, devices, users, runtimes.

use bollard::models::{ContainerCreateBody, DeviceRequest};

use super::Judging;
use super::denied::quoted;
use super::rules::Rules;
use super::terms::{Capabilities, Names};

/// The setting's value that leaves the user to the image and the task.
pub(super) const IMAGES_OWN: &str = "image";

const NO_NEW_PRIVILEGES: &str = "no-new-privileges:true";

/// Gives the container what the rules demand of every one.
pub(super) fn apply(rules: &Rules, body: &mut ContainerCreateBody) {
    if rules.user != IMAGES_OWN && body.user.as_deref().unwrap_or_default().is_empty() {
        body.user = Some(rules.user.clone());
    }
    let host = body.host_config.get_or_insert_default();
    if rules.capabilities == Capabilities::None && !drops_all(host.cap_drop.as_deref()) {
        host.cap_drop.get_or_insert_default().push("ALL".to_owned());
    }
    if rules.no_new_privileges {
        let options = host.security_opt.get_or_insert_default();
        if !options.iter().any(|option| is_no_new_privileges(option)) {
            options.push(NO_NEW_PRIVILEGES.to_owned());
        }
    }
}

/// Judges everything that gives a container more than others have.
pub(super) fn judge(judging: &mut Judging<'_>) {
    let Some(host) = judging.host else { return };
    let rules = judging.rules();
    if host.privileged == Some(true) && !rules.privileged {
        judging.deny("privileged", "privileged=true".to_owned());
    }
    let capabilities: Vec<String> = host.cap_add.iter().flatten().map(|name| capability(name)).collect();
    judge_names(judging, ("cap_add", &rules.cap_add), "cap_add", &capabilities, |names, name| {
        names.matches(name) || names.texts().iter().any(|text| capability(text) == name)
    });
    if rules.capabilities == Capabilities::None && !drops_all(host.cap_drop.as_deref()) {
        judging.deny("capabilities", "the default capabilities".to_owned());
    }
    judge_security(judging, host.security_opt.as_deref().unwrap_or_default());
    let parents: Vec<String> = host.cgroup_parent.iter().filter(|text| !text.is_empty()).cloned().collect();
    judge_names(judging, ("cgroup_parent", &rules.cgroup_parent), "cgroup_parent", &parents, Names::matches);
    let runtimes: Vec<String> = host.runtime.iter().filter(|text| !text.is_empty()).cloned().collect();
    judge_names(judging, ("runtimes", &rules.runtimes), "runtime", &runtimes, Names::matches);
    judge_names(
        judging,
        ("group_add", &rules.group_add),
        "group_add",
        host.group_add.as_deref().unwrap_or_default(),
        Names::matches,
    );
    let driver = host.log_config.as_ref().and_then(|log| log.typ.clone()).filter(|text| !text.is_empty());
    judge_names(
        judging,
        ("log_drivers", &rules.log_drivers),
        "log_config.type",
        driver.as_slice(),
        Names::matches,
    );
    judge_user(judging);
    judge_devices(judging);
    let published = host.port_bindings.as_ref().is_some_and(|ports| !ports.is_empty());
    if !rules.ports && (published || host.publish_all_ports == Some(true)) {
        judging.deny("ports", if published { "ports" } else { "publish_all_ports=true" }.to_owned());
    }
}

/// Denies what `fits` finds in none of a setting's names, all in one sentence.
fn judge_names(
    judging: &mut Judging<'_>,
    (key, names): (&str, &Names),
    keyword: &str,
    asked: &[String],
    fits: impl Fn(&Names, &str) -> bool,
) {
    let refused: Vec<&str> = asked.iter().map(String::as_str).filter(|name| !fits(names, name)).collect();
    if !refused.is_empty() {
        judging.deny(key, format!("{keyword}={}", quoted(&refused.join(", "))));
    }
}

/// `CAP_SYS_ADMIN`, `sys_admin` and `SYS_ADMIN` are one.
fn capability(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    upper.strip_prefix("CAP_").map(str::to_owned).unwrap_or(upper)
}

fn drops_all(dropped: Option<&[String]>) -> bool {
    dropped.unwrap_or_default().iter().any(|name| capability(name) == "ALL")
}

fn judge_security(judging: &mut Judging<'_>, options: &[String]) {
    let rules = judging.rules();
    let refused: Vec<&str> = options
        .iter()
        .map(String::as_str)
        .filter(|option| !is_no_new_privileges(option) && !rules.security_opt.matches(&separated(option)))
        .collect();
    if !refused.is_empty() {
        judging.deny("security_opt", format!("security_opt={}", quoted(&refused.join(", "))));
    }
    // Docker takes the last word of several.
    let word = options.iter().rev().find(|option| option.starts_with("no-new-privileges"));
    if rules.no_new_privileges && !word.is_some_and(|option| is_no_new_privileges(option)) {
        judging.deny("no_new_privileges", "a container without no-new-privileges".to_owned());
    }
}

/// Docker takes `seccomp=x` and, from older clients, `seccomp:x`.
fn separated(option: &str) -> String {
    if option.contains('=') { option.to_owned() } else { option.replacen(':', "=", 1) }
}

fn is_no_new_privileges(option: &str) -> bool {
    matches!(separated(option).as_str(), "no-new-privileges" | "no-new-privileges=true")
}

fn judge_user(judging: &mut Judging<'_>) {
    let user = judging.body.user.as_deref().unwrap_or_default();
    let rules = judging.rules();
    if rules.user != IMAGES_OWN && user != rules.user {
        let asked =
            if user.is_empty() { "the image's user".to_owned() } else { format!("user={}", quoted(user)) };
        judging.deny("user", asked);
    }
}

fn judge_devices(judging: &mut Judging<'_>) {
    let Some(host) = judging.host else { return };
    let rules = judging.rules();
    for device in host.devices.iter().flatten() {
        let path = device.path_on_host.as_deref().unwrap_or_default();
        // A link below an allowed path must not lead to another device.
        let allowed = rules.devices.is_any()
            || judging.files.resolve(path.as_ref()).is_ok_and(|resolved| {
                [resolved.given, resolved.real]
                    .iter()
                    .all(|path| rules.devices.matches(&path.to_string_lossy()))
            });
        if !allowed {
            judging.deny("devices", format!("device {}", quoted(path)));
        }
    }
    let cgroup_rules = host.device_cgroup_rules.as_deref().unwrap_or_default();
    if !cgroup_rules.is_empty() && !rules.devices.is_any() {
        judging.deny("devices", format!("device_cgroup_rules={}", quoted(&cgroup_rules.join(", "))));
    }
    let requests = host.device_requests.as_deref().unwrap_or_default();
    if let Some(other) = requests.iter().find(|request| !is_gpu(request)).filter(|_| !rules.devices.is_any())
    {
        let driver = other.driver.as_deref().unwrap_or_default();
        judging.deny("devices", format!("a device request of driver {} for other than GPUs", quoted(driver)));
    }
    if !rules.gpus && (judging.request.gpus > 0 || requests.iter().any(is_gpu)) {
        let count = judging.request.gpus;
        judging.deny("gpus", if count > 0 { format!("gpus={count}") } else { "GPUs".to_owned() });
    }
}

/// Whether a device request can be granted by nothing but a GPU.
fn is_gpu(request: &DeviceRequest) -> bool {
    match request.driver.as_deref().unwrap_or_default() {
        "cdi" => request.device_ids.as_deref().is_some_and(|ids| {
            const KINDS: [&str; 3] = ["nvidia.com/gpu=", "amd.com/gpu=", "intel.com/gpu="];
            !ids.is_empty() && ids.iter().all(|id| KINDS.iter().any(|kind| id.starts_with(kind)))
        }),
        "" | "nvidia" | "amd" => request.capabilities.as_deref().is_some_and(|choices| {
            !choices.is_empty() && choices.iter().all(|all| all.iter().any(|name| name == "gpu"))
        }),
        _ => false,
    }
}
